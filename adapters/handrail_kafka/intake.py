"""One queue in this worker: its levels of priority, what was fetched of each, and how much may be in the worker's hands.

It decides which message comes next; what becomes of it is decided elsewhere. The subscriber is called in a turn of the loop
of its own, never within a call that it makes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable

from aiokafka import ConsumerRecord

from handrail.adapter import Deliver, Delivery, Lost, QueueSpec, Recall
from handrail.errors import BrokerError
from handrail.logger import get_logger
from handrail.message import DEFAULT_PRIORITY, Message
from handrail_kafka import wire
from handrail_kafka.cluster import Cluster
from handrail_kafka.deaths import Deaths, Left
from handrail_kafka.options import TopicOptions
from handrail_kafka.part import Part
from handrail_kafka.progress import MOST_COUNTS, Counts
from handrail_kafka.reader import Reader
from handrail_kafka.register import Register

log = get_logger("handrail.kafka")

#: Seconds to join the groups of all levels, at most, before the first message is chosen.
JOINED = 5.0
#: Records that are fetched ahead of the credit, at least: one round trip's worth for a fast handler.
AHEAD = 500
#: Deliveries that cross to the other loop at once.
BATCH = 1000


class Tag:
    """The adapter's handle of one delivery."""

    __slots__ = ("alive", "level", "offset", "part", "record")

    def __init__(self, level: Level, part: Part, record: ConsumerRecord) -> None:
        self.level = level
        self.part = part
        self.offset: int = record.offset
        self.record = record
        #: Not settled yet.
        self.alive = True


def counts_of(message: Message) -> Counts:
    """What of *message* changes while it lies in its place."""
    due = 0 if message.due is None else math.ceil(message.due * 1000)
    return message.attempts, message.starts, message.crashes, due


def put_counts(message: Message, counts: Counts) -> None:
    message.attempts, message.starts, message.crashes, due = counts
    if due:
        message.due = due / 1000


class Level:
    """One topic of the queue: the messages of some priorities. Implements the reader's owner."""

    def __init__(self, intake: Intake, rank: int) -> None:
        self.intake = intake
        self.rank = rank
        self.reader: Reader | None = None
        #: Why the cluster does not let us read it, in one line, or nothing.
        self.refusal = ""
        #: Fetched and not delivered, by priority, best first; the default's level holds one priority alone.
        self._pending: dict[int, deque[tuple[Part, ConsumerRecord]]] = {}
        self.waiting = 0
        #: Released, to be delivered before what is pending.
        self.returned: list[tuple[int, int, Part, ConsumerRecord]] = []

    @property
    def board(self) -> str:
        return self.intake.deaths.board

    def bereaved(self, part: Part, board: str, below: int) -> None:
        left = self.intake.deaths.left(board, self.intake.spec.name, below)
        if left is not None:
            part.left.append(left)

    def member(self, group: str, name: str) -> None:
        self.intake.deaths.member(group, name)

    def take(self, part: Part, records: list[ConsumerRecord]) -> None:
        self.waiting += len(records)
        if self.rank == DEFAULT_PRIORITY:
            self._lane(DEFAULT_PRIORITY).extend(zip(itertools.repeat(part), records, strict=False))
        else:
            for record in records:
                self._lane(wire.priority_of(record)).append((part, record))
        self.intake.pump()

    def _lane(self, priority: int) -> deque[tuple[Part, ConsumerRecord]]:
        lane = self._pending.get(priority)
        if lane is None:
            lane = deque()
            self._pending = dict(sorted([*self._pending.items(), (priority, lane)], reverse=True))
        return lane

    def wants(self, part: Part) -> bool:  # noqa: ARG002 - all partitions are equal here
        intake = self.intake
        return intake.attached and not intake.paused and self.waiting < max(intake.credit, AHEAD)

    @property
    def roomy(self) -> bool:
        return self.intake.credit > self.intake.held

    def withhold(self, parts: list[Part]) -> None:
        self.intake.recall([delivery for part in parts for delivery in part.held.values()])

    def restore(self, parts: list[Part]) -> None:
        for part in parts:
            parked, part.parked = part.parked, []
            for record in parked:
                heapq.heappush(self.returned, (record.offset, id(record), part, record))
        self.intake.later()

    def lose(self, parts: list[Part]) -> None:
        gone = set(map(id, parts))
        for priority, lane in self._pending.items():
            self._pending[priority] = deque(one for one in lane if id(one[0]) not in gone)
        self.waiting = sum(map(len, self._pending.values()))
        self.returned = [one for one in self.returned if id(one[2]) not in gone]
        heapq.heapify(self.returned)
        self.intake.lose(parts)

    def resumed(self) -> None:
        self.intake.pump()

    def refused(self, text: str) -> None:
        self.refusal = text
        if self.intake.ready:  # a level that came into being later
            log.error(text, queue=self.intake.spec.name)

    def next(self) -> tuple[Part, ConsumerRecord] | None:
        while self.returned:
            _offset, _number, part, record = heapq.heappop(self.returned)
            if part.draining:
                part.parked.append(record)
            elif not part.lost and not part.tracker.is_finished(record.offset):
                return part, record
        newest = self.intake.spec.order == "lifo"
        for lane in self._pending.values():
            while lane:
                part, record = lane.pop() if newest else lane.popleft()
                self.waiting -= 1
                if part.draining:
                    part.parked.append(record)
                elif not part.lost and not part.tracker.is_finished(record.offset):
                    return part, record
        return None


class Intake:
    """A queue's messages on their way to one subscriber."""

    def __init__(
        self,
        cluster: Cluster,
        register: Register,
        spec: QueueSpec,
        options: TopicOptions,
        levels: dict[int, str],
        deaths: Deaths,
    ) -> None:
        self._cluster = cluster
        self._register = register
        self.deaths = deaths
        self.spec = spec
        self.options = options
        self._loop = asyncio.get_running_loop()
        #: Topics by the lowest priority in them, best first.
        self._topics = dict(sorted(levels.items(), reverse=True))
        self.levels: list[Level] = []
        self.credit = 0
        self.held = 0
        self.paused = False
        self.attached = False
        self.ready = False
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None
        self._recall: Recall | None = None
        self._waiting: list[Delivery] = []  # came while paused
        self._pumping = False
        self._give_back: Callable[[list[Delivery]], None] = lambda _deliveries: None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def attach(
        self,
        credit: int,
        deliver: Deliver,
        lost: Lost,
        recall: Recall | None,
        give_back: Callable[[list[Delivery]], None],
    ) -> None:
        """Raises :class:`BrokerError` when the cluster will not have us read; then nothing is read."""
        self._deliver, self._lost, self._recall, self._give_back = deliver, lost, recall, give_back
        self.credit = credit
        self.paused = False
        self.attached = True
        if not self.ready:
            await self.look()
            # the best come first only if all levels are there when the first one is chosen
            await asyncio.gather(*(level.reader.settled_start(JOINED) for level in self.levels if level.reader))
            if refusal := next((level.refusal for level in self.levels if level.refusal), ""):
                await self.stop()
                raise BrokerError(refusal)
            self.ready = True
        self.pump()
        self.poke()

    async def look(self) -> None:
        """Read levels that have come into being."""
        known = {level.rank for level in self.levels}
        for rank, topic in self._topics.items():
            if rank not in known and topic in self._cluster.partitions:
                level = Level(self, rank)
                level.reader = Reader(
                    self._cluster,
                    self._register,
                    topic,
                    [topic],
                    level,
                    self.options.on_lost_position,
                    self._cluster.options.revoke_wait,
                )
                self.levels.append(level)
                self.levels.sort(key=lambda one: -one.rank)
                level.reader.start()

    async def stop(self) -> None:
        self.attached = False
        await asyncio.gather(*(level.reader.stop() for level in self.levels if level.reader))

    def poke(self) -> None:
        for level in self.levels:
            if level.reader is not None:
                level.reader.poke()

    @property
    def ordered(self) -> bool:
        """Whether messages of a sequence must keep their places, come what may."""
        return self.spec.order in ("key", "partition")

    @property
    def trouble(self) -> str:
        return next((level.reader.trouble for level in self.levels if level.reader and level.reader.trouble), "")

    # --- flow ---------------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Deliver as much as the credit allows, best priority first."""
        if not self.attached or self.paused or not self.ready:
            return
        overdue = sum(level.reader.overdue for level in self.levels if level.reader)
        free = min(self.credit - self.held - overdue, BATCH)
        if free <= 0:
            return
        batch: list[Delivery] = []
        name = self.spec.name
        for level in self.levels:
            if level.reader is None or level.reader.rebalancing:
                continue  # what a part may lose in a moment is not begun
            changed = False
            while free > 0 and (found := level.next()) is not None:
                part, record = found
                message = wire.message_of(record, name, part.tp)
                if part.counts and record.offset in part.counts:
                    put_counts(message, part.counts[record.offset])
                if part.left and any(self._was_done(part, left, record, message) for left in part.left):
                    continue
                delivery = Delivery(message, Tag(level, part, record))
                if self.ordered:
                    delivery.sequence = part.tp if self.spec.order == "partition" else record.key
                part.held[record.offset] = delivery
                batch.append(delivery)
                free -= 1
                changed = True
            if changed:
                level.reader.held_changed()
                if level.waiting < max(self.credit, AHEAD) // 2:
                    level.reader.poke()
        if batch:
            self.held += len(batch)
            self._loop.call_soon(self.arrive, batch)
            if self.credit > self.held:
                self._loop.call_soon(self.pump)

    def _was_done(self, part: Part, left: Left, record: ConsumerRecord, message: Message) -> bool:
        """Whether the worker that died had completed it; if it was running it then, that counts as a crash."""
        if record.offset >= left.below:
            return False
        crashes = left.running.pop(message.id, None)
        if crashes is not None:
            message.crashes = max(message.crashes, crashes + 1)
            if len(part.counts) < MOST_COUNTS or self.ordered:
                part.counts[record.offset] = counts_of(message)
                part.dirty = True
        # an id that a stranger chose may be that of another message too
        elif (message.id, message.send) in left.completed and (
            message.unique or message.id == wire.position_id(record, part.tp)
        ):
            left.completed.discard((message.id, message.send))
            part.finish(record.offset)
            part.reader.touched()
            return True
        return False

    def settled(self, count: int) -> None:
        """*count* deliveries are no longer in hand."""
        self.held -= count

    def put_back(self, tag: Tag) -> None:
        """It comes again, before what waits."""
        heapq.heappush(tag.level.returned, (tag.offset, id(tag), tag.part, tag.record))

    def recall(self, deliveries: list[Delivery]) -> None:
        """Have those of *deliveries* back that are not begun."""
        gone = set(map(id, deliveries))
        if back := [one for one in self._waiting if id(one) in gone]:
            self._waiting = [one for one in self._waiting if id(one) not in gone]
            self._give_back(back)
        if deliveries and self.attached and self._recall is not None:
            self._recall(deliveries)

    def lose(self, parts: list[Part]) -> None:
        lost: list[Delivery] = []
        for part in parts:
            for delivery in part.held.values():
                delivery.tag.alive = False
                lost.append(delivery)
        if lost:
            self.held -= len(lost)
            self._loop.call_soon(self._tell_lost, lost)

    def later(self) -> None:
        """Pump in this turn of the loop, once however often it is asked for."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._pumping = False
        self.pump()
        self.poke()

    # --- to the subscriber --------------------------------------------------------------------------------------------

    def arrive(self, batch: list[Delivery]) -> None:
        if not self.attached:
            self._give_back(batch)
        elif self.paused:
            self._waiting += batch
        elif self._deliver is not None:
            self._deliver(batch)

    def take_waiting(self) -> list[Delivery]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _tell_lost(self, lost: list[Delivery]) -> None:
        gone = set(map(id, lost))
        self._waiting = [one for one in self._waiting if id(one) not in gone]
        if self._lost is not None:
            self._lost(lost)
