"""``platform queues``, ``peek`` and ``purge``: what waits in the queues. They run no handler."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated, Any, Literal, get_args

import typer

from handrail.adapter import Depth, State
from handrail.cli.common import (
    Config,
    Json,
    Queue,
    UsageError,
    Yes,
    ago,
    broker_place,
    brokers,
    confirm,
    console,
    nearest,
    preview,
    print_json,
    queue_of,
    record,
    settings_of,
    table,
)
from handrail.cli.purging import PAGE, chosen_ids, forget
from handrail.config.model import Settings

StateName = Annotated[str, typer.Option("--state", metavar="STATE", help="ready, delayed, active or dead.")]
#: Seconds between two looks of `--watch`.
REFRESH = 1.0


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("queues")(queues)
    app.command("peek")(peek)
    app.command("purge")(purge)


def queues(
    config: Config = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every second until Ctrl-C.")] = False,
) -> None:
    """Show every queue: how many messages are ready, delayed, active and dead."""
    settings = settings_of(config)
    try:
        asyncio.run(_watch(settings, as_json=as_json) if watch else _once(settings, as_json=as_json))
    except KeyboardInterrupt:
        if not watch:  # there it is the way to leave
            raise


async def _depths(settings: Settings, open_brokers: Any) -> list[tuple[str, str, Depth]]:
    found = []
    for queue in settings.queues.values():
        adapter = await open_brokers.of(queue)
        depth = await open_brokers.answer(adapter, adapter.depth(queue.name))
        found.append((queue.name, str(queue.handler) if queue.handler else "–", depth))
    return found


async def _once(settings: Settings, *, as_json: bool) -> None:
    async with brokers(settings) as opened:
        rows = await _depths(settings, opened)
    if as_json:
        print_json(_as_json(settings, rows))
    else:
        console().print(_as_table(settings, rows))


async def _watch(settings: Settings, *, as_json: bool) -> None:
    async with brokers(settings) as opened:
        if as_json or not sys.stdout.isatty():
            while True:
                rows = await _depths(settings, opened)
                if as_json:
                    import json  # noqa: PLC0415 - one array a line here, where print_json would indent

                    print(json.dumps(_as_json(settings, rows)), flush=True)
                else:
                    console().print(_as_table(settings, rows))
                await asyncio.sleep(REFRESH)
        from rich.live import Live  # noqa: PLC0415 - only here

        with Live(console=console(), auto_refresh=False) as live:
            while True:
                shown = _as_table(settings, await _depths(settings, opened))
                shown.caption = f"{time.strftime('%H:%M:%S')}  Ctrl-C to leave"
                live.update(shown, refresh=True)
                await asyncio.sleep(REFRESH)


def _as_json(settings: Settings, rows: list[tuple[str, str, Depth]]) -> list[dict[str, Any]]:
    return [
        {
            "queue": name,
            "handler": handler if handler != "–" else None,
            "broker": broker_place(settings, settings.queues[name].broker),
            "ready": depth.ready,
            "delayed": depth.delayed,
            "active": depth.active,
            "dead": depth.dead,
        }
        for name, handler, depth in rows
    ]


def _as_table(settings: Settings, rows: list[tuple[str, str, Depth]]) -> Any:
    several = len(settings.brokers) > 1
    shown = table(
        "queue",
        "ready",
        "delayed",
        "active",
        "dead",
        "handler",
        *(["broker"] if several else []),
        right=("ready", "delayed", "active", "dead"),
    )
    for name, handler, depth in rows:
        dead = _number(depth.dead)
        shown.add_row(
            name,
            _number(depth.ready),
            _number(depth.delayed),
            _number(depth.active),
            f"[red]{dead}[/red]" if depth.dead else dead,
            handler,
            *([settings.queues[name].broker] if several else []),
        )
    return shown


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def state_of(text: str, allowed: tuple[str, ...] = get_args(State)) -> Any:
    """*text* as a state. Raises an error that names the nearest one."""
    if text not in allowed:
        raise UsageError(f"there is no state {text!r} here{nearest(text, allowed)}")
    return text


def peek(
    queue: Queue,
    config: Config = None,
    state: StateName = "ready",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip so many first.")] = 0,
    as_json: Json = False,
) -> None:
    """Show waiting messages in the order of their delivery, without touching them."""
    settings = settings_of(config)
    bound = queue_of(settings, queue)
    wanted: State = state_of(state)

    async def look() -> list[Any]:
        async with brokers(settings) as opened:
            adapter = await opened.of(bound)
            return await opened.answer(adapter, adapter.peek(queue, wanted, limit, offset))

    found = asyncio.run(look())
    if as_json:
        print_json([record(each) for each in found])
        return
    if not found:
        print(f"no {state} messages in {queue}")
        return
    shown = table("id", "sent", "due", "priority", "attempts", "message", right=("priority", "attempts"))
    for each in found:
        due = ago(each.due) if each.due else "–"
        shown.add_row(
            each.id, ago(each.sent_at), due, str(each.priority), str(each.attempts), _plain(preview(each.body))
        )
    console().print(shown)


def _plain(text: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(text)  # so that brackets in a payload are not taken for markup


def purge(
    queue: Queue,
    config: Config = None,
    state: Annotated[
        str, typer.Option("--state", metavar="STATE", help="ready, delayed, or waiting, which is both.")
    ] = "waiting",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete the waiting messages of a queue. What is being worked on, and dead letters, stay."""
    settings = settings_of(config)
    bound = queue_of(settings, queue)
    wanted = state_of(state, ("waiting", "ready", "delayed"))
    states: tuple[Literal["ready", "delayed"], ...] = ("ready", "delayed") if wanted == "waiting" else (wanted,)

    async def count() -> int | None:
        async with brokers(settings) as opened:
            adapter = await opened.of(bound)
            depth = await opened.answer(adapter, adapter.depth(queue))
            numbers = [getattr(depth, each) for each in states]
            return None if None in numbers else sum(numbers)

    async def delete() -> int:
        number, ids = 0, []
        async with brokers(settings) as opened:
            adapter = await opened.of(bound)
            for each in states:
                if settings.ledger is not None:
                    ids += await opened.answer(adapter, chosen_ids(adapter, queue, each))
                number += await opened.answer(adapter, adapter.purge(queue, each))
            if ids:
                # what a worker took meanwhile runs on, and its id stays held
                active = {each.id for each in await opened.answer(adapter, adapter.peek(queue, "active", PAGE))}
                ids = [each for each in ids if each not in active]
        await forget(settings, queue, ids, ended=False)
        return number

    if not yes:
        number = asyncio.run(count())
        if number == 0:
            if as_json:
                print_json({"queue": queue, "purged": 0})
            else:
                print(f"no {state} messages in {queue}")
            return
        many = "all" if number is None else f"{number:,}"
        confirm(f"Delete {many} {state} message{'' if number == 1 else 's'} of {queue} for ever?", yes=False)
    number = asyncio.run(delete())
    if as_json:
        print_json({"queue": queue, "purged": number})
    else:
        print(f"deleted {number:,} message{'' if number == 1 else 's'} of {queue}")
