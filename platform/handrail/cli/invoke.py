"""``platform invoke``: one call of a handler in this process, without a worker. It settles nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from handrail import duration, errors
from handrail.cli.common import (
    Config,
    FailedError,
    Json,
    UsageError,
    brokers,
    nearest,
    payload,
    print_json,
    queue_of,
    say,
    settings_of,
    shown,
)
from handrail.cli.exit_codes import ExitCode
from handrail.cli.send import Source
from handrail.config.model import HandlerRef, QueueSettings, Settings
from handrail.logs import printable
from handrail.message import JSON, Message
from handrail.outcome import Outcome
from handrail.pipe import End


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("invoke")(invoke)


def invoke(
    handler: Annotated[str, typer.Argument(metavar="HANDLER", help="A queue, or a handler such as mail.send_welcome.")],
    message: Annotated[
        str | None, typer.Argument(metavar="JSON|@FILE|-", help="The message; not with --from-dead.")
    ] = None,
    config: Config = None,
    from_dead: Annotated[
        str | None,
        typer.Option("--from-dead", metavar="ID", help="Take this dead letter of the queue; it stays there."),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="The message is text, not JSON.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The message is bytes that nobody looks at.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Open the debugger where the handler fails.")] = False,
    as_json: Json = False,
) -> None:
    """Call a handler once, here, with no broker. Prints its result; exits with 5 when it fails."""
    from handrail.host.invoke import invoke as call  # noqa: PLC0415 - it loads the machinery of a host

    settings = settings_of(config)
    target = _target(settings, handler)
    queue = settings.queues[target] if isinstance(target, str) else QueueSettings(name=handler, handler=target)
    if (message is None) == (from_dead is None):
        raise UsageError("say what to call it with: a message, or --from-dead ID")
    if from_dead is not None:
        found = asyncio.run(_dead_letter(settings, handler, from_dead))
    else:
        found = _made(queue, message or "", text=text, raw=raw)
    try:
        done = call(
            settings,
            target,
            found.body,
            content_type=found.content_type,
            message_id=found.id,
            attempt=found.attempts + 1 if from_dead is None else max(found.attempts, 1),
            headers=found.headers,
            priority=found.priority,
            key=found.key,
            debug=debug,
        )
    except errors.ConfigError as error:
        raise errors.ConfigError([problem.rstrip() for problem in error.problems]) from None
    result = json.loads(done.detail[0]) if done.end is End.COMPLETED and done.detail[0] is not None else None
    outcome = _OUTCOMES.get(done.end, Outcome.FAILED).value if done.end is not None else Outcome.FAILED.value
    traceback = str(done.detail[{End.FAILED: 2, End.REJECTED: 1}[done.end]]) if done.end in _WITH_TRACEBACK else ""
    if as_json:
        print_json(
            {
                "handler": done.found.where,
                "outcome": outcome,
                "result": result,
                "reason": done.reason or None,
                "traceback": traceback or None,
                "seconds": round(done.seconds, 6),
                "sent": [{"queue": each.queue, "id": each.id, "message": payload(each)} for each in done.sends],
                "logs": [{"level": level, "text": line} for level, line in done.logs],
            }
        )
    else:
        for level, line in done.logs:
            say(f"{level}: {line}")
        for each in done.sends:
            say(f"would send to {each.queue}: {each.body[:200].decode('utf-8', 'replace')}")
        if traceback:
            say(printable(traceback.rstrip()))
        took = duration.text(round(done.seconds, 4))
        say(f"{done.found.where}: {outcome} in {took}{f': {done.reason}' if done.reason and not traceback else ''}")
        if result is not None:
            print(json.dumps(result, indent=2, ensure_ascii=False))
    if done.end is not End.COMPLETED:
        raise typer.Exit(ExitCode.START)


_WITH_TRACEBACK = (End.FAILED, End.REJECTED)
#: What a worker would have called it.
_OUTCOMES = {
    End.COMPLETED: Outcome.COMPLETED,
    End.LATER: Outcome.LATER,
    End.REJECTED: Outcome.DEAD,
    End.UNFIT: Outcome.DEAD,
}


def _target(settings: Settings, text: str) -> str | HandlerRef:
    """A queue of that name, else the handler that *text* refers to."""
    from handrail.config.references import ReferenceProblemError, References  # noqa: PLC0415

    if text in settings.queues:
        if settings.queues[text].handler is None:
            raise UsageError(f"queue {text} has no handler in {shown(settings.path)}")
        return text
    try:
        return References(Path(settings.root), check=True).find(text)
    except ReferenceProblemError as error:
        reason = str(error).removeprefix(f"handler {text!r}: ")
        queues = nearest(text, settings.queues).removeprefix("; ")
        raise UsageError(f"{text!r} is neither a handler ({reason}) nor a queue ({queues})") from None


async def _dead_letter(settings: Settings, queue: str, message_id: str) -> Message:
    bound = queue_of(settings, queue)
    async with brokers(settings) as opened:
        adapter = await opened.of(bound)
        found = await opened.answer(adapter, adapter.find(queue, "dead", message_id))
    if found is None:
        raise FailedError(f"{queue} has no dead letter {message_id}; see: platform dead list {queue}")
    return found


def _made(queue: QueueSettings, argument: str, *, text: bool, raw: bool) -> Message:
    from handrail import codec  # noqa: PLC0415

    values: list[Any] = [value for value, _size in Source(argument, queue, text=text, raw=raw)]
    if len(values) != 1:
        raise UsageError(f"{argument} holds {len(values)} messages; invoke calls the handler once")
    body, content_type = codec.encode(values[0])
    return Message(queue=queue.name, id="", body=body, content_type=content_type or JSON)
