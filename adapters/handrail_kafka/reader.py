"""A member of a consumer group: it fetches, keeps what is finished of each partition, commits it, and lives through rebalances.

What becomes of the records is its owner's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors
from aiokafka.structs import OffsetAndMetadata

from handrail.errors import BrokerError
from handrail.logger import get_logger
from handrail_kafka import faults, progress
from handrail_kafka.cluster import Cluster
from handrail_kafka.ending import stop_consumer
from handrail_kafka.fetching import spare
from handrail_kafka.options import LostPosition
from handrail_kafka.part import Commit, Owner, Part
from handrail_kafka.positions import Log, start_of
from handrail_kafka.progress import MOST_HELD, Stand
from handrail_kafka.register import Register
from handrail_kafka.sharing import Claim, Sharing

log = get_logger("handrail.kafka")

#: Records fetched at once.
FETCH = 2000
#: Seconds between two looks for a silent stall.
WATCH_EVERY = 10.0
#: Seconds after which a partition with records beyond our position, asked for and not moving, is a stall.
STALLED = 30.0
#: Seconds that members get to join anew; all they do before is one commit.
REJOIN = 30.0
#: Seconds between two looks whether a draining partition is empty, at first and at most: each asks for what waits.
DRAIN_EVERY, DRAIN_EVERY_MOST = 0.02, 0.25
#: Seconds from the first one that is empty to joining anew: each join stops all members for a moment, so those that are
#: empty a little later should not need their own.
GATHER = 0.1
#: Seconds until the register is tried again when it could not be written.
NOTE_AGAIN = 60.0
#: Seconds between two returns of the space of finished messages.
RECLAIM_EVERY = 60.0
#: Seconds after which a commit that is not answered makes what is finished count as in hand: until then it costs no speed.
LATE = 0.1
#: Seconds for what is finished to be committed before this member leaves or joins anew.
LAST_COMMIT = 5.0
#: Seconds after which a changed number of messages in hand is written down with the next commit.
HELD_AFTER = 0.1


class Reader(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """One consumer and what is ours through it. It rebuilds itself on any doubt."""

    def __init__(
        self,
        cluster: Cluster,
        register: Register,
        group: str,
        topics: Iterable[str],
        owner: Owner,
        lost: LostPosition,
        revoke_wait: float,
    ) -> None:
        self._cluster = cluster
        self._register = register
        self._noting: asyncio.Task[None] | None = None
        self._note_from = -math.inf
        self.group = group
        self._topics = sorted(topics)
        self._owner = owner
        self._on_lost = lost
        self._revoke_wait = revoke_wait
        self._consumer: Any = None
        self.parts: dict[TopicPartition, Part] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._dirty = asyncio.Event()
        #: The client's part of the commit that is under way.
        self._committing: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        #: From a revoke to the assignment after it: nothing is taken or begun, nothing can be committed.
        self.rebalancing = True
        self._generation = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._minding: set[asyncio.Task[None]] = set()
        self._sharing = Sharing(self._claim)
        self._handing_over: asyncio.Task[None] | None = None
        self._rebuild = ""
        self._held_at = math.inf
        #: When the commit that is under way, or is tried again, was begun.
        self._committing_since = math.inf
        #: What is wrong, in one line, or nothing.
        self.trouble = "joining the consumer group"
        self._said: set[str] = set()
        self._stuck: dict[TopicPartition, str] = {}
        #: The first commit went through, or was refused: only by then it is known that we may read and commit.
        self._answered = asyncio.Event()
        self._proven = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run()), loop.create_task(self._commit_for_ever())]
        self._tasks.append(loop.create_task(self._watch()))

    async def stop(self) -> None:
        """Commit what is finished and leave the group."""
        if self._closing:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_COMMIT):
                await self.committed()
                if any(len(part.held) != part.told_held for part in self.parts.values()):
                    # who looks would take it for in our hands until another worker joins, however long that is
                    self._write_held()
                    await self._next_commit()
        self._closing = True
        self._wake.set()
        run, commit, watch = self._tasks
        watch.cancel()
        # the fetch is never cancelled: it ends by itself within its own timeout, or when its consumer stops
        await self._stop_consumer()
        self._owner.member(self.group, "")
        await asyncio.wait([run], timeout=5.0)
        commit.cancel()
        run.cancel()
        await asyncio.gather(run, commit, watch, return_exceptions=True)
        if self._noting is not None:
            # it is let come to its end: aiokafka leaves a connection open whose making is cancelled
            await asyncio.wait([self._noting], timeout=5.0)
        await self._stop_consumer()  # one that was being built when this began
        self._lose(list(self.parts.values()))
        self.parts.clear()
        self._release_waiters()

    async def _stop_consumer(self) -> None:
        self._stop_handing_over()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)
            if self._committing is not None:
                # without its consumer it goes on trying until its time is over, and nothing else is committed meanwhile
                self._committing.cancel()

    def subscribe(self, topics: Iterable[str]) -> None:
        """Read *topics* from now on."""
        topics = sorted(topics)
        if topics != self._topics:
            self._topics = topics
            if self._consumer is not None:
                self._consumer.subscribe(topics, listener=self)

    def poke(self) -> None:
        """Something that was in the way of fetching may be gone."""
        self._wake.set()

    async def _run(self) -> None:
        pause = 0.1
        while not self._closing:
            began = time.monotonic()
            try:
                await self._build()
                await self._fetch()
            except asyncio.CancelledError:
                if _cancelled():
                    raise
            except errors.ConsumerStoppedError:
                if self._closing:
                    return
            except Exception as error:  # noqa: BLE001 - any doubt means rebuilding
                if self._closing:
                    return
                self._tell_of(await self._cluster.why(error))
            if not self._closing:
                await self._stop_consumer()
                self.rebalancing = True
                self._lose(list(self.parts.values()))
                self.parts.clear()
                self._release_waiters()
                if time.monotonic() - began > STALLED:
                    pause = 0.1
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _tell(self, text: str) -> None:
        self.trouble = text
        if text not in self._said:
            self._said.add(text)
            log.error(text, group=self.group)

    def _tell_of(self, error: BaseException) -> None:
        text = faults.explain(error, self._cluster.place)
        if self._proven or not faults.is_fatal(error):
            self._tell(text)
            return
        self.trouble = text
        if not self._answered.is_set():  # told once: one missing right shows in several ways
            self._answered.set()
            self._owner.refused(text)

    async def _build(self) -> None:
        options = self._cluster.options
        self._rebuild = ""
        session = int(options.session_timeout * 1000)
        consumer = AIOKafkaConsumer(
            **options.client(),
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",  # what a transaction took back was never sent
            partition_assignment_strategy=(self._sharing,),
            max_poll_interval_ms=2**31 - 1,
            rebalance_timeout_ms=int(REJOIN * 1000),
            session_timeout_ms=session,
            heartbeat_interval_ms=min(1000, session // 3),  # by the answer to one it learns that others join or leave
            fetch_max_wait_ms=250,
            max_partition_fetch_bytes=4 << 20,
            request_timeout_ms=int((REJOIN + 10.0) * 1000),  # a join is answered when all have joined
        )
        try:
            await consumer.start()
            spare(consumer)
            consumer.subscribe(self._topics, listener=self)
        except BaseException:
            await stop_consumer(consumer)
            raise
        self._consumer = consumer
        minding = asyncio.get_running_loop().create_task(self._mind(consumer))
        self._minding.add(minding)
        minding.add_done_callback(self._minding.discard)

    async def _mind(self, consumer: Any) -> None:
        """End the waits within *consumer* when its part in the group has ended by a fault: they have no end of their own.

        A subscription that changes in the midst of a join can be such a fault.
        """
        await asyncio.wait([consumer._coordinator._coordination_task])
        while self._consumer is consumer and not self._closing:
            self._rebuild = self._rebuild or "the membership in the consumer group ended by itself; connecting anew"
            consumer._subscription.abort_waiters(errors.KafkaError(self._rebuild))
            self._wake.set()
            await asyncio.sleep(0.2)

    async def _fetch(self) -> None:
        consumer = self._consumer
        while not self._closing and not self._rebuild:
            ready = self._ready()
            if not ready or self.rebalancing:
                self._wake.clear()
                if self.rebalancing or not self.parts:
                    consumer._coordinator.check_errors()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await self._wake.wait()
                continue
            found = await consumer.getmany(*ready, timeout_ms=200, max_records=FETCH)
            if self.rebalancing:
                continue  # fetched for an assignment that is over: after the next one it is fetched again
            for tp, records in found.items():
                part = self.parts.get(tp)
                if part is not None and not part.lost and records:
                    part.moved_at = time.monotonic()
                    fresh = records
                    if not part.tracker.receive_run(records[0].offset, records[-1].offset, len(records)):
                        wanted = part.tracker.receive([record.offset for record in records])
                        fresh = [record for record, is_wanted in zip(records, wanted, strict=True) if is_wanted]
                    if len(fresh) < len(records):
                        part.dirty = True
                        self._dirty.set()
                    if fresh:
                        self._owner.take(part, fresh)
            self._pass_gaps(ready)
        if self._rebuild:
            raise errors.KafkaError(self._rebuild)

    def _ready(self) -> list[TopicPartition]:
        """What to ask for now."""
        ready, now = [], time.monotonic()
        for tp, part in self.parts.items():
            if part.admits and self._owner.wants(part):
                ready.append(tp)
            else:
                part.moved_at = now  # that nothing comes of what is not asked for is no stall
        return ready

    def _pass_gaps(self, tps: Iterable[TopicPartition]) -> None:
        """Go past what will never come: markers and remains of transactions, records that compaction took."""
        subscription = self._consumer._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            return
        for tp in tps:
            part = self.parts.get(tp)
            if part is None or part.lost or tp not in assignment.tps:
                continue
            state = assignment.state_value(tp)
            if state.has_valid_position and state.position > part.tracker.position:
                part.tracker.skip_to(state.position)
                part.moved_at = time.monotonic()
                part.dirty = True
                self._dirty.set()

    # --- what is finished ---------------------------------------------------------------------------------------------

    def touched(self) -> None:
        """Parts were marked: commit them soon."""
        self._dirty.set()

    def held_changed(self) -> None:
        """What is in hand changed: worth a commit, when none comes by itself within a moment."""
        if self._held_at == math.inf:
            self._held_at = time.monotonic() + HELD_AFTER
            asyncio.get_running_loop().call_later(HELD_AFTER, self._write_held)

    def _write_held(self) -> None:
        self._held_at = math.inf
        for part in self.parts.values():
            if len(part.held) != part.told_held:
                part.dirty = True
                self._dirty.set()

    @property
    def overdue(self) -> int:
        """What is finished here and the server should know by now; it would be done again if this member were given up."""
        if time.monotonic() - self._committing_since < LATE:
            return 0
        return sum(part.marks - part.committed for part in self.parts.values())

    async def committed(self) -> None:
        """Returns when all that is marked so far is committed, or was lost."""
        if any(part.committed < part.marks for part in self.parts.values()):
            await self._next_commit()

    async def catch_up(self) -> None:
        """Returns when the group has said anew that what is held here is ours, or it was lost."""
        for part in self.parts.values():
            part.dirty = True  # the group takes no commit of somebody whom it has expelled
        await self._next_commit()

    async def _next_commit(self) -> None:
        """Returns when all that is dirty by now is committed, or was lost."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._dirty.set()
        await waiter

    def _release_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _commit_for_ever(self) -> None:
        """One commit is always under way while something is dirty; what is marked meanwhile goes into the next."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            while self.rebalancing and not self._revoking:
                if self._closing:
                    return
                await asyncio.sleep(0.01)
            await self._commit_once()

    _revoking = False

    async def _commit_once(self) -> bool:
        consumer = self._consumer
        waiters, self._waiters = self._waiters, []
        parts = [part for part in self.parts.values() if part.dirty and not part.lost]
        if consumer is None or not parts:
            if any(part.committed < part.marks for part in self.parts.values()):
                self._waiters += waiters
                await asyncio.sleep(0.02)
                self._dirty.set()
                return False
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            return True
        offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        marks = []
        for part in parts:
            part.dirty = False
            part.told_held = len(part.held)
            marks.append((part, part.marks))
            tracker = part.tracker
            counts = tuple(part.counts.items())
            held = tuple(part.held) if len(part.held) <= MOST_HELD else ()
            watermark, text = progress.encode(
                Stand(
                    tracker.watermark,
                    tracker.beyond(),
                    len(part.held),
                    held,
                    part.ours,
                    counts,
                    self._owner.board,
                    part.boards() if part.left else (),
                    part.topic_id,
                    part.noted,
                )
            )
            part.full = len(text) > progress.FULL
            part.sent = watermark, text
            offsets[part.tp] = OffsetAndMetadata(watermark, text)
        self._committing_since = min(self._committing_since, time.monotonic())
        # `consumer.commit` refuses while a changed subscription waits for its assignment, though all is ours until then
        self._committing = asyncio.get_running_loop().create_task(consumer._coordinator.commit_offsets(None, offsets))
        try:
            async with asyncio.timeout(20.0):
                await self._committing
        except (errors.KafkaError, OSError, TimeoutError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            for part in parts:
                part.dirty = True
            self._waiters += waiters
            if not self.parts:
                self._release_waiters()  # lost meanwhile
            if faults.is_fatal(error):
                self._tell_of(error)
            log.debug("a commit failed and will be tried again", group=self.group, error=repr(error))
            await asyncio.sleep(0.05)
            if not self._closing:
                self._dirty.set()
            return False
        late = time.monotonic() - self._committing_since >= LATE
        self._committing_since = math.inf
        for part, count in marks:
            part.committed = max(part.committed, count)
            part.stored = part.sent
            if count and not part.noted and not self._noting and time.monotonic() > self._note_from:
                self._noting = asyncio.get_running_loop().create_task(self._note(part))
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if not self._stuck:
            self._said.clear()
        self._wake.set()
        self._answered.set()
        self._proven = True
        if late:
            self._owner.resumed()
        return True

    async def _note(self, part: Part) -> None:
        """Have the register know that this group has finished something of *part*."""
        try:
            await self._register.add(self.group, part.tp, part.topic_id)
            part.noted = part.dirty = True
            self._dirty.set()
        except (BrokerError, errors.KafkaError, OSError, TimeoutError) as error:
            text = faults.explain(error, self._cluster.place)
            if text not in self._said:
                self._said.add(text)
                log.warning(
                    "it is not written down that this group was here: a lost position may look new", reason=text
                )
            self._note_from = time.monotonic() + NOTE_AGAIN
        finally:
            self._noting = None

    def _claim(self) -> Claim:
        had = [(tp.topic, tp.partition, part.pending) for tp, part in self.parts.items() if not part.lost]
        return Claim(self._generation if had else -1, had)

    # --- rebalances ---------------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:  # noqa: ARG002 - eager: all of them
        """A rebalance begins. What is in hand goes on: the others know of it by our claim, and let it be ours."""
        self.rebalancing = True
        self._stop_handing_over()
        if not self.parts:
            return
        consumer = self._consumer
        generation = consumer._coordinator.generation if consumer is not None else -1
        if generation < 0:
            # expelled, others may have them already: what we finish from here on would be done twice
            log.warning(
                "this worker was expelled from its consumer group; what it held goes to others", group=self.group
            )
            self._lose(list(self.parts.values()))
            self.parts.clear()
            self._release_waiters()
            return
        self._revoking = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_COMMIT):
                    await self.committed()
        finally:
            self._revoking = False
        self._generation = generation

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        while not self._closing:
            try:
                await self._assign(list(assigned))
            except (errors.KafkaError, OSError, TimeoutError) as error:
                self._tell_of(error)
                await asyncio.sleep(0.2)
            else:
                return

    async def _assign(self, assigned: list[TopicPartition]) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        coordinator = consumer._coordinator
        self._owner.member(self.group, coordinator.member_id)
        # in the generation right after ours nobody else can have had a partition that we have again
        unbroken = coordinator.generation == self._generation + 1
        parts = {tp: part for tp in assigned if (part := self.parts.get(tp)) is not None and not part.lost and unbroken}
        fresh = [tp for tp in assigned if tp not in parts]
        stuck: dict[TopicPartition, str] = {}
        if fresh:
            commits: dict[TopicPartition, Commit] = await self._cluster.committed(self.group, fresh)
            begins = await self._cluster.begins(fresh)
            ends = await self._cluster.ends(fresh)
            ids = await self._cluster.ids({tp.topic for tp in fresh})
            without = {tp: ids.get(tp.topic, "") for tp in fresh if begins[tp] < ends[tp] and tp not in commits}
            known = await self._register.known(self.group, without) if without else set()
            for tp in fresh:
                commit = commits.get(tp)
                before = self.parts.get(tp)
                if before is not None and not before.lost and commit in (before.stored, before.sent):
                    # who has had it meanwhile, if anyone, has finished nothing of it
                    parts[tp] = before
                    continue
                held = Log(begins[tp], ends[tp], ids.get(tp.topic, ""), tp in known)
                start = start_of(tp, self.group, commit, held, self._on_lost)
                if isinstance(start, str):
                    stuck[tp] = f"{self._cluster.place}: {start}"
                    continue
                stand, position = start
                part = parts[tp] = Part(self, tp, stand, position)
                part.stored = part.sent = commit
                for below, board in ((ends[tp], stand.board), *stand.before):
                    if board:
                        self._owner.bereaved(part, board, below)
        gone = [part for tp, part in self.parts.items() if parts.get(tp) is not part]
        self.parts = parts
        self._lose(gone)
        for tp, part in parts.items():
            consumer.seek(tp, part.tracker.position)
            part.dirty = True  # lag readers see only what was committed, so commit even with nothing read
            part.moved_at = time.monotonic()
        self._stuck = stuck
        if stuck:
            self._tell(next(iter(stuck.values())))
        else:
            self.trouble = ""
        self.rebalancing = False
        if not parts:
            self._answered.set()  # nothing to commit: others have all of it, or nobody can say where to begin
        self._dirty.set()
        self._wake.set()
        self._owner.resumed()
        self._hand_over([part for tp, part in parts.items() if tp in self._sharing.wanted])

    def _hand_over(self, wanted: list[Part]) -> None:
        """Have *wanted* drained for others; what was draining and is not wanted any more goes on."""
        stays = [part for part in self.parts.values() if part.draining and part not in wanted]
        self._restore(stays)
        if wanted:
            self._handing_over = asyncio.get_running_loop().create_task(self._drain(wanted))

    async def _drain(self, parts: list[Part]) -> None:
        """Begin nothing more of *parts*, and join anew when one is empty: then it moves.

        What takes long keeps its partition here. Nothing waits for it without need: when it takes longer than `revoke_wait`
        and there is room for other messages, the partition goes on for a while before it is tried again.
        """
        pause = self._revoke_wait
        while parts:
            until, wait = time.monotonic() + self._revoke_wait, DRAIN_EVERY
            for part in parts:
                part.draining = True
            while time.monotonic() < until or not self._owner.roomy:
                self._owner.withhold(parts)
                if any(not part.pending for part in parts):
                    await asyncio.sleep(GATHER)
                    self._consumer._coordinator.request_rejoin()
                    return
                await asyncio.sleep(wait)
                wait = min(1.2 * wait, DRAIN_EVERY_MOST)
            self._restore(parts)
            log.debug("partitions stay for now: what runs takes long", group=self.group, partitions=len(parts))
            await asyncio.sleep(pause)
            pause *= 2
            parts = [part for part in parts if not part.lost]

    def _restore(self, parts: list[Part]) -> None:
        for part in parts:
            part.draining = False
        if parts:
            self._owner.restore(parts)
            self._wake.set()

    def _stop_handing_over(self) -> None:
        task, self._handing_over = self._handing_over, None
        if task is not None:
            task.cancel()

    def _lose(self, parts: list[Part]) -> None:
        if parts:
            for part in parts:
                part.lost = True
            self._owner.lose(parts)
            for part in parts:
                part.held.clear()

    def compare(self, ids: Mapping[str, str], partitions: Mapping[str, int]) -> None:
        """Begin anew if a topic is not the one any more that its parts are of, and have new partitions shared.

        *ids* and number of *partitions* by topic. By itself the client looks for them every few minutes.
        """
        consumer = self._consumer
        there = {topic: partitions[topic] for topic in self._topics if topic in partitions}
        # not of a topic that is gone: many servers would make it anew for the asking, with settings that lose messages
        if consumer is not None and any(
            len(consumer.partitions_for_topic(topic) or ()) != count for topic, count in there.items()
        ):
            consumer._client.force_metadata_update()
        for part in self.parts.values():
            now = ids.get(part.tp.topic)
            if part.topic_id and now and now != part.topic_id and not part.lost:
                self._rebuild = f"topic {part.tp.topic!r} was deleted and made anew; connecting anew"
                self._wake.set()

    # --- doubts -------------------------------------------------------------------------------------------------------

    async def settled_start(self, patience: float) -> None:
        """Returns when the partitions are known and their first records, if any, are here; after *patience* at the latest.

        By then the owner knows if the cluster refuses us.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._answered.wait()
                tps = list(self.parts)
                ends = await self._cluster.ends(tps)
                while not any(part.tracker.unfinished for part in self.parts.values()) and any(
                    (part := self.parts.get(tp)) is not None and part.tracker.position < ends[tp] for tp in tps
                ):
                    await asyncio.sleep(0.005)

    async def _watch(self) -> None:
        reclaim_at = time.monotonic() + RECLAIM_EVERY
        while True:
            await asyncio.sleep(WATCH_EVERY)
            try:
                await self._look_for_stall()
                if time.monotonic() > reclaim_at:
                    reclaim_at = time.monotonic() + RECLAIM_EVERY
                    await self.reclaim()
            except (errors.KafkaError, OSError, TimeoutError) as error:
                log.debug("looking after a consumer failed", group=self.group, error=repr(error))

    async def _look_for_stall(self) -> None:
        now = time.monotonic()
        doubtful = [
            part
            for part in self.parts.values()
            if part.admits and self._owner.wants(part) and now - part.moved_at > STALLED
        ]
        if not doubtful or self.rebalancing:
            return
        positions = {part.tp: part.tracker.position for part in doubtful}
        ends = await self._cluster.ends([part.tp for part in doubtful])
        for part in doubtful:
            if ends[part.tp] <= positions[part.tp]:
                part.moved_at = now
            elif part.tracker.position == positions[part.tp] and not part.lost:
                begin = (await self._cluster.begins([part.tp]))[part.tp]
                if part.tracker.position == positions[part.tp]:
                    self._rebuild = (
                        f"nothing came from {part.tp.topic}/{part.tp.partition} for {STALLED:g}s though there is something "
                        f"(log from {begin} to {ends[part.tp]}, position {part.tracker.position}); connecting anew"
                    )
                    self._wake.set()
                    return

    async def reclaim(self) -> None:
        """Give back the space of what is finished, in topics that are ours alone."""
        if not self._cluster.options.reclaim:
            return
        offsets = {}
        for part in self.parts.values():
            watermark = part.tracker.watermark
            if part.ours and not part.lost and watermark > part.reclaimed and part.committed == part.marks:
                offsets[part.tp] = watermark
        for topic in {tp.topic for tp in offsets}:
            if await self._cluster.groups_on(topic) == {self.group}:
                await self._cluster.delete_below({tp: at for tp, at in offsets.items() if tp.topic == topic})
                for tp, at in offsets.items():
                    if tp in self.parts:
                        self.parts[tp].reclaimed = at


def _cancelled() -> bool:
    """Whether somebody cancelled the task that runs: else a CancelledError is that of a task which it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
