"""What is settled waits for nothing but itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from handrail.adapter import Delivery, Settlement, Verb
from handrail.config.model import QueueSettings
from handrail.dispatcher import verdict
from handrail.dispatcher.settler import Judged, Settler
from handrail.message import Message

QUEUE = QueueSettings(name="work", handler=None)


class Blocked:
    """As much of an adapter as a settler sees: its broker acknowledges, and stores nothing for now."""

    place = "here"

    def __init__(self) -> None:
        self.flowing = asyncio.Event()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        if any(one.verb is not Verb.ACK for one in settlements):
            await self.flowing.wait()
        return []


def judged(name: str, ruling: verdict.Verdict) -> Judged:
    return Judged(Delivery(Message(queue="work", id=name, body=b""), None), QUEUE, ruling)


async def test_what_is_done_waits_for_nothing_that_must_be_moved() -> None:
    """Of outcomes that come together, those that the broker can take are told, while the others wait for it."""
    told: list[str] = []
    adapter: Any = Blocked()
    settler = Settler(adapter, lambda one, _refused: told.append(one.delivery.message.id))

    settler.add(judged("retried", verdict.later(Message(queue="work", id="x", body=b""), QUEUE, 0.0, 1.0)))
    settler.add(judged("done", verdict.COMPLETED))
    await asyncio.sleep(0.05)
    assert told == ["done"]
    assert settler.busy

    adapter.flowing.set()
    async with asyncio.timeout(10):
        await settler.flushed()
    assert told == ["done", "retried"]
    assert not settler.busy
