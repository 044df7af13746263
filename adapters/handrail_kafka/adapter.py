"""The adapter for Kafka: the port's face. All of it, aiokafka included, lives on the loop that opened it.

No user code runs on that loop (a dispatcher's, a publisher's), so that heartbeats need no thread of their own; a thread
would cost each message two ways through the GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiokafka import errors

from handrail.adapter import (
    BrokerSettings,
    Capability,
    Deliver,
    Delivery,
    Depth,
    Health,
    Hold,
    Lost,
    Planned,
    QueueSpec,
    Recall,
    Role,
    Settlement,
    State,
    Subscription,
    Verb,
    masked,
)
from handrail.errors import BrokerError, SendError, SendTimeoutError
from handrail.logger import get_logger
from handrail.message import Message
from handrail_kafka import faults
from handrail_kafka.asks import Asks
from handrail_kafka.cluster import ROOMY_BATCH, Cluster
from handrail_kafka.control import Control
from handrail_kafka.deaths import Deaths
from handrail_kafka.delays import Forwarder
from handrail_kafka.intake import Intake, Tag, counts_of
from handrail_kafka.names import Names
from handrail_kafka.options import Options, of_queue, parse
from handrail_kafka.outbox import Outbox
from handrail_kafka.part import Part
from handrail_kafka.plan import plan
from handrail_kafka.producer import Producer
from handrail_kafka.progress import MOST_COUNTS
from handrail_kafka.reader import Reader
from handrail_kafka.register import Register
from handrail_kafka.shelf import Shelf

T = TypeVar("T")

log = get_logger("handrail.kafka")

#: Seconds between two looks for priority topics that others have made.
LOOK_EVERY = 2.0
#: Seconds that opening takes at most before it goes on in the background; a server that does not answer is waited for less.
OPEN_PATIENCE = 15.0
#: Seconds for one attempt to store what a settlement moves.
MOVE_PATIENCE = 20.0

_CAPABILITIES: Mapping[Capability, bool | str] = {
    Capability.DELAY: "yes; moved on by any worker, so a message falls due while one runs",
    Capability.PRIORITY: "ten among what is fetched ahead, before that five levels: 0–1, 2–3, 4, 5–7, 8–9",
    Capability.LIFO: "among the messages fetched ahead",
    Capability.HEAD: "up to 40 messages a partition; more go to the tail",
    Capability.FIFO: "within a partition (`partitions: 1`, or one `key`)",
    Capability.BY_KEY: "within one priority",
    Capability.BY_PARTITION: "within one priority",
    Capability.DEAD_LETTERS: True,
    Capability.PEEK: True,
    Capability.PURGE: True,
    Capability.DEPTH: "delayed up to 20,000; active of other workers a tenth of a second old",
    Capability.CRASHES: "of workers on the same machine",
    Capability.DEAD_WORKER: "on the same machine while another runs, else after `session_timeout` (10 s)",
    Capability.PROCESSES: "as many as the topic has partitions",
    Capability.MACHINES: "as many as the topic has partitions",
    Capability.FAIR: "no; each worker has partitions of its own",
    Capability.FOREIGN: True,
}


class KafkaAdapter:
    """Messages in topics of an Apache Kafka cluster. Implements ``handrail.adapter.Adapter``."""

    name = "kafka"
    forwards = True
    #: Of the class: what Kafka can do. Of an instance: what it can do with the partitions it is given.
    capabilities: Mapping[Capability, bool | str] = _CAPABILITIES
    hold: Hold | None = None

    def __init__(self, settings: BrokerSettings) -> None:
        self.board: Path | None = None
        self._settings = settings
        self._options: Options = parse(settings)
        self._names = Names(settings.prefix)
        # what is true of the topics that this broker makes by default; a queue's own partitions: may say otherwise
        alone = self._options.partitions == 1
        able = dict(_CAPABILITIES)
        able[Capability.FIFO] = alone
        able[Capability.DEAD_WORKER] = False  # after `session_timeout`, not at once
        able[Capability.FAIR] = False
        if alone:
            able[Capability.PROCESSES] = False
        self.capabilities = able
        self._role: Role = "client"
        self._pid = os.getpid()
        self._asks: Asks | None = None
        self._core: _Core | None = None
        # aiokafka logs each lost connection with a traceback; what users must know is said here, once
        logger = logging.getLogger("aiokafka")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL + 1)

    @property
    def place(self) -> str:
        shown = masked(self._settings.url)
        if self._settings.options.get("servers"):
            head, separator, query = shown.partition("?")
            shown = f"{head.partition('://')[0]}://{','.join(self._options.servers)}{separator}{query}"
        return shown

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self, role: Role) -> None:
        if self._asks is not None:
            raise BrokerError(f"{self.place}: is open already")
        self._role = role
        self._pid = os.getpid()
        self._asks = Asks()
        try:
            deaths = Deaths(self.board if role == "worker" else None, self._settings.name)
            self._core = _Core(self._options, self._names, self.place, role, deaths)
            await self._run(self._core.open())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        asks, self._asks = self._asks, None
        core, self._core = self._core, None
        if asks is None or self._pid != os.getpid():
            return
        if core is None:
            return
        core.closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(45.0):
                await core.flush()
        await asks.end()
        await core.end()

    def _open_core(self) -> tuple[Asks, _Core]:
        if self._asks is None or self._core is None:
            raise BrokerError(f"{self.place}: is not open")
        if self._pid != os.getpid():
            raise BrokerError(f"{self.place}: was opened before this process forked; open an adapter of its own here")
        return self._asks, self._core

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._asks is None:
            coroutine.close()
            raise BrokerError(f"{self.place}: is not open")
        try:
            return await self._asks.run(coroutine)
        except (errors.KafkaError, OSError) as error:
            raise BrokerError(faults.explain(error, self.place)) from error

    async def _ask(self, call: Callable[[_Core], Coroutine[Any, Any, T]]) -> T:
        _asks, core = self._open_core()
        if not core.cluster.connected and core.trouble:
            raise BrokerError(core.trouble)
        return await self._run(call(core))

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        _asks, core = self._open_core()
        for queue in queues:
            of_queue(self._options, queue.name, queue.options)
        await self._run(core.declare(list(queues)))

    async def plan(self, queues: Sequence[QueueSpec]) -> list[Planned]:
        for queue in queues:
            of_queue(self._options, queue.name, queue.options)
        try:
            await self.open("client")
            return await self._ask(lambda core: plan(core.cluster, self._names, self._options, queues))
        finally:
            await self.close()

    # --- messages -----------------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message], timeout: float) -> dict[int, SendError]:
        _asks, core = self._open_core()
        if not messages:
            return {}
        return await self._run(core.outbox.publish(messages, timeout, lambda: core.trouble))

    async def subscribe(
        self, queue: QueueSpec, credit: int, deliver: Deliver, lost: Lost, recall: Recall | None = None
    ) -> Subscription:
        asks, core = self._open_core()
        intake = await self._run(core.attach(queue, credit, deliver, lost, recall, self._give_back))
        return _Subscription(asks, core, intake)

    def _give_back(self, deliveries: list[Delivery]) -> None:
        core = self._core
        if core is not None:
            core.spawn(core.settle([Settlement(delivery, Verb.RELEASE) for delivery in deliveries]))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        asks, core = self._open_core()
        try:
            return await asks.run(core.settle(settlements))
        except asyncio.CancelledError:
            if core.closed:
                raise BrokerError(f"{self.place}: closed") from None
            raise

    async def catch_up(self) -> None:
        await self._ask(lambda core: core.catch_up())

    # --- looking at and clearing --------------------------------------------------------------------------------------

    async def depth(self, queue: str) -> Depth:
        return await self._ask(lambda core: core.shelf.depth(queue))

    async def peek(self, queue: str, state: State, limit: int, offset: int = 0) -> list[Message]:
        found = await self._ask(lambda core: core.shelf.messages(queue, state, offset + limit))
        return found[offset : offset + limit]

    async def find(self, queue: str, state: State, message_id: str) -> Message | None:
        found = await self._ask(lambda core: core.shelf.messages(queue, state, 1 << 40))
        return next((message for message in found if message.id == message_id), None)

    async def purge(self, queue: str, state: State, ids: Sequence[str] | None = None) -> int:
        return await self._ask(lambda core: core.shelf.purge(queue, state, ids))

    async def replay(self, queue: str, ids: Sequence[str] | None = None) -> int:
        return await self._ask(lambda core: core.shelf.replay(queue, ids))

    def health(self) -> Health:
        core = self._core
        if core is None:
            return Health(up=False, detail=f"{self.place}: is not open")
        if self._pid != os.getpid():
            return Health(up=False, detail=f"{self.place}: was opened before this process forked")
        if time.monotonic() - core.beat > 10.0:
            return Health(up=False, detail=f"{self.place}: the event loop that talks to Kafka does not turn")
        trouble = core.health()
        return Health(up=not trouble, detail=trouble or self.place)


class _Core:
    """What there is of an adapter while it is open."""

    def __init__(
        self,
        options: Options,
        names: Names,
        place: str,
        role: Role,
        deaths: Deaths,
    ) -> None:
        self._options = options
        self._deaths = deaths
        self._names = names
        self._place = place
        self._role = role
        self.cluster = Cluster(options, place)
        self.producer = Producer(self.cluster, self._told)
        self.outbox = Outbox(self.cluster, names, self.producer, self._created)
        self._register = Register(self.cluster, names.register, self.producer)
        self.forwarder = Forwarder(self.cluster, self._register, names, self.outbox, deaths, lambda: self.trouble)
        self.intakes: dict[str, Intake] = {}
        self._specs: dict[str, QueueSpec] = {}
        self.control = Control(self.cluster, names.control, self.producer, self._parts)
        self.shelf = Shelf(self.cluster, names, self.outbox, self.intakes, self._specs, self._parts, self.control)
        self._tasks: set[asyncio.Task[Any]] = set()
        #: What is wrong with the cluster or with sending, in one line, or nothing.
        self.trouble = ""
        self._said = ""
        self.closed = False
        #: What runs beside the queues was started.
        self._begun = False
        #: Monotonic time at which this loop last turned.
        self.beat = time.monotonic()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_PATIENCE):
                await self._connect()
        except (errors.KafkaError, OSError, TimeoutError) as error:
            if faults.is_fatal(error):
                raise BrokerError(faults.explain(error, self._place)) from error
            self._told(error)
            self.spawn(self._connect_later())
        self.spawn(self._beat())
        if self._role != "client":
            self.spawn(self._look())

    async def _connect(self) -> None:
        if not self.cluster.connected:
            await self.cluster.connect()
        await self.cluster.refresh()
        if self._role != "client" and not self._begun:
            self._begun = True
            self.spawn(self._bury())
            self.forwarder.start()
            self.control.look()

    async def _connect_later(self) -> None:
        pause = 0.2
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 3.0)
            try:
                await self._connect()
                if self._specs:
                    await self._declare(list(self._specs.values()))
                for intake in self.intakes.values():
                    await intake.look()
            except (errors.KafkaError, BrokerError, OSError, TimeoutError) as error:
                self._told(error)
                if self.cluster.connected:
                    continue
            else:
                self._told(None)
                return

    async def _beat(self) -> None:
        while True:
            self.beat = time.monotonic()
            await asyncio.sleep(1.0)

    async def _look(self) -> None:
        """Notice topics that others have made: priorities used for the first time."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if not self.cluster.connected:
                continue
            try:
                await self.cluster.refresh()
                await self._bury()
                await self._compare()
            except (errors.KafkaError, OSError, TimeoutError) as error:
                self._told(error)
                continue
            self._told(None)
            self.control.look()
            await self._look_now()

    async def _bury(self) -> None:
        """Tell the groups of workers of this machine that died, rather than have them wait for `session_timeout`."""
        for group, member in self._deaths.orphans():
            try:
                await self.cluster.leave(group, member)
            except (errors.KafkaError, OSError, TimeoutError) as error:  # then the group has to find out by itself
                log.debug("a group was not told of a death", group=group, error=repr(error))

    async def _compare(self) -> None:
        """Notice topics that others have deleted and made anew, or given more partitions."""
        readers = self._readers()
        ids = await self.cluster.ids({tp.topic for reader in readers for tp in reader.parts})
        for reader in readers:
            reader.compare(ids, self.cluster.partitions)

    async def _look_now(self) -> None:
        for intake in list(self.intakes.values()):
            if intake.attached:
                await intake.look()

    def _created(self) -> None:
        if self._role != "client" and not self.closed:
            self.forwarder.look()
            self.spawn(self._look_now())

    def _told(self, error: BaseException | None) -> None:
        text = "" if error is None else faults.explain(error, self._place)
        if text and text != self._said:
            log.error(text)
        elif not text and self._said:
            log.info("the cluster answers again", place=self._place)
        self._said = self.trouble = text

    async def catch_up(self) -> None:
        """Returns when the groups have said of all that is in hand whose it is."""
        await asyncio.gather(*(reader.catch_up() for reader in self._readers()))

    async def flush(self) -> None:
        """Take nothing more; commit and send what is on its way."""
        for intake in self.intakes.values():
            intake.attached = False
            self._let_go(intake)
        await asyncio.gather(
            self.forwarder.stop(),
            self.control.stop(),
            *(intake.stop() for intake in self.intakes.values()),
            return_exceptions=True,
        )
        await self.producer.close()

    async def end(self) -> None:
        """Leave nothing of it on the loop: after :meth:`flush`, and when nobody asks for anything any more."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        # what was asked for before closing may have made one more
        await asyncio.gather(*(intake.stop() for intake in self.intakes.values()), return_exceptions=True)
        await self.producer.close()
        await self.cluster.close()
        self._deaths.end()

    @staticmethod
    def _let_go(intake: Intake) -> None:
        # what is held and not settled is simply not finished: it comes again after the next assignment
        for level in intake.levels:
            for part in level.reader.parts.values() if level.reader else ():
                for delivery in part.held.values():
                    delivery.tag.alive = False
                part.held.clear()

    def health(self) -> str:
        if not self.cluster.connected:
            return self.trouble or f"{self._place}: not connected yet"
        if self.trouble:
            return self.trouble
        return next(
            (intake.trouble for intake in list(self.intakes.values()) if intake.attached and intake.trouble), ""
        )

    # --- queues -------------------------------------------------------------------------------------------------------

    async def declare(self, queues: list[QueueSpec]) -> None:
        for queue in queues:
            self._specs[queue.name] = queue
        if self.cluster.connected:
            await self._declare(queues)

    async def _declare(self, queues: Sequence[QueueSpec]) -> None:
        wanted: dict[int | None, dict[str, int]] = {}
        roomy = {self._names.tier_for(0.0)}
        for queue in queues:
            options = of_queue(self._options, queue.name, queue.options)
            self.outbox.partitions[queue.name] = (options.partitions, options.replication)
            topics = wanted.setdefault(options.replication, {})
            topics[self._names.queue(queue.name)] = options.partitions
        for queue in queues:
            if queue.dead_letter is not None:
                roomy.add(self._names.queue(queue.dead_letter))
                self.outbox.partitions.setdefault(queue.dead_letter, (1, self._options.replication))
                topics = wanted.setdefault(self._options.replication, {})
                if not any(self._names.queue(queue.dead_letter) in others for others in wanted.values()):
                    topics[self._names.queue(queue.dead_letter)] = 1
        # a longer tier may come into being when it is needed: workers find it before it is the time to leave it
        wanted.setdefault(self._options.replication, {})[self._names.tier_for(0.0)] = 1
        for replication, topics in wanted.items():
            try:
                await self.cluster.create(topics, replication, roomy=roomy)
            except errors.TopicAuthorizationFailedError:
                # who only sends needs no more than the topic that it sends to, and is told at the send if it lacks that
                if self._role != "client":
                    raise
        if self._role != "client":
            self.forwarder.look()
        await self.cluster.warn_of_losses([topic for topics in wanted.values() for topic in topics])

    async def attach(
        self,
        queue: QueueSpec,
        credit: int,
        deliver: Deliver,
        lost: Lost,
        recall: Recall | None,
        give_back: Callable[[list[Delivery]], None],
    ) -> Intake:
        options = of_queue(self._options, queue.name, queue.options)
        self._specs.setdefault(queue.name, queue)
        if self.cluster.connected:
            await self._declare([queue])
        intake = self.intakes.get(queue.name)
        if intake is not None and not intake.attached and intake.held == 0 and not intake.levels:
            intake = None
        if intake is None:
            intake = Intake(self.cluster, self._register, queue, options, self._names.levels(queue.name), self._deaths)
            self.intakes[queue.name] = intake
        intake.spec = queue
        try:
            await intake.attach(credit, deliver, lost, recall, give_back)
        except BrokerError:
            self.intakes.pop(queue.name, None)
            raise
        return intake

    async def detach(self, intake: Intake, waiting: list[Delivery]) -> None:
        if waiting:
            await self.settle([Settlement(delivery, Verb.RELEASE) for delivery in waiting])
        await self._maybe_leave(intake)

    async def _maybe_leave(self, intake: Intake) -> None:
        """A queue that nobody here subscribes to any more, and nothing of which is in hand, is left to others."""
        if not intake.attached and intake.held == 0 and self.intakes.get(intake.spec.name) is intake:
            del self.intakes[intake.spec.name]
            await intake.stop()

    def _readers(self) -> list[Reader]:
        readers: list[Reader] = [
            level.reader for intake in self.intakes.values() for level in intake.levels if level.reader is not None
        ]
        if self.forwarder.reader is not None:
            readers.append(self.forwarder.reader)
        return readers

    def _parts(self) -> list[Part]:
        return [part for reader in self._readers() for part in reader.parts.values()]

    # --- settling -----------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        refused: list[Settlement] = []
        marked: list[tuple[Settlement, Part, int]] = []
        moves: list[Settlement] = []
        kept: list[Part] = []
        acked: dict[Part, list[Settlement]] = {}
        intakes: dict[Intake, int] = {}
        for one in settlements:
            tag: Tag = one.delivery.tag
            part = tag.part
            if not tag.alive or part.lost:
                refused.append(one)
                continue
            if one.verb is Verb.ACK:
                tag.alive = False
                if (ones := acked.get(part)) is None:
                    ones = acked[part] = []
                ones.append(one)
                continue
            intake = tag.level.intake
            if one.verb is Verb.HOLD:
                self._hold(one, marked)
                continue
            tag.alive = False
            if one.verb is Verb.RELEASE and one.message is None:
                del part.held[tag.offset]
                part.reader.held_changed()
                intake.put_back(tag)
                intakes[intake] = intakes.get(intake, 0) + 1
            elif one.verb is Verb.RELEASE and self._keep(one):
                kept.append(part)
                intakes[intake] = intakes.get(intake, 0) + 1
            elif one.verb is Verb.DEAD and intake.spec.dead_letter is None:
                self._mark(one, marked, intakes)
            else:
                moves.append(one)
        acks = [self._acknowledge(part, ones, intakes) for part, ones in acked.items()]
        self._free(intakes)
        if moves:
            for part in acked:  # their commit need not wait for what moves
                part.reader.touched()
            moved: dict[Intake, int] = {}
            await self._move(moves, marked, refused, moved)
            self._free(moved)
            intakes |= moved
        readers = {part.reader for _one, part, _marks in marked} | {part.reader for part in (*kept, *acked)}
        for reader in readers:
            reader.touched()
        for reader in readers:
            await reader.committed()
        for one, part, marks in marked:
            if part.committed < marks:
                refused.append(one)
        for part, ones, marks in acks:
            if part.committed < marks:
                refused += ones
        for intake in intakes:
            if not intake.attached:
                await self._maybe_leave(intake)
        return refused

    @staticmethod
    def _keep(one: Settlement) -> bool:
        """Give it back where it lies, at the head, its counts noted beside the watermark; False if it must go by the tail."""
        tag: Tag = one.delivery.tag
        message, part = one.message, tag.part
        before = one.delivery.message
        if message is None:
            return False
        if not tag.level.intake.ordered:
            if len(part.counts) >= MOST_COUNTS:
                return False
            counts = {"attempts": before.attempts, "starts": before.starts, "crashes": before.crashes}
            if msgspec.structs.replace(message, **counts) != before:
                return False
        part.held.pop(tag.offset, None)
        part.counts[tag.offset] = counts_of(message)
        part.marks += 1
        part.dirty = True
        tag.level.intake.put_back(tag)
        return True

    @staticmethod
    def _hold(one: Settlement, marked: list[tuple[Settlement, Part, int]]) -> None:
        """It stays where it is, in hand and in the log; its counts go beside the watermark."""
        part, offset = one.delivery.tag.part, one.delivery.tag.offset
        if one.message is not None:
            part.counts[offset] = counts_of(one.message)
        part.marks += 1
        part.dirty = True
        marked.append((one, part, part.marks))

    @staticmethod
    def _acknowledge(
        part: Part, ones: list[Settlement], intakes: dict[Intake, int]
    ) -> tuple[Part, list[Settlement], int]:
        """Mark *ones*, all of *part*, at once."""
        intake = ones[0].delivery.tag.level.intake
        intakes[intake] = intakes.get(intake, 0) + part.finish_held([one.delivery.tag.offset for one in ones])
        return part, ones, part.marks

    @staticmethod
    def _mark(one: Settlement, marked: list[tuple[Settlement, Part, int]], intakes: dict[Intake, int]) -> None:
        tag: Tag = one.delivery.tag
        part = tag.part
        if part.held.pop(tag.offset, None) is not None:
            intake = tag.level.intake
            intakes[intake] = intakes.get(intake, 0) + 1
        part.finish(tag.offset)
        marked.append((one, part, part.marks))

    @staticmethod
    def _free(intakes: dict[Intake, int]) -> None:
        for intake, count in intakes.items():
            intake.settled(count)
            intake.later()

    async def _move(
        self,
        moves: list[Settlement],
        marked: list[tuple[Settlement, Part, int]],
        refused: list[Settlement],
        intakes: dict[Intake, int],
    ) -> None:
        """Publish, and only then mark. Goes on for as long as the deliveries are ours."""
        left = moves
        said = ""
        while left:
            groups: dict[str | None, list[Settlement]] = {}
            for one in left:
                tag: Tag = one.delivery.tag
                dead = tag.level.intake.spec.dead_letter if one.verb is Verb.DEAD else None
                groups.setdefault(dead, []).append(one)
            again: list[Settlement] = []
            for dead, group in groups.items():
                messages = [one.message if one.message is not None else one.delivery.message for one in group]
                failed = await self.outbox.publish(
                    messages, MOVE_PATIENCE, lambda: self.trouble, dead=dead, most=ROOMY_BATCH
                )
                for index, one in enumerate(group):
                    tag = one.delivery.tag
                    if tag.part.lost:
                        refused.append(one)
                    elif index not in failed:
                        self._mark(one, marked, intakes)
                    elif self.closed:
                        refused.append(one)
                    else:
                        again.append(one)
                        error = failed[index]
                        if not isinstance(error, SendTimeoutError) and str(error) != said:
                            said = str(error)
                            log.error(
                                "not moved yet",
                                queue=one.delivery.message.queue,
                                id=one.delivery.message.id,
                                reason=str(error),
                            )
            left = again
            if left:
                await asyncio.sleep(1.0)


class _Subscription:
    """Implements ``handrail.adapter.Subscription``."""

    def __init__(self, asks: Asks, core: _Core, intake: Intake) -> None:
        self._asks = asks
        self._core = core
        self._intake = intake
        self._cancelled = False

    def set_credit(self, credit: int) -> None:
        more = credit > self._intake.credit
        self._intake.credit = credit
        if more and not self._core.closed:
            self._intake.later()

    def pause(self) -> None:
        self._intake.paused = True

    def resume(self) -> None:
        intake = self._intake
        intake.paused = False
        waiting = intake.take_waiting()
        if waiting:
            # through the loop, since a deliver within the caller's own call is nothing that callers expect
            asyncio.get_running_loop().call_soon(intake.arrive, waiting)
        if not self._core.closed:
            intake.later()

    async def cancel(self) -> None:
        if self._cancelled:
            return
        self._cancelled = True
        self._intake.attached = False
        if self._core.closed:
            return
        waiting = self._intake.take_waiting()
        await self._asks.run(self._core.detach(self._intake, waiting))
