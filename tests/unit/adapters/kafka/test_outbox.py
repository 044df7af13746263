"""The order of what is sent to a topic that is not there yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from handrail.message import Message
from handrail_kafka.names import Names
from handrail_kafka.outbox import Outbox


class Cluster:
    """One that makes a topic when it is told to, and is known to have it some turns of the loop before it says so."""

    place = "kafka://nowhere"
    options = SimpleNamespace(partitions=1, replication=None)
    connected = True

    def __init__(self) -> None:
        self.partitions: dict[str, int] = {}
        self.known, self.made = asyncio.Event(), asyncio.Event()
        self._creating = asyncio.Lock()

    async def create(self, topics: dict[str, int], *_rest: Any, **_options: Any) -> list[str]:
        async with self._creating:
            if all(topic in self.partitions for topic in topics):
                return []
            await self.known.wait()
            self.partitions.update(topics)
            await self.made.wait()
            return list(topics)


async def test_what_is_sent_to_a_new_topic_keeps_its_order() -> None:
    """Sends that wait for their topic go first, however late the others began to find it there."""
    order: list[bytes | None] = []
    lanes: Any = SimpleNamespace(partition=lambda topic, _key: TopicPartition(topic, 0))

    def add(_tp: TopicPartition, entry: Any) -> None:
        order.append(entry.value)
        entry.call.settle(entry.index, None)

    lanes.add = add
    cluster = Cluster()
    outbox = Outbox(cluster, Names(""), lanes, lambda: None)  # type: ignore[arg-type]
    sends: list[asyncio.Task[Any]] = []

    def send() -> None:
        message = Message(queue="work", id="1", body=b"%d" % len(sends))
        sends.append(asyncio.create_task(outbox.publish([message], 30.0, lambda: "")))

    async def turn() -> None:
        send()
        await asyncio.sleep(0)

    for _ in range(10):
        await turn()
    cluster.known.set()
    for _ in range(10):
        await turn()
    assert order == []
    cluster.made.set()
    while not all(one.done() for one in sends):
        if len(sends) < 100:
            send()
        await asyncio.sleep(0)

    assert [one.result() for one in sends] == [{}] * 100
    assert order == [b"%d" % n for n in range(100)]
