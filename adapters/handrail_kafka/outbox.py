"""Where messages go: to the topic of their queue and priority, or among the delays until they are due.

It makes topics that are missing, checks sizes, and tells the fate of each message.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from aiokafka import errors

from handrail.errors import BrokerError, SendError, SendTimeoutError, TooLargeError
from handrail.message import Message
from handrail_kafka import faults, wire
from handrail_kafka.cluster import TOPIC_BATCH, Cluster
from handrail_kafka.names import Names
from handrail_kafka.producer import Call, Entry, Producer


class Outbox:
    """All messages on their way to one cluster."""

    def __init__(self, cluster: Cluster, names: Names, producer: Producer, created: Callable[[], None]) -> None:
        self._cluster = cluster
        self._names = names
        self._producer = producer
        self._created = created
        self._tiers = names.tiers()
        #: Partitions to give a queue's topics, where it was declared otherwise than by default.
        self.partitions: dict[str, tuple[int, int | None]] = {}
        #: How many wait until each topic is there. Who comes later goes after them, even if it is there by then.
        self._awaited: Counter[str] = Counter()
        self._turn = asyncio.Lock()

    async def publish(
        self,
        messages: Sequence[Message],
        timeout: float,
        trouble: Callable[[], str],
        *,
        dead: str | None = None,
        most: int = TOPIC_BATCH,
    ) -> dict[int, SendError]:
        """Publish; *dead* names the place where these go as dead letters, *most* bytes are what one may take at all."""
        if not messages:
            return {}
        call = Call(len(messages))
        until = time.monotonic() + timeout
        now = time.time()
        placed: list[tuple[str, Entry]] = []
        topics: dict[str, str] = {}
        for index, message in enumerate(messages):
            if dead is not None:
                topic, target, queue = self._names.queue(dead), "", dead
            elif message.due is not None and message.due > now:
                topic, target, queue = self._names.tier_for(message.due - now), message.queue, ""
            else:
                topic, target, queue = self._names.level(message.queue, message.priority), "", message.queue
            try:
                key = wire.key_of(message)
                headers = wire.headers_of(message, target)
            except (UnicodeEncodeError, TypeError, ValueError) as error:
                call.settle(index, SendError(f"a header cannot be written: {error}"))
                continue
            size = wire.size_of(key, message.body, headers)
            if size > most:
                text = (
                    f"{size:,} bytes with its headers, and a record on Kafka may take {most:,}; send a reference to it"
                )
                call.settle(index, TooLargeError(text))
                continue
            topics[topic] = queue
            placed.append((topic, Entry(call, index, key, wire.value_of(message), headers, int(now * 1000))))
        try:
            async with asyncio.timeout(timeout):
                await self._ensure(topics, dead=dead is not None)
        except TimeoutError:
            failure: SendError = SendTimeoutError.after(timeout, self._why(trouble))
            for _topic, entry in placed:
                call.settle(entry.index, failure)
            return call.errors
        except (BrokerError, errors.KafkaError, OSError) as error:
            text = faults.explain(error, self._cluster.place)
            for _topic, entry in placed:
                call.settle(entry.index, SendError(text))
            return call.errors
        for topic, entry in placed:
            self._producer.add(self._producer.partition(topic, entry.key), entry)
        if not call.done.done():
            await asyncio.wait([call.done], timeout=max(0.0, until - time.monotonic()))
        if not call.done.done():
            call.abandoned = True
            failure = SendTimeoutError.after(timeout, self._why(trouble))
            told = dict(call.errors)
            for _topic, entry in placed:
                if entry.index not in call.known:
                    told[entry.index] = failure
            return told
        return call.errors

    def _why(self, trouble: Callable[[], str]) -> str:
        return trouble() or f"{self._cluster.place}: the server does not answer"

    async def _ensure(self, topics: dict[str, str], *, dead: bool) -> None:
        known = self._cluster.partitions
        if all(topic in known and not self._awaited[topic] for topic in topics):
            return
        self._awaited.update(topics.keys())
        try:
            async with self._turn:
                while not self._cluster.connected:
                    await asyncio.sleep(0.05)
                for topic, queue in topics.items():
                    if topic not in self._cluster.partitions:
                        await self._make(topic, queue, dead=dead)
        finally:
            self._awaited.subtract(topics.keys())

    async def _make(self, topic: str, queue: str, *, dead: bool) -> None:
        options = self._cluster.options
        if topic in self._tiers:
            wanted, replication = 1, options.replication
        else:
            wanted, replication = self.partitions.get(queue, (options.partitions, options.replication))
        roomy = {topic} if dead or topic in self._tiers else ()
        if await self._cluster.create({topic: wanted}, replication, roomy=roomy):
            self._created()
