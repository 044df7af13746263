"""Asking the worker that has a partition to mark messages as finished: Kafka lets nobody else commit for a group with members.

Questions and answers are records of one small topic, which all workers read without a group and nobody keeps. It decides
nothing: what is in a worker's hands is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition, errors

from handrail.errors import BrokerError
from handrail.logger import get_logger
from handrail_kafka.cluster import Cluster
from handrail_kafka.ending import stop_consumer
from handrail_kafka.part import Part
from handrail_kafka.producer import Producer

log = get_logger("handrail.kafka")

#: Seconds for the workers to answer: one that has never seen the topic looks for it every two.
PATIENCE = 8.0
#: Seconds after which a question without an answer is asked again: whoever read it may not have had the partition yet.
AGAIN = 1.0


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """Finish these offsets of a partition."""

    id: str
    topic: str
    partition: int
    offsets: list[int]
    #: Unix time in seconds; an old question is nobody's any more.
    at: float


class Answer(msgspec.Struct, frozen=True):
    """How many of them are finished now; the others are in somebody's hands."""

    re: str
    topic: str
    partition: int
    marked: int


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record."""

    question: Question | None = None
    answer: Answer | None = None


class Control:
    """This process's part in it."""

    def __init__(self, cluster: Cluster, topic: str, producer: Producer, parts: Callable[[], Iterable[Part]]) -> None:
        self._cluster = cluster
        self._topic = topic
        self._producer = producer
        self._parts = parts
        self._task: asyncio.Task[None] | None = None

    # --- who is asked -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Listen, once there is something to listen to."""
        if self._task is None and self._topic in self._cluster.partitions:
            self._task = asyncio.get_running_loop().create_task(self._listen())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _listen(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(self._notes(time.time() - PATIENCE)) as listening:
                    async for notes in listening:
                        for note in notes:
                            if note.question is not None:
                                await self._handle(note.question)
            except (BrokerError, errors.KafkaError, OSError, TimeoutError) as error:
                log.debug("listening for questions failed", error=repr(error))
            await asyncio.sleep(1.0)

    async def _handle(self, question: Question) -> None:
        tp = TopicPartition(question.topic, question.partition)
        for part in self._parts():
            if part.tp == tp and not part.lost and question.at > time.time() - 2 * PATIENCE:
                marked = 0
                for offset in question.offsets:
                    if offset not in part.held:
                        marked += 1  # also what is finished already: the question may have been asked before
                        if not part.tracker.is_finished(offset):
                            part.finish(offset)
                part.reader.touched()
                await part.reader.committed()
                if not part.lost:
                    await self._write(Note(answer=Answer(question.id, tp.topic, tp.partition, marked)))

    # --- who asks -----------------------------------------------------------------------------------------------------

    async def ask(self, wanted: Mapping[TopicPartition, list[int]]) -> int:
        """Have *wanted* marked by whoever has the partitions; returns how many were. Raises BrokerError without an answer."""
        await self._cluster.create({self._topic: 1}, self._cluster.options.replication, passing=True)
        me = uuid.uuid4().hex
        began = time.time()
        left: dict[tuple[str, TopicPartition], Question] = {}
        for tp, offsets in wanted.items():
            # as many as a record takes with ease
            for start in range(0, len(offsets), 50_000):
                some = offsets[start : start + 50_000]
                left[f"{me}{start}", tp] = Question(f"{me}{start}", tp.topic, tp.partition, some, began)
        await self._put(left.values())
        again = time.monotonic() + AGAIN
        marked = 0
        try:
            async with contextlib.aclosing(self._notes(began - 1.0)) as listening, asyncio.timeout(PATIENCE):
                async for notes in listening:
                    for note in notes:
                        if (answer := note.answer) is None:
                            continue
                        # of several answers to one question the first one counts
                        if left.pop((answer.re, TopicPartition(answer.topic, answer.partition)), None) is not None:
                            marked += answer.marked
                    if not left:
                        break
                    if time.monotonic() >= again:
                        again = time.monotonic() + AGAIN
                        await self._put(left.values())
        except TimeoutError:
            names = ", ".join(sorted({f"{tp.topic}/{tp.partition}" for _id, tp in left}))
            raise BrokerError(
                f"{self._cluster.place}: the worker that reads {names} did not answer within {PATIENCE:g}s; try again"
            ) from None
        return marked

    async def _put(self, questions: Iterable[Question]) -> None:
        for question in questions:
            await self._write(Note(question=question))

    async def _write(self, note: Note) -> None:
        await self._producer.store(self._topic, None, msgspec.json.encode(note))

    async def _notes(self, since: float) -> AsyncGenerator[list[Note], None]:
        """What is written from *since* on (Unix time in seconds), for ever; each second at least, be it nothing."""
        consumer = AIOKafkaConsumer(
            **self._cluster.options.client(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=1000,
        )
        tp = TopicPartition(self._topic, 0)
        try:
            await consumer.start()
            consumer.assign([tp])
            # the end comes first: what is written between the two questions lies beyond it
            end = (await consumer.end_offsets([tp]))[tp]
            at = (await consumer.offsets_for_times({tp: int(since * 1000)}))[tp]
            consumer.seek(tp, at.offset if at is not None else end)
            while True:
                notes = []
                for record in (await consumer.getmany(tp, timeout_ms=1000)).get(tp, ()):
                    with contextlib.suppress(msgspec.DecodeError):
                        notes.append(msgspec.json.decode(record.value or b"", type=Note))
                yield notes
        finally:
            await stop_consumer(consumer)
