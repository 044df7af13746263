"""``platform job`` and ``cancel``: one job by its id. What neither broker nor ledger knows they say so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from handrail.adapter import State
from handrail.cli.common import (
    Config,
    FailedError,
    Json,
    Queue,
    UsageError,
    ago,
    brokers,
    print_json,
    queue_of,
    record,
    settings_of,
)
from handrail.cli.dead import print_message
from handrail.config.model import Settings
from handrail.message import Message

if TYPE_CHECKING:
    from handrail.ledger import Cancelling, Ledger, Record

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `platform send` prints it.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("job")(job)
    app.command("cancel")(cancel)


@asynccontextmanager
async def _ledger(settings: Settings) -> AsyncIterator[Ledger | None]:
    from handrail.ledger import open_ledger  # noqa: PLC0415 - it brings the database, which no other command needs

    ledger = open_ledger(settings)
    if ledger is None:
        yield None
        return
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def _in_broker(settings: Settings, queue: str, job_id: str) -> tuple[str, Message] | None:
    bound = queue_of(settings, queue)
    async with brokers(settings) as opened:
        adapter = await opened.of(bound)
        states: tuple[State, ...] = get_args(State)
        # twice: what goes back from active to delayed between two looks is in neither
        for state in (*states, *states):
            found = await opened.answer(adapter, adapter.find(queue, state, job_id))
            if found is not None:
                return state, found
    return None


async def _known(settings: Settings, queue: str, job_id: str) -> tuple[Record | None, tuple[str, Message] | None]:
    async with _ledger(settings) as ledger:
        remembered = await ledger.get(queue, job_id) if ledger is not None else None
        waiting = await _in_broker(settings, queue, job_id)
        if ledger is not None and waiting is None:
            # it may have ended between the two
            remembered = await ledger.get(queue, job_id)
    return remembered, waiting


def job(queue: Queue, job_id: JobId, config: Config = None, as_json: Json = False) -> None:
    """Show what is known of a job: where it waits, or how it ended."""
    settings = settings_of(config)
    queue_of(settings, queue)
    remembered, waiting = asyncio.run(_known(settings, queue, job_id))
    if remembered is None and waiting is None:
        off = (
            "the ledger is off, so nothing is remembered"
            if settings.ledger is None
            else "the ledger has no record of it"
        )
        raise FailedError(
            f"{job_id} is not in {queue}, and {off}; "
            "a completed job with neither an id of your own nor a result leaves no trace"
        )
    if as_json:
        print_json(
            {
                "queue": queue,
                "id": job_id,
                "state": waiting[0] if waiting else None,
                "waiting": record(waiting[1]) if waiting else None,
                "outcome": remembered.outcome if remembered else None,
                "final": remembered.final if remembered else False,
                "result": _result(remembered),
                "error": remembered.error or None if remembered else None,
                "at": remembered.at or None if remembered else None,
                "attempts": remembered.attempts if remembered else waiting[1].attempts if waiting else 0,
            }
        )
        return
    if remembered is not None:
        _print_record(remembered)
    if waiting is not None:
        print(f"state     {waiting[0]}")
        print_message(waiting[1])


def _result(remembered: Record | None) -> Any:
    return json.loads(remembered.result) if remembered is not None and remembered.result is not None else None


def _print_record(remembered: Record) -> None:
    outcome = remembered.outcome.value if remembered.outcome is not None else "not finished"
    print(f"outcome   {outcome}{f', {ago(remembered.at)}' if remembered.at else ''}")
    if remembered.attempts:
        print(f"attempts  {remembered.attempts}")
    if remembered.error:
        print(f"error     {remembered.error}")
    if remembered.result is not None:
        print(f"result    {json.dumps(_result(remembered), ensure_ascii=False)}")


def cancel(queue: Queue, job_id: JobId, config: Config = None, as_json: Json = False) -> None:
    """Stop a job, or keep it from starting. Workers see it within a second or two."""
    from handrail.ledger import Cancelling  # noqa: PLC0415 - as above

    settings = settings_of(config)
    queue_of(settings, queue)

    async def ask() -> Cancelling:
        async with _ledger(settings) as ledger:
            if ledger is None:
                raise UsageError("cancelling needs the ledger, which is off: set `ledger:` in queues.yaml")
            answer = await ledger.cancel(queue, job_id)
            if answer is Cancelling.UNKNOWN and await _in_broker(settings, queue, job_id) is None:
                # nothing may be left behind for an id that is nowhere
                await ledger.uncancel(queue, job_id)
                raise FailedError(f"{job_id} is not in {queue}: nothing to cancel")
            return answer

    answer = asyncio.run(ask())
    if answer is Cancelling.FINISHED:
        raise FailedError(f"{job_id} of {queue} has ended already; see: platform job {queue} {job_id}")
    if as_json:
        print_json({"queue": queue, "id": job_id, "cancelled": True})
    else:
        print(f"cancelling {job_id} of {queue}")
