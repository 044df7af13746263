"""``platform dead``: list, show, replay and purge dead letters. It changes no queue but by these."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from handrail.adapter import Adapter
from handrail.cli.common import (
    Config,
    FailedError,
    Json,
    Queue,
    UsageError,
    Yes,
    ago,
    brokers,
    confirm,
    console,
    payload,
    preview,
    print_json,
    queue_of,
    record,
    settings_of,
    table,
)
from handrail.cli.purging import PAGE, forget
from handrail.config.model import Settings
from handrail.message import Message

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The dead letters; or say --all.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters of the queue.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    group = typer.Typer(
        name="dead", help="Dead letters: list, show, replay, purge.", no_args_is_help=True, rich_markup_mode="rich"
    )
    group.command("list")(list_)
    group.command("show")(show)
    group.command("replay")(replay)
    group.command("purge")(purge)
    app.add_typer(group)


def _with_adapter(settings: Settings, queue: str, call: Callable[[Adapter], Awaitable[Any]]) -> Any:
    bound = queue_of(settings, queue)
    if bound.dead_letter is None:
        raise UsageError(f"{queue} keeps no dead letters: it is set to `dead_letter: false`")

    async def work() -> Any:
        async with brokers(settings) as opened:
            adapter = await opened.of(bound)

            async def asked() -> Any:
                return await call(adapter)

            return await opened.answer(adapter, asked())

    return asyncio.run(work())


def list_(
    queue: Queue,
    config: Config = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip so many first.")] = 0,
    as_json: Json = False,
) -> None:
    """List the dead letters of a queue, newest first."""
    found: list[Message] = _with_adapter(
        settings_of(config), queue, lambda adapter: adapter.peek(queue, "dead", limit, offset)
    )
    if as_json:
        print_json([record(each) for each in found])
        return
    if not found:
        print(f"no dead letters in {queue}")
        return
    from rich.text import Text  # noqa: PLC0415 - brackets in a reason or payload are no markup

    from handrail.logs import printable  # noqa: PLC0415 - as in print_message

    shown = table("id", "died", "attempts", "reason", "message", right=("attempts",))
    for each in found:
        reason = each.fault.reason.partition("\n")[0] if each.fault else ""
        died = ago(each.fault.at if each.fault else None)
        shown.add_row(each.id, died, str(each.attempts), Text(printable(reason)), Text(preview(each.body)))
    console().print(shown)


def show(
    queue: Queue,
    message_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `platform dead list` prints it.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter whole: message, reason, traceback, headers."""
    found: Message | None = _with_adapter(
        settings_of(config), queue, lambda adapter: adapter.find(queue, "dead", message_id)
    )
    if found is None:
        raise FailedError(f"{queue} has no dead letter {message_id}; see: platform dead list {queue}")
    if as_json:
        print_json(record(found))
        return
    print_message(found)
    from handrail.cli.report import command_path  # noqa: PLC0415 - only here

    command, name = command_path(), shlex.quote(queue)
    print(f"\nrun it here:  {command} invoke {name} --from-dead {found.id}")
    print(f"send it back: {command} dead replay {name} {found.id}")


def print_message(found: Message) -> None:
    """One message for people: facts, payload, then what it died of."""
    from handrail.logs import printable  # noqa: PLC0415 - strangers' text must not move the terminal's cursor

    facts = {
        "id": found.id,
        "queue": found.queue,
        "sent": ago(found.sent_at),
        "due": ago(found.due) if found.due else "",
        "priority": str(found.priority),
        "attempts": f"{found.attempts} (starts {found.starts}, crashes {found.crashes})",
        "key": found.key or "",
        **{f"header {name}": str(value) for name, value in (found.headers or {}).items()},
    }
    if found.fault is not None:
        facts |= {"died": ago(found.fault.at), "reason": found.fault.reason}
    width = max(len(name) for name, value in facts.items() if value)
    for name, value in facts.items():
        if value:
            print(f"{name:<{width}}  {printable(value)}")
    body = payload(found)
    print("message" if found.content_type == "application/json" else f"message ({found.content_type})")
    text = body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False)
    print("\n".join(f"  {line}" for line in printable(text).splitlines()))
    if found.fault is not None and found.fault.traceback:
        print("traceback")
        print("\n".join(f"  {line}" for line in printable(found.fault.traceback).splitlines()))


def _chosen(queue: str, ids: list[str] | None, everything: bool, verb: str) -> list[str] | None:
    if bool(ids) == everything:
        raise UsageError(f"say which dead letters: platform dead {verb} {queue} ID …, or --all")
    return ids or None


def _missing(queue: str, ids: list[str] | None, number: int) -> None:
    if ids is not None and number < len(set(ids)):
        raise FailedError(
            f"{number} of {len(set(ids))} were dead letters of {queue}; the others are not there: platform dead list {queue}"
        )


def replay(
    queue: Queue, ids: Ids = None, everything: All = False, config: Config = None, as_json: Json = False
) -> None:
    """Send dead letters back to the tail of their queue, with their counters reset."""
    wanted = _chosen(queue, ids, everything, "replay")
    number: int = _with_adapter(settings_of(config), queue, lambda adapter: adapter.replay(queue, wanted))
    if as_json:
        print_json({"queue": queue, "replayed": number})
    else:
        print(f"sent {number:,} dead letter{'' if number == 1 else 's'} back to {queue}")
    _missing(queue, wanted, number)


async def _purge(adapter: Adapter, queue: str, wanted: list[str] | None) -> tuple[int, list[str]]:
    gone = wanted or []
    if wanted is None:
        while page := await adapter.peek(queue, "dead", PAGE, len(gone)):
            gone += [each.id for each in page]
    return await adapter.purge(queue, "dead", wanted), gone


def purge(
    queue: Queue,
    ids: Ids = None,
    everything: All = False,
    config: Config = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete dead letters for ever."""
    wanted = _chosen(queue, ids, everything, "purge")
    settings = settings_of(config)
    queue_of(settings, queue)
    if not yes:
        count = (
            len(set(wanted)) if wanted else _with_adapter(settings, queue, lambda adapter: adapter.depth(queue)).dead
        )
        if count == 0:
            _deleted(queue, 0, as_json=as_json)
            return
        many = "all dead letters" if count is None else f"{count:,} dead letter{'' if count == 1 else 's'}"
        confirm(f"Delete {many} of {queue} for ever?", yes=False)
    number, gone = _with_adapter(settings, queue, lambda adapter: _purge(adapter, queue, wanted))
    asyncio.run(forget(settings, queue, gone, ended=True))
    _deleted(queue, number, as_json=as_json)
    _missing(queue, wanted, number)


def _deleted(queue: str, number: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"queue": queue, "purged": number})
    else:
        print(f"deleted {number:,} dead letter{'' if number == 1 else 's'} of {queue}")
