"""The adapter for RabbitMQ: the port's face, and what holds connections, publisher and subscriptions together."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from handrail import duration
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
)
from handrail.errors import BrokerError, SendError
from handrail.logger import get_logger
from handrail.message import Message
from handrail_rabbitmq import place
from handrail_rabbitmq.aging import timed_out
from handrail_rabbitmq.consuming import AGAIN, Intake
from handrail_rabbitmq.deaths import Deaths
from handrail_rabbitmq.link import FORBIDDEN, Channel, GoneError, Link, Notice
from handrail_rabbitmq.looking import Looking
from handrail_rabbitmq.names import HEAD
from handrail_rabbitmq.planning import Planning
from handrail_rabbitmq.publishing import Item, Publisher, RefusedError
from handrail_rabbitmq.tags import LOST, MOVING, OPEN, Finished, Mark, mark
from handrail_rabbitmq.topology import PATIENCE, Topology

log = get_logger("handrail.rabbitmq")

T = TypeVar("T")

_UNNAMED = re.compile(r"amq\.gen-[\w-]+")
_MEND = (
    "shorten `timeout:`, or raise consumer_timeout in rabbitmq.conf and say so with `consumer_timeout:` beside the URL"
)

#: Seconds between two looks whether messages flow, and for which some must have waited in vain until everything is rebuilt.
WATCH_EVERY, STUCK_AFTER = 4.0, 30.0
#: Seconds between two looks for levels that nobody announced.
LEVELS_EVERY = 30.0
#: Seconds that other workers have to tell how much they hold.
TELL = 0.3
#: Seconds without a further answer after which all are taken to have answered, where their number is not known.
MORE = 0.1
#: Times that a full queue refuses a message that goes to its tail before that goes by the delays: a worker whose hands are full
#: of them takes nothing, and the queue would stay full; and for how many seconds it goes.
FULL, DETOUR = 4, 1.0
#: Seconds before its time at which a delivery is put back: clocks of different machines differ by less.
EARLY = 1.0

_CAPABILITIES: Mapping[Capability, bool | str] = {
    Capability.DELAY: True,
    Capability.PRIORITY: True,
    Capability.LIFO: "among the up to 200 messages that a worker has fetched",
    Capability.HEAD: True,
    Capability.FIFO: True,
    Capability.BY_KEY: False,
    Capability.BY_PARTITION: False,
    Capability.DEAD_LETTERS: "the newest 10,000 are listed; looking marks them as delivered",
    Capability.PEEK: "the first 10,000; looking takes them from the queue for a moment and marks them as delivered",
    Capability.PURGE: True,
    Capability.DEPTH: "delayed up to 10,000 on the server; active as the workers tell",
    Capability.CRASHES: "as the workers of the same machine see",
    Capability.DEAD_WORKER: True,
    Capability.PROCESSES: True,
    Capability.MACHINES: True,
    Capability.FAIR: True,
    Capability.FOREIGN: True,
}


class RabbitMQAdapter:
    """Messages on a RabbitMQ server, shared by any number of machines. Implements ``handrail.adapter.Adapter``."""

    name = "rabbitmq"
    forwards = False
    capabilities: Mapping[Capability, bool | str] = _CAPABILITIES
    #: See the constants of these names; set before :meth:`open`.
    watch_every: float = WATCH_EVERY
    stuck_after: float = STUCK_AFTER

    def __init__(self, settings: BrokerSettings) -> None:
        self.board: Path | None = None
        self._settings = settings
        self._place = place.parse(settings)
        self.hold = _hold(self._place.consumer_timeout)
        self._pid = os.getpid()
        self._open = False
        self._role: Role = "client"
        self._links: list[Link] = []
        self._spare: asyncio.Task[Link] | None = None
        self._specs: dict[str, QueueSpec] = {}
        self._intakes: list[Intake] = []
        # those whose channel the server closed, until they have another
        self._beginning: set[Intake] = set()
        #: What the server refuses of each queue, until it does not any more.
        self._faults: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._control: Channel | None = None
        self._control_queue = ""
        self._answers: dict[str, asyncio.Queue[tuple[int, int]]] = {}

    @property
    def place(self) -> str:
        return self._place.shown

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self, role: Role) -> None:
        if self._open:
            raise BrokerError(f"{self.place}: is open already")
        notice = Notice(self.place)
        self._publish_link = Link("publish", self._place, notice)
        self._links = [self._publish_link]
        # the server blocks a connection that publishes as a whole, so a worker takes and settles on another
        self._link = self._publish_link if role == "client" else Link("consume", self._place, notice)
        if self._link is not self._publish_link:
            self._links.append(self._link)
        self._spare = None
        self._topology = Topology(self._place, self._settings.prefix, self._read)
        self._publisher = Publisher(self._publish_link, self._topology)
        self._topology.made_level = self._made_level
        self._looking = Looking(self._topology, self._publisher)
        self._finished = Finished()
        hosts = ",".join(sorted(f"{host}:{port}" for host, port in self._place.hosts))
        where = f"{hosts}/{self._place.vhost}/{self._settings.prefix}"
        self._deaths = Deaths(where)
        self._open, self._role, self._pid = True, role, os.getpid()
        self._publish_link.on_up = self._publisher.begin
        self._publish_link.on_change = self._publisher.unblocked
        if role == "worker":
            self._link.on_up = self._take_up
        try:
            if role == "worker" and self.board is not None:
                self._deaths.begin(self.board)
            for link in self._links:
                await link.start()
        except BaseException:
            await self.close()
            raise
        if role == "worker":
            self._spawn(self._watch())

    async def close(self) -> None:
        if not self._open or self._pid != os.getpid():
            self._open = False
            return
        self._open = False
        await asyncio.gather(*(intake.end() for intake in self._intakes))
        self._intakes.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._publisher.close()
        await asyncio.gather(*(link.end() for link in self._links))
        self._deaths.end()

    async def _read(self) -> Link:
        """A connection on which the server reads what it is asked: under an alarm it does not where anything was published."""
        if not self._link.blocked:
            return self._link
        if self._spare is None or (self._spare.done() and self._spare.exception() is not None):
            self._spare = self._spawn(self._connect_spare())
        return await asyncio.shield(self._spare)

    async def _connect_spare(self) -> Link:
        link = Link("look", self._place, Notice(self.place))
        self._links.append(link)
        try:
            await link.start()
        except BrokerError:
            self._links.remove(link)
            raise
        return link

    def _check(self) -> None:
        if not self._open:
            raise BrokerError(f"{self.place}: is not open")
        if self._pid != os.getpid():
            raise BrokerError(f"{self.place}: was opened before this process forked; open an adapter of its own here")

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._check()
        for spec in queues:
            self._topology.check(spec)
            self._specs[spec.name] = spec
        self._topology.remember(queues)
        if self._link.up:
            await self._topology.declare(queues)
            if self._topology.never and self._role == "worker":
                await self._topology.tell_missing(queues)

    async def plan(self, queues: Sequence[QueueSpec]) -> list[Planned]:
        kept = self._place
        # by the same means as where operators own the topology: whoever may make nothing makes nothing
        self._place = msgspec.structs.replace(kept, declare="never")
        try:
            await self.open("client")
            for spec in queues:
                self._topology.check(spec)
            self._topology.remember(queues)
            await self._link.ready(PATIENCE)
            planning = Planning(self._topology, self._publisher, self._looking, never=kept.declare == "never")
            return await self._looked(planning.plan(queues))
        finally:
            self._place = kept
            await self.close()

    # --- sending and settling -----------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message], timeout: float) -> dict[int, SendError]:
        self._check()
        return await self._publisher.publish(messages, timeout)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        self._check()
        refused: list[Settlement] = []
        touched: dict[Intake, None] = {}
        releases: list[Delivery] = []
        moves: list[tuple[Settlement, Item, asyncio.Future[SendError | None]]] = []
        acked: list[Mark] = []
        for one in settlements:
            delivery, verb = one.delivery, one.verb
            tag = delivery.tag
            intake: Intake = tag.intake
            if tag.state != OPEN:
                refused.append(one)
                intake.ended(delivery)
                continue
            touched[intake] = None
            if verb is Verb.ACK or (verb is Verb.DEAD and self._topology.dead(intake.spec.name) is None):
                intake.ack(delivery)
                acked.append(mark(delivery))
            elif one.message is None and tag.number in intake.crashed:
                # its crashes are known here alone, so it goes back with them
                moves.append((one, *self._move(one, intake)))
            elif one.message is None:
                releases.append(delivery)
            else:
                moves.append((one, *self._move(one, intake)))
        if moves or releases:
            for intake in touched:  # acknowledgements do not wait for what may have to wait
                with contextlib.suppress(GoneError):
                    intake.flush()
        # while some go back, others may be left behind on another channel, or be gone: and gone means given back
        while releases := [delivery for delivery in releases if delivery.tag.state == OPEN]:
            intake = releases[0].tag.intake
            mine = [delivery for delivery in releases if delivery.tag.intake is intake]
            touched[intake] = None
            with contextlib.suppress(GoneError):
                await (intake.give_back_hidden(mine) if intake.cancelled else intake.release(mine))
        if moves:
            acked += await self._moved(moves, refused)
            # some may have been left behind on another channel meanwhile
            touched |= dict.fromkeys(one.delivery.tag.intake for one, _item, _fate in moves)
        for intake in touched:
            await self._confirm(intake, acked)
        return refused

    def _move(self, one: Settlement, intake: Intake) -> tuple[Item, asyncio.Future[SendError | None]]:
        """Publish what is to stand on the server in place of the delivery."""
        message = one.message if one.message is not None else one.delivery.message
        one.delivery.tag.state = MOVING
        fate: asyncio.Future[SendError | None] = asyncio.get_running_loop().create_future()

        def done(item: Item, error: SendError | None) -> None:
            item.gone = True
            if not fate.done():
                fate.set_result(error)

        if one.verb is Verb.DEAD:
            item = Item(message, done, dead=self._topology.dead(intake.spec.name))
        else:
            item = Item(message, done, level=HEAD if one.verb is Verb.RELEASE else None)
        self._publisher.put(item)
        return item, fate

    async def _moved(
        self, moves: list[tuple[Settlement, Item, asyncio.Future[SendError | None]]], refused: list[Settlement]
    ) -> list[Mark]:
        """Wait until each is confirmed, and mark the originals; what was lost meanwhile is refused."""
        acked: list[Mark] = []
        told = False
        full = 0
        while moves:
            await asyncio.wait([fate for _one, _item, fate in moves], timeout=0.25)
            again: list[tuple[Settlement, Item, asyncio.Future[SendError | None]]] = []
            failed: list[tuple[Settlement, SendError]] = []
            for one, item, fate in moves:
                tag = one.delivery.tag
                if not fate.done():
                    if tag.state == LOST:
                        item.gone = True
                        tag.intake.ended(one.delivery)
                        refused.append(one)
                    else:
                        again.append((one, item, fate))
                elif (error := fate.result()) is None:
                    if tag.state == LOST:
                        # its copy stands; the original comes again and is acknowledged then
                        self._finished.add(mark(one.delivery))
                    else:
                        tag.intake.ack(one.delivery)
                        acked.append(mark(one.delivery))
                elif tag.state == LOST:
                    tag.intake.ended(one.delivery)
                    refused.append(one)
                else:
                    failed.append((one, error))
            if failed:
                self._check()
                if not told:
                    told = True
                    queue, reason = failed[0][0].delivery.tag.intake.spec.name, str(failed[0][1])
                    log.warning("cannot move a message; trying again", queue=queue, reason=reason)
                await asyncio.sleep(AGAIN)
                full += 1
                for one, error in failed:
                    tag = one.delivery.tag
                    if tag.state == LOST:
                        tag.intake.ended(one.delivery)
                        refused.append(one)
                        continue
                    detour = full >= FULL and not self._topology.never  # where the delays may be missing there is none
                    if detour and one.verb is Verb.MOVE and isinstance(error, RefusedError):
                        _detour(one)
                    again.append((one, *self._move(one, tag.intake)))
            moves = again
        return acked

    async def _confirm(self, intake: Intake, acked: list[Mark]) -> None:
        """Send acknowledgements and wait until the server has them: an answer to something after them."""
        try:
            channel = await intake.pass_on()
            if channel is None:
                raise GoneError("no channel")
            await channel.fence()
        except GoneError:
            for finished in acked:
                if finished[0] == intake.full:
                    self._finished.add(finished)

    # --- taking -------------------------------------------------------------------------------------------------------

    async def subscribe(
        self,
        queue: QueueSpec,
        credit: int,
        deliver: Deliver,
        lost: Lost,
        recall: Recall | None = None,  # noqa: ARG002 - no message is better elsewhere
    ) -> Subscription:
        self._check()
        if self._role != "worker":
            raise BrokerError(f"{self.place}: was opened to send; only a worker subscribes")
        self._topology.check(queue)
        self._topology.remember([queue])
        self._specs[queue.name] = queue
        intake = Intake(
            self._link,
            queue,
            self._topology.full(queue.name),
            credit,
            deliver,
            lost,
            quorum=self._topology.kind(queue.name) == "quorum",
            finished=self._finished,
            undue=self._undue,
            crashes=self._deaths.crashes,
            completed=self._deaths.completed,
            gone=self._gone,
        )
        self._intakes.append(intake)
        if self._link.up:
            try:
                await self._begin(intake)
                await intake.settled_in()
            except (GoneError, BrokerError) as error:
                refused = not isinstance(error, GoneError) or error.code == FORBIDDEN
                if self._link.up and refused:
                    intake.cancelled = True
                    self._intakes.remove(intake)
                    raise self._topology.refusal(error) if isinstance(error, GoneError) else error from error
                log.debug("not subscribed yet", queue=queue.name, reason=str(error))
                if self._link.up:  # otherwise it comes with the next connection
                    self._spawn(self._again(intake))
        return intake

    async def _begin(self, intake: Intake) -> None:
        """Subscribe, levels and all. Raises :class:`GoneError` and :class:`BrokerError`."""
        if (control := await self._listen()) is not None:
            registry = self._topology.names.registry
            await control.ask(control.raw.queue_bind, self._control_queue, registry, f"{intake.full}!")
        levels = await self._levels(intake)
        if intake.channel is None and not intake.cancelled:
            await intake.begin(levels)

    async def _levels(self, intake: Intake) -> set[int | str]:
        if not self._publish_link.up or self._publish_link.blocked:
            return set()  # the watch finds them later
        return set(await self._looking.levels(intake.spec.name))

    async def _take_up(self) -> None:
        """On a new connection: everything that was on the last one."""
        self._topology.forget()
        self._control = None
        specs = list(self._specs.values())
        for some in [specs] if self._topology.never else [[spec] for spec in specs]:
            try:
                await self._topology_declare(some)
                for one in some:
                    self._faults.pop(one.name, None)
            except BrokerError as error:
                if not self._link.up:
                    raise GoneError(self._link.trouble) from error
                self._refused("a queue cannot be used", [one.name for one in some], error)
        self._intakes = [intake for intake in self._intakes if not intake.cancelled]
        for intake in self._intakes:
            try:
                await self._begin(intake)
            except (GoneError, BrokerError) as error:
                if not self._link.up:
                    raise GoneError(self._link.trouble) from error
                if isinstance(error, GoneError) and error.code != FORBIDDEN:
                    raise
                self._refused("cannot subscribe", [intake.spec.name], error)
                self._spawn(self._again(intake))

    async def _topology_declare(self, specs: list[QueueSpec]) -> None:
        self._link.usable()  # declaring waits for a connection that is ready, and this is part of making it so
        await self._topology.declare(specs)

    def _gone(self, intake: Intake, channel: Channel) -> None:
        """The intake's channel closed; when the connection stands, it was the channel alone."""
        if (limit := timed_out(channel)) is not None:
            log.error(
                "the server took back what was in hand for too long; it may run a second time",
                queue=intake.spec.name,
                limit=duration.text(limit),
                mend=_MEND,
            )
            if self.hold is None or limit < self.hold.seconds:
                self.hold = _hold(limit)
        if self._open and self._link.up and not intake.cancelled:
            if channel.code:  # otherwise we closed it, and have said why
                log.warning(
                    "the server closed the channel of a queue; subscribing again",
                    queue=intake.spec.name,
                    reason=channel.reason,
                )
            self._spawn(self._again(intake))

    async def _again(self, intake: Intake) -> None:
        if intake in self._beginning:
            return
        self._beginning.add(intake)
        pause = AGAIN
        try:
            while self._open and not intake.cancelled:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
                if not self._link.up or intake.channel is not None:
                    return
                try:
                    self._topology.forget()
                    await self._topology.declare([intake.spec])
                    await self._begin(intake)
                    await intake.settled_in()
                except (GoneError, BrokerError) as error:
                    self._refused("cannot subscribe", [intake.spec.name], error)
                    continue
                if intake.channel is not None:
                    self._faults.pop(intake.spec.name, None)
                    return
        finally:
            self._beginning.discard(intake)

    def _refused(self, event: str, queues: list[str], error: GoneError | BrokerError) -> None:
        """Tell it, once, and remember it for :meth:`health`."""
        if isinstance(error, GoneError) and error.code == FORBIDDEN:
            error = self._topology.refusal(error)
        # the server names a queue that it made a name for, a new one at each try
        reason = _UNNAMED.sub("amq.gen", str(error))
        if any(self._faults.get(queue) != reason for queue in queues):
            log.error(event, queue=", ".join(queues), reason=reason)
        self._faults |= dict.fromkeys(queues, reason)

    def _undue(self, delivery: Delivery) -> bool:
        """Put a delivery back that is not due: its delay was longer than the delays reach."""
        message = delivery.message
        if message.due is None or message.due <= time.time() + EARLY:
            return False
        self._spawn(self.settle([Settlement(delivery, Verb.MOVE, message)]))
        return True

    async def _watch(self) -> None:
        """Look whether messages flow, and for levels that nobody announced."""
        last = 0.0
        loop = asyncio.get_running_loop()
        while True:
            hold = self.hold.seconds if self.hold is not None else math.inf
            await asyncio.sleep(min(self.watch_every, hold / 8))
            for intake in self._intakes:
                intake.look_at_ages(hold / 2)
            for intake in list(self._intakes):
                if self._link.up and await self._waited(intake) >= self.stuck_after:
                    log.warning("messages wait and none comes; connecting anew", queue=intake.spec.name)
                    self._link.rebuild(f"messages of {intake.spec.name!r} waited and none came")
            if self._link.up and loop.time() - last > LEVELS_EVERY:
                last = loop.time()
                for intake in list(self._intakes):
                    try:
                        for level in await self._levels(intake):
                            intake.add_level(level)
                    except (GoneError, BrokerError) as error:
                        log.debug("levels not looked for", queue=intake.spec.name, reason=str(error))

    async def _waited(self, intake: Intake) -> float:
        """See ``Intake.waited``; each on a channel of its own, for a queue that is gone closes it."""
        try:
            async with self._topology.channel() as channel:
                return await intake.waited(channel)
        except BrokerError as error:
            log.debug("not watched", queue=intake.spec.name, reason=str(error))
            return 0.0

    # --- what workers tell each other ---------------------------------------------------------------------------------

    async def _listen(self) -> Channel | None:
        """A queue of this process's own, for what others announce and ask; None where there is no registry to do it by."""
        if self._control is not None and self._control.reason is None:
            return self._control
        if not await self._topology.make_registry():
            return None
        channel = await (await self._read()).channel()
        raw = channel.raw
        declared = await channel.ask(raw.queue_declare, "", exclusive=True, auto_delete=True)
        self._control_queue = declared.queue
        await channel.ask(
            raw.basic_consume, declared.queue, on_message_callback=self._on_note, auto_ack=True, exclusive=True
        )
        self._control = channel
        return channel

    def _made_level(self, full: str, level: int | str) -> None:
        for intake in self._intakes:
            if intake.full == full:
                intake.add_level(level)
        self._publisher.announce(f"{full}!", msgspec.json.encode(level))

    def _on_note(self, _raw: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            note = msgspec.json.decode(body)
            if isinstance(note, list):  # an answer: whose, how many, and for how many consumers
                if (waiting := self._answers.get(str(note[0]))) is not None:
                    waiting.put_nowait((int(note[1]), int(note[2]) if len(note) > 2 else 1))
                return
            full = method.routing_key.removesuffix("!")
            if isinstance(note, dict):  # a question
                mine = [intake for intake in self._intakes if intake.full == full]
                held = sum(len(intake.in_hand()) for intake in mine)
                reply = msgspec.json.encode([note["ask"], held, _voices(mine)])
                self._publisher.answer(properties.reply_to, reply)
                return
            for intake in self._intakes:
                if intake.full == full:
                    intake.add_level(note)
        except Exception as error:  # noqa: BLE001 - anybody may write here, and an exception ends pika's connection
            log.debug("a note that cannot be read", reason=str(error))

    async def _active(self, queue: str, consumers: int) -> int | None:
        """How many messages workers have in their hands; None when one of them does not say."""
        full = self._topology.full(queue)
        mine = [intake for intake in self._intakes if intake.full == full]
        held = sum(len(intake.in_hand()) for intake in mine)
        others = consumers - sum(intake.consumers for intake in mine)
        # a classic queue forgets a consumer that was cancelled, whatever that one still holds
        blind = self._topology.never or self._topology.kind(queue) == "classic"
        if others <= 0 and not blind:
            return held
        if await self._listen() is None:
            return held if others <= 0 else None
        ask = os.urandom(8).hex()
        answers = self._answers[ask] = asyncio.Queue()
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def told(_item: Item, error: SendError | None) -> None:
            if not heard.done():
                heard.set_result(error is None)

        expected = max(others, 0) + (_voices(mine) if mine else 0)
        total = count = 0
        try:
            self._publisher.announce(f"{full}!", msgspec.json.encode({"ask": ask}), self._control_queue, told)
            async with asyncio.timeout(TELL):
                if not await heard:
                    return held if others <= 0 else None  # nobody listens
            while count < max(expected, 1):
                async with asyncio.timeout(TELL):
                    held, voices = await answers.get()
                total += held
                count += voices
            while blind:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MORE):
                        total += (await answers.get())[0]
                    continue
                break
        except TimeoutError:
            return None
        finally:
            del self._answers[ask]
        return total

    # --- looking and tidying ------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        self._check()
        try:
            # what the server wrote to this connection before comes first, and its end too
            (await self._link.channel()).close()
        except GoneError as error:
            log.debug("the connection is lost, and with it what was in hand", reason=str(error))

    async def depth(self, queue: str) -> Depth:
        self._check()
        try:
            for _ in range(3):  # the server tells for a moment of consumers that have left
                ready, delayed, dead, consumers = await self._looking.depth(queue)
                if ready is None:
                    return Depth(None, None, None, None)
                active = await self._active(queue, consumers)
                if active is not None:
                    break
            return Depth(ready, delayed, active, dead)
        except GoneError as error:
            raise BrokerError(f"{self.place}: {error}") from error

    async def peek(self, queue: str, state: State, limit: int, offset: int = 0) -> list[Message]:
        self._check()
        if state == "active":
            full = self._topology.full(queue)
            held = [one.message for intake in self._intakes if intake.full == full for one in intake.in_hand()]
            return held[offset : offset + limit]
        return (await self._looked(self._looking.messages(queue, state, offset + limit)))[offset : offset + limit]

    async def find(self, queue: str, state: State, message_id: str) -> Message | None:
        self._check()
        for message in await self._looked(self._looking.messages(queue, state, 10_000)):
            if message.id == message_id:
                return message
        return None

    async def purge(self, queue: str, state: State, ids: Sequence[str] | None = None) -> int:
        self._check()
        return 0 if state == "active" else await self._looked(self._looking.purge(queue, state, ids))

    async def replay(self, queue: str, ids: Sequence[str] | None = None) -> int:
        self._check()
        return await self._looked(self._looking.replay(queue, ids))

    async def _looked(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return await coroutine
        except GoneError as error:
            raise BrokerError(f"{self.place}: {error}") from error

    # --- health -------------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        if not self._open:
            return Health(up=False, detail=f"{self.place}: is not open")
        for link in self._links:
            if link.state:
                return Health(up=False, detail=f"{self.place}: {link.state}")
        for fault in self._faults.values():
            return Health(up=False, detail=fault)
        for intake in self._intakes:
            if not intake.subscribed:
                return Health(up=False, detail=f"{self.place}: not subscribed to {intake.spec.name!r}")
            if intake.doubted:
                return Health(up=False, detail=f"{self.place}: messages of {intake.spec.name!r} wait and none comes")
        return Health(up=True, detail=self.place)


def _voices(intakes: list[Intake]) -> int:
    """For how many consumers of a queue one answer speaks; one that consumes nothing now may still hold something."""
    return max(1, sum(intake.consumers for intake in intakes))


def _hold(seconds: float | None) -> Hold | None:
    return Hold(seconds, _MEND) if seconds is not None else None


def _detour(one: Settlement) -> None:
    """Let the same move go by the delays."""
    assert one.message is not None
    one.message = msgspec.structs.replace(one.message, due=max(one.message.due or 0.0, time.time() + DETOUR))
