"""The forwarder's end: what it has sent it marks, so that nobody sends it again."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka import TopicPartition

from handrail.message import Message
from handrail_kafka import delays, wire
from handrail_kafka.delays import Forwarder
from handrail_kafka.names import Names
from handrail_kafka.part import Part
from handrail_kafka.progress import Stand

NAMES = Names("d-")
TP = TopicPartition(NAMES.tier(2), 0)


@dataclasses.dataclass
class Record:
    offset: int
    key: bytes | None = None
    value: bytes | None = b"{}"
    timestamp: int = 0
    headers: list[tuple[str, Any]] = dataclasses.field(
        default_factory=lambda: wire.headers_of(Message(queue="", id="1", body=b"{}", due=time.time()), "work")
    )


class Outbox:
    """Keeps what is sent on its way until it is let go."""

    def __init__(self) -> None:
        self.sent: list[list[Message]] = []
        self.confirmed = asyncio.Event()

    async def publish(self, messages: list[Message], *_rest: Any, **_options: Any) -> dict[int, Any]:
        self.sent.append(messages)
        await self.confirmed.wait()
        return {}


class Reader:
    """What a forwarder asks of its reader."""

    rebalancing = False

    def __init__(self) -> None:
        self.parts: dict[TopicPartition, Part] = {}
        #: Which of the partition's offsets were finished when it was stopped.
        self.finished: list[bool] = []

    def touched(self) -> None:
        pass

    def poke(self) -> None:
        pass

    async def stop(self) -> None:
        self.finished = [self.parts[TP].tracker.is_finished(at) for at in range(2)]


class Site:
    """A forwarder that is in the midst of sending its first message; a second one is due too."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.reader = Reader()
        cluster: Any = SimpleNamespace(partitions={}, refresh=lambda: asyncio.sleep(0))
        self.forwarder = Forwarder(
            cluster,
            SimpleNamespace(),  # type: ignore[arg-type]
            NAMES,
            self.outbox,  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            lambda: "",
        )
        self.forwarder.reader = self.reader  # type: ignore[assignment]
        self.part = Part(self.reader, TP, Stand(0), 0)  # type: ignore[arg-type]
        self.reader.parts[TP] = self.part

    async def sending(self) -> None:
        self.part.tracker.receive([0, 1])
        self.forwarder.start()
        self.forwarder.take(self.part, [Record(0)])  # type: ignore[list-item]
        async with asyncio.timeout(30):
            while not self.outbox.sent:
                await asyncio.sleep(0)
        self.forwarder.take(self.part, [Record(1)])  # type: ignore[list-item]


async def test_what_is_on_its_way_at_the_end_is_marked_and_no_more_is_begun() -> None:
    """An orderly stop waits for what it sent to be stored: the next worker has nothing of it to send again."""
    site = Site()
    await site.sending()

    stopping = asyncio.create_task(site.forwarder.stop())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not stopping.done()
    site.outbox.confirmed.set()
    async with asyncio.timeout(30):
        await stopping

    assert site.reader.finished == [True, False]
    assert len(site.outbox.sent) == 1


async def test_who_stood_still_moves_nothing_on_before_the_group_has_answered() -> None:
    """What another forwarder has sent meanwhile is lost here by then, and not sent once more."""
    site = Site()
    site.part.tracker.receive([0, 1])
    site.outbox.confirmed.set()
    asked = asyncio.Event()

    async def catch_up() -> None:
        asked.set()
        assert site.outbox.sent == []
        site.part.lost = True
        site.forwarder.lose([site.part])

    site.reader.catch_up = catch_up  # type: ignore[attr-defined]
    site.forwarder.start()
    await asyncio.sleep(0)  # it waits for something to do
    site.forwarder.take(site.part, [Record(0)])  # type: ignore[list-item]
    with mock.patch.object(delays, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 60.0, time=time.time)):
        async with asyncio.timeout(30):
            await asked.wait()
        await site.forwarder.stop()

    assert site.outbox.sent == []


async def test_what_falls_due_at_the_end_is_left_to_the_next_worker() -> None:
    """Nothing is begun once the forwarder is to stop."""
    site = Site()
    site.part.tracker.receive([0, 1])
    site.forwarder.start()
    await asyncio.sleep(0)

    site.forwarder.take(site.part, [Record(0)])  # type: ignore[list-item]
    async with asyncio.timeout(30):
        await site.forwarder.stop()

    assert site.outbox.sent == []


async def test_an_end_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that confirms nothing does not keep a worker from ending; what was sent to it is not marked."""
    monkeypatch.setattr(delays, "STOP_PATIENCE", 0.05)
    site = Site()
    await site.sending()

    async with asyncio.timeout(30):
        await site.forwarder.stop()

    assert site.reader.finished == [False, False]
