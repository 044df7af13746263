"""The forwarder: it takes messages out of the delays when they fall due, or on to a shorter delay.

Each tier is a topic in which every message waits the same time, so that its head is always the next to leave and nothing
blocks behind a longer delay. What is due within a few seconds is held here, unfinished, and sent at its moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable

from aiokafka import ConsumerRecord, errors

from handrail.logger import get_logger
from handrail_kafka import wire
from handrail_kafka.cluster import ROOMY_BATCH, Cluster
from handrail_kafka.deaths import Deaths
from handrail_kafka.names import Names
from handrail_kafka.outbox import Outbox
from handrail_kafka.part import Part
from handrail_kafka.reader import Reader
from handrail_kafka.register import Register

log = get_logger("handrail.kafka")

#: Seconds before its moment at which a message is taken in hand.
HORIZON = 2.0
#: Messages that one forwarder holds at most.
HOLD = 20_000
#: Seconds between two looks for tiers that others have made.
LOOK_EVERY = 2.0
#: Seconds that what is on its way gets to be known as stored when this ends.
STOP_PATIENCE = 10.0
#: Seconds without a turn after which this process may have stood still, and what is held here be another's by now; and seconds
#: for the group to say so at most.
STOOD_STILL, HEARING = 4.0, 10.0


class Forwarder:
    """This worker's part in moving delayed messages on. Implements the reader's owner."""

    def __init__(
        self,
        cluster: Cluster,
        register: Register,
        names: Names,
        outbox: Outbox,
        deaths: Deaths,
        trouble: Callable[[], str],
    ) -> None:
        self._register = register
        self._deaths = deaths
        self._cluster = cluster
        self._names = names
        self._outbox = outbox
        self._trouble = trouble
        self._tiers = names.tiers()
        self.reader: Reader | None = None
        self._heap: list[tuple[float, int, Part, ConsumerRecord]] = []
        self._number = 0
        #: Unix time before which a partition's next record cannot be due.
        self._not_before: dict[Part, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        #: Why the last messages could not be moved on, or nothing.
        self._said = ""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self.look()

    async def stop(self) -> None:
        self._closing = True
        self._wake.set()
        if self._task is not None:
            # what is sent and not marked would be sent again by the next worker
            await asyncio.wait([self._task], timeout=STOP_PATIENCE)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.reader is not None:
            for part in self.reader.parts.values():
                part.held.clear()
            await self.reader.stop()

    def look(self) -> None:
        """Serve the tiers that there are."""
        topics = [topic for topic in self._tiers if topic in self._cluster.partitions]
        if not topics:
            return
        if self.reader is None:
            self.reader = Reader(self._cluster, self._register, self._names.delay_group, topics, self, "earliest", 1.0)
            self.reader.start()
        else:
            self.reader.subscribe(topics)

    # --- the reader's owner -------------------------------------------------------------------------------------------

    #: Moving a message on runs no user code: nobody's crash is its fault.
    board = ""

    def bereaved(self, part: Part, board: str, below: int) -> None:
        pass

    def member(self, group: str, name: str) -> None:
        self._deaths.member(group, name)

    def take(self, part: Part, records: list[ConsumerRecord]) -> None:
        tier = self._tiers.get(part.tp.topic, 0)
        now = time.time()
        for record in records:
            leaves = self._push(part, record, now)
            if tier > 2 and leaves > now + HORIZON:
                self._not_before[part] = leaves - HORIZON
        self._wake.set()

    def _push(self, part: Part, record: ConsumerRecord, now: float) -> float:
        """Have *record* moved on at its moment; returns when it leaves its tier."""
        tier = self._tiers.get(part.tp.topic, 0)
        # the shortest tier is held here to the very moment; a longer one is left as soon as a shorter one does
        leaves = now if tier <= 2 else record.timestamp / 1000 + tier
        due = wire.due_of(record)
        self._number += 1
        heapq.heappush(self._heap, (due if due <= leaves + 2 * HORIZON else leaves, self._number, part, record))
        return leaves

    def wants(self, part: Part) -> bool:
        return len(self._heap) < HOLD and self._not_before.get(part, 0.0) <= time.time()

    #: There is always something else that could be moved on.
    roomy = True

    def withhold(self, parts: list[Part]) -> None:
        pass  # `_move` passes over them

    def restore(self, parts: list[Part]) -> None:
        for part in parts:
            for record in part.parked:
                self._push(part, record, time.time())
            part.parked = []
        self._wake.set()

    def lose(self, parts: list[Part]) -> None:
        gone = set(map(id, parts))
        self._heap = [one for one in self._heap if id(one[2]) not in gone]
        heapq.heapify(self._heap)
        for part in parts:
            self._not_before.pop(part, None)

    def resumed(self) -> None:
        self._wake.set()

    def refused(self, text: str) -> None:
        log.error("delayed messages are not moved on by this worker", reason=text)

    # --- moving on ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        look_at = 0.0
        sure_until = time.monotonic() + STOOD_STILL
        while not self._closing:
            self._wake.clear()
            # what may be another's in a moment is not begun
            idle = not self._heap or self.reader is None or self.reader.rebalancing
            wait = LOOK_EVERY if idle else min(LOOK_EVERY, self._heap[0][0] - time.time())
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
            if time.monotonic() > look_at:
                look_at = time.monotonic() + LOOK_EVERY
                with contextlib.suppress(errors.KafkaError, OSError):
                    await self._cluster.refresh()
                    self.look()
            while self.reader is not None and time.monotonic() > sure_until:
                sure_until = time.monotonic() + STOOD_STILL
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARING):
                        await self.reader.catch_up()
            if self.reader is not None and not self.reader.rebalancing and not self._closing:
                await self._move()
            sure_until = time.monotonic() + STOOD_STILL

    async def _move(self) -> None:
        now = time.time()
        batch: list[tuple[Part, ConsumerRecord]] = []
        while self._heap and self._heap[0][0] <= now and len(batch) < 2000:
            _at, _number, part, record = heapq.heappop(self._heap)
            if part.draining:
                part.parked.append(record)
            elif not part.lost and not part.tracker.is_finished(record.offset):
                batch.append((part, record))
        if not batch:
            return
        messages = []
        kept = []
        for part, record in batch:
            target = wire.target_of(record)
            if not target:
                log.warning(
                    "a record among the delays names no queue; it is left out",
                    topic=part.tp.topic,
                    partition=part.tp.partition,
                    offset=record.offset,
                )
                part.finish(record.offset)
                continue
            messages.append(wire.message_of(record, target, part.tp))
            kept.append((part, record))
            part.held[record.offset] = record
        failed = await self._outbox.publish(messages, 30.0, self._trouble, most=ROOMY_BATCH) if messages else {}
        for index, (part, record) in enumerate(kept):
            part.held.pop(record.offset, None)
            if index in failed:
                if not part.lost:
                    self._number += 1
                    heapq.heappush(self._heap, (time.time() + 1.0, self._number, part, record))
            elif not part.lost:
                part.finish(record.offset)
        reason = str(next(iter(failed.values()))) if failed else ""
        if reason and reason != self._said:
            log.warning("delayed messages could not be moved on yet", messages=len(failed), reason=reason)
        self._said = reason
        if self.reader is not None:
            self.reader.touched()
            self.reader.poke()
