"""Looking at what lies in topics and tidying it: depth, peek, purge, replay. It lives on the adapter's own loop.

Where this process reads a partition itself, it knows exactly what is in hand; of other workers only what they committed is
known.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

import msgspec
from aiokafka import ConsumerRecord, TopicPartition, errors

from handrail.adapter import Depth, QueueSpec, State
from handrail.errors import BrokerError
from handrail.message import Message
from handrail_kafka import progress, wire
from handrail_kafka.cluster import ROOMY_BATCH, Cluster
from handrail_kafka.control import Control
from handrail_kafka.intake import Intake, put_counts
from handrail_kafka.names import Names
from handrail_kafka.outbox import Outbox
from handrail_kafka.part import Commit, Part
from handrail_kafka.positions import left_of
from handrail_kafka.progress import Stand, Tracker

#: Delayed messages are counted by reading them, up to so many.
COUNTABLE = 20_000
#: Seconds for a dead letter on its way back to be confirmed.
REPLAY_PATIENCE = 30.0


class View:
    """What is known of one partition: what is finished, what is in hand, where the log ends."""

    __slots__ = ("begin", "end", "held", "part", "stand", "tp", "tracker")

    def __init__(self, tp: TopicPartition, stand: Stand, begin: int, end: int, part: Part | None) -> None:
        self.tp = tp
        self.stand = stand = left_of(stand, begin)
        self.begin = begin
        self.end = end
        self.part = part
        self.tracker = part.tracker if part is not None else Tracker(stand.watermark, stand.beyond)

    def counted(self, message: Message, offset: int) -> Message:
        """*message* with the counts it was given when it was put back where it lies."""
        counts = self.part.counts if self.part is not None else dict(self.stand.counts)
        if offset in counts:
            put_counts(message, counts[offset])
        return message

    @property
    def start(self) -> int:
        return max(self.tracker.watermark, self.begin)

    @property
    def unfinished(self) -> int:
        return max(0, self.end - self.start - self.tracker.beyond().count(1))

    @property
    def held_now(self) -> int:
        return len(self.part.held) if self.part is not None else self.stand.held

    @property
    def commit(self) -> Commit:
        """What is to be committed when more of it was finished by the tracker here."""
        return progress.encode(
            msgspec.structs.replace(
                self.stand,
                watermark=self.tracker.watermark,
                beyond=self.tracker.beyond(),
                counts=tuple(one for one in self.stand.counts if not self.tracker.is_finished(one[0])),
            )
        )

    def waits(self, offset: int) -> bool:
        held = self.part.held if self.part is not None else self.stand.held_at
        return not self.tracker.is_finished(offset) and offset not in held


class Shelf:
    """All that is not delivering and settling."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        outbox: Outbox,
        intakes: dict[str, Intake],
        specs: dict[str, QueueSpec],
        parts: Callable[[], Iterable[Part]],
        control: Control,
    ) -> None:
        self._control = control
        self._cluster = cluster
        self._names = names
        self._outbox = outbox
        self._intakes = intakes
        self._specs = specs
        self._parts = parts

    async def _views(self, topics: Sequence[str], group: str | None = None) -> list[View]:
        """*group* is the topic's own name unless given."""
        found = []
        own = {part.tp: part for part in self._parts() if not part.lost}
        for topic in topics:
            if topic not in self._cluster.partitions:
                continue
            tps = self._cluster.tps(topic)
            stands = await self._cluster.stands(group or topic, tps)
            begins, ends = await self._cluster.begins(tps), await self._cluster.ends(tps)
            for tp in tps:
                stand = stands[tp] or Stand(begins[tp])
                if stand.watermark > ends[tp]:
                    stand = Stand(begins[tp], ours=stand.ours)
                found.append(View(tp, stand, begins[tp], ends[tp], own.get(tp)))
        return found

    def _levels(self, queue: str) -> list[str]:
        return [topic for _low, topic in sorted(self._names.levels(queue).items(), reverse=True)]

    def _dead(self, queue: str) -> str | None:
        spec = self._specs.get(queue)
        return spec.dead_letter if spec is not None else f"{queue}.dead"

    async def _records(self, views: Sequence[View]) -> list[tuple[View, ConsumerRecord]]:
        by_tp = {view.tp: view for view in views}
        found: list[tuple[View, ConsumerRecord]] = []
        async for batch in self._cluster.read({view.tp: (view.start, view.end) for view in views}):
            for record in batch:
                view = by_tp[TopicPartition(record.topic, record.partition)]
                if view.waits(record.offset):
                    found.append((view, record))
        return found

    async def _delayed(self, queue: str) -> list[tuple[View, ConsumerRecord]]:
        views = await self._views(list(self._names.tiers()), self._names.delay_group)
        # the forwarder holds what is due soon, which is delayed all the same
        found = await self._records([_Open(view) for view in views])
        found = [one for one in found if wire.target_of(one[1]) == queue]
        return sorted(found, key=lambda one: wire.due_of(one[1]))

    # --- the port -----------------------------------------------------------------------------------------------------

    async def depth(self, queue: str) -> Depth:
        await self._cluster.refresh()
        views = await self._views(self._levels(queue))
        active = sum(min(view.held_now, view.unfinished) for view in views)
        ready = sum(view.unfinished for view in views) - active
        tiers = await self._views(list(self._names.tiers()), self._names.delay_group)
        delayed: int | None = None
        if sum(view.unfinished for view in tiers) <= COUNTABLE:
            delayed = len(await self._delayed(queue))
        dead = self._dead(queue)
        letters = 0
        if dead is not None:
            letters = sum(view.unfinished for view in await self._views([self._names.queue(dead)]))
        return Depth(ready=ready, delayed=delayed, active=active, dead=letters)

    async def messages(self, queue: str, state: State, enough: int) -> list[Message]:
        """At least *enough* messages of *state*, in their order, if there are so many."""
        await self._cluster.refresh()
        if state == "active":
            intake = self._intakes.get(queue)
            if intake is None:
                return []
            parts = [part for level in intake.levels if level.reader for part in level.reader.parts.values()]
            return [delivery.message for part in parts for delivery in part.held.values()]
        if state == "dead":
            dead = self._dead(queue)
            if dead is None:
                return []
            found = await self._records(await self._views([self._names.queue(dead)]))
            found.sort(key=lambda one: (one[1].timestamp, one[1].offset), reverse=True)
            return [_letter(record, queue) for _view, record in found]
        if state == "delayed":
            return [wire.message_of(record, queue, record) for _view, record in await self._delayed(queue)]
        messages: list[Message] = []
        for topic in self._levels(queue):
            views = await self._views([topic])
            # by time, each partition's own order kept
            lists: dict[TopicPartition, list[tuple[View, ConsumerRecord]]] = {}
            for view, record in await self._records([_head(view, enough) for view in views]):
                lists.setdefault(view.tp, []).append((view, record))
            merged = heapq.merge(
                *(lists[tp] for tp in sorted(lists)), key=lambda one: (one[1].timestamp, wire.sent_at_of(one[1]))
            )
            level = [view.counted(wire.message_of(record, queue, record), record.offset) for view, record in merged]
            messages += sorted(level, key=lambda message: -message.priority)
            if len(messages) >= enough:
                break
        return messages

    async def purge(self, queue: str, state: State, ids: Sequence[str] | None) -> int:
        await self._cluster.refresh()
        wanted = None if ids is None else set(ids)
        if state == "active":
            return 0
        if state == "delayed":
            found = await self._delayed(queue)
            return await self._finish(
                [(view, record) for view, record in found if wanted is None or _id(record) in wanted],
                self._names.delay_group,
            )
        if state == "dead":
            dead = self._dead(queue)
            if dead is None:
                return 0
            topics = [self._names.queue(dead)]
        else:
            topics = self._levels(queue)
        count = 0
        for topic in topics:
            found = await self._records(await self._views([topic]))
            chosen = [(view, record) for view, record in found if wanted is None or _id(record) in wanted]
            count += await self._finish(chosen, topic)
        return count

    async def replay(self, queue: str, ids: Sequence[str] | None) -> int:
        await self._cluster.refresh()
        dead = self._dead(queue)
        if dead is None:
            return 0
        wanted = None if ids is None else set(ids)
        topic = self._names.queue(dead)
        found = await self._records(await self._views([topic]))
        found.sort(key=lambda one: (one[1].timestamp, one[1].offset))
        chosen = [(view, record) for view, record in found if wanted is None or _id(record) in wanted]
        if not chosen:
            return 0
        messages = []
        for _view, record in chosen:
            letter = _letter(record, queue)
            target = letter.fault.queue if letter.fault is not None and letter.fault.queue else queue
            messages.append(
                msgspec.structs.replace(letter, queue=target, attempts=0, starts=0, crashes=0, fault=None, due=None)
            )
        failed = await self._outbox.publish(messages, REPLAY_PATIENCE, lambda: "", most=ROOMY_BATCH)
        moved = [one for index, one in enumerate(chosen) if index not in failed]
        await self._finish(moved, topic)
        if failed:
            raise BrokerError(
                f"{len(moved)} dead letters of {queue!r} are back, {len(failed)} are not: {next(iter(failed.values()))}"
            )
        return len(moved)

    async def _finish(self, chosen: Sequence[tuple[View, ConsumerRecord]], group: str) -> int:
        """Mark records finished: through the reader that has them, or else in the name of a group without members."""
        if not chosen:
            return 0
        readers = set()
        views: dict[TopicPartition, View] = {}
        for view, record in chosen:
            part = view.part
            if part is not None and not part.lost:
                part.finish(record.offset)
                readers.add(part.reader)
            else:
                view.tracker.finish(record.offset)
                views[view.tp] = view
        for reader in readers:
            reader.touched()
            await reader.committed()
        count = len(chosen)
        if views:
            try:
                await self._cluster.commit(group, {tp: view.commit for tp, view in views.items()})
            except (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError):
                # a worker reads it, and Kafka lets nobody else mark its messages: ask that worker
                asked: dict[TopicPartition, list[int]] = {}
                for view, record in chosen:
                    if view.tp in views:
                        asked.setdefault(view.tp, []).append(record.offset)
                count += await self._control.ask(asked) - sum(map(len, asked.values()))
            else:
                await self._clear(group, views)
        return count

    async def _clear(self, group: str, views: dict[TopicPartition, View]) -> None:
        below = {tp: view.tracker.watermark for tp, view in views.items() if view.stand.ours}
        if below and self._cluster.options.reclaim and group != self._names.delay_group:
            topic = next(iter(below)).topic
            if await self._cluster.groups_on(topic) == {group}:
                await self._cluster.delete_below(below)


class _Open(View):
    """A view in which what is held counts as waiting."""

    __slots__ = ()

    def __init__(self, view: View) -> None:
        super().__init__(view.tp, view.stand, view.begin, view.end, view.part)

    def waits(self, offset: int) -> bool:
        return not self.tracker.is_finished(offset)


def _head(view: View, enough: int) -> View:
    """The same view of no more than what may be needed."""
    reach = view.start + enough + view.held_now + view.tracker.beyond().count(1)
    view.end = min(view.end, reach)
    return view


def _id(record: ConsumerRecord) -> str:
    return wire.message_of(record, "", record).id


def _letter(record: ConsumerRecord, queue: str) -> Message:
    return wire.message_of(record, queue, record)
