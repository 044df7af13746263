"""Questions to the worker that has a partition: none is missed, and none is lost on a worker that does not have it yet."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from handrail.adapter import BrokerSettings
from handrail.errors import BrokerError
from handrail_kafka.cluster import Cluster
from handrail_kafka.control import Control, Note, Question
from handrail_kafka.options import parse
from handrail_kafka.part import Part
from handrail_kafka.producer import Producer
from handrail_kafka.progress import Stand

TP = TopicPartition("work", 0)

Handle = Callable[[Question], Awaitable[None]]


async def nothing() -> None:
    pass


class Site:
    """A worker that listens, and somebody who asks it, on a topic of their own."""

    def __init__(self, cluster: Cluster, producer: Producer) -> None:
        self.topic = f"c{uuid.uuid4().hex}"
        self.parts: list[Part] = []
        self.part = Part(SimpleNamespace(touched=lambda: None, committed=nothing), TP, Stand(0), 0)  # type: ignore[arg-type]
        self.part.tracker.receive(range(5))
        self.worker = Control(cluster, self.topic, producer, lambda: self.parts)
        self.asker = Control(cluster, self.topic, producer, list)

    def handle(self, handled: Callable[[Handle, Question], Awaitable[None]]) -> None:
        """Have the worker handle each question by *handled*, which is given what it does by itself."""
        by_itself = self.worker._handle
        self.worker._handle = lambda question: handled(by_itself, question)  # type: ignore[method-assign,assignment,return-value]


@pytest.fixture
def opened(kafka: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("handrail_kafka.control.PATIENCE", 40.0)

    @asynccontextmanager
    async def site() -> AsyncIterator[Site]:
        cluster = Cluster(parse(BrokerSettings("default", kafka, "/")), kafka)
        await cluster.connect()
        producer = Producer(cluster, lambda _error: None)
        found = Site(cluster, producer)
        try:
            await cluster.create({found.topic: 1}, None, passing=True)
            found.worker.look()
            yield found
        finally:
            await found.worker.stop()
            await producer.close()
            await cluster.close()

    return site


async def test_a_question_that_comes_while_a_worker_begins_to_listen_is_heard(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written between its two looks at the topic is not passed over."""
    async with opened() as site:
        question = Question("one", "work", 0, [1], time.time())
        by_time = AIOKafkaConsumer.offsets_for_times

        async def asked_meanwhile(consumer: Any, times: Any) -> Any:
            found = await by_time(consumer, times)
            await site.asker._write(Note(question=question))
            return found

        monkeypatch.setattr(AIOKafkaConsumer, "offsets_for_times", asked_meanwhile)
        listening = site.asker._notes(time.time() - 1.0)
        try:
            async with asyncio.timeout(30):
                async for found in listening:
                    if "one" in str(found):
                        break
        finally:
            await listening.aclose()


async def test_a_worker_that_gets_the_partition_a_moment_later_is_asked_again(opened: Any) -> None:
    """A question that was read before anybody had the partition has its answer all the same."""
    async with opened() as site:
        read: list[Question] = []

        async def handled(by_itself: Handle, question: Question) -> None:
            read.append(question)  # first, for whoever asked may hear the answer before we hear that it is written
            await by_itself(question)
            site.parts = [site.part]

        site.handle(handled)
        site.part.held[1] = None

        assert await site.asker.ask({TP: [0, 1, 2]}) == 2

        assert len(read) >= 2
        assert [site.part.tracker.is_finished(at) for at in range(4)] == [True, False, True, False]


async def test_who_is_asked_twice_answers_the_same_and_counts_once(opened: Any) -> None:
    """A question may be read again when it is answered already: that changes neither what is finished nor the count."""
    async with opened() as site:
        site.parts = [site.part]

        async def handled(by_itself: Handle, question: Question) -> None:
            await by_itself(question)
            await by_itself(question)

        site.handle(handled)

        assert await site.asker.ask({TP: [0, 2]}) == 2
        marks = site.part.marks
        assert await site.asker.ask({TP: [0, 2]}) == 2
        assert site.part.marks == marks == 2


async def test_a_listener_survives_an_answer_that_cannot_be_sent(opened: Any) -> None:
    """The next question is answered."""
    async with opened() as site:
        site.parts = [site.part]
        refused: list[Question] = []

        async def handled(by_itself: Handle, question: Question) -> None:
            if not refused:
                refused.append(question)
                raise BrokerError("the answer cannot be sent")
            await by_itself(question)

        site.handle(handled)

        assert await site.asker.ask({TP: [0]}) == 1
        assert refused
