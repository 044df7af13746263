"""What purging shares: which messages go, and freeing their ids in the ledger. It asks nobody and prints nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from handrail.adapter import Adapter, Capability, State
from handrail.config.model import Settings

#: Messages that are looked at together, bodies and all.
PAGE = 500
#: Messages looked at before a purge, where looking is free, and where the broker hands them out for it.
LOOKED_AT, LOOKED_AT_DEARLY = 100_000, 10_000


async def chosen_ids(adapter: Adapter, queue: str, state: State) -> list[str]:
    """Ids that their senders chose, of what stands in *state*: those that the ledger may hold. Of the first many only."""
    most = LOOKED_AT if adapter.capabilities.get(Capability.PEEK) is True else LOOKED_AT_DEARLY
    found: list[str] = []
    for offset in range(0, most, PAGE):
        page = await adapter.peek(queue, state, PAGE, offset)
        found += [each.id for each in page if each.send]
        if len(page) < PAGE:
            break
    return found


async def forget(settings: Settings, queue: str, ids: Sequence[str], *, ended: bool) -> None:
    """Free *ids* of deleted messages, so that new ones may have them; those of jobs that have ended only if *ended*."""
    if not ids or settings.ledger is None:
        return
    from handrail.ledger import open_ledger  # noqa: PLC0415 - it brings the database

    ledger = open_ledger(settings)
    if ledger is None:
        return
    await ledger.open()
    try:
        for start in range(0, len(ids), PAGE):
            some = ids[start : start + PAGE]
            if not ended:
                # one that a worker took between the look and the purge has run, and keeps its id
                records = await asyncio.gather(*(ledger.get(queue, each) for each in some))
                some = [each.id for each in records if each is not None and not each.final]
            await ledger.forget(queue, some)
    finally:
        await ledger.close()
