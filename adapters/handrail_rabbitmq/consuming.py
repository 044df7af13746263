"""One worker's claim on one queue: credit, order across priorities, acknowledgements, and what is lost with a channel.

A queue's messages stand in several queues of the server: the queue itself, one a further priority, and one for interrupted
work that goes to the head. All are consumed on one channel. What arrives beyond the credit is *hidden*: kept here, in order
of priority, and given back untouched when it has waited for a moment, so that nobody hoards.

The server fixes a consumer's prefetch when it starts (quorum queues know no other way). So a change of credit is a new
consumer, and the hidden deliveries take up what a window is off meanwhile.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

from pika import BasicProperties

from handrail.adapter import Deliver, Delivery, Lost, QueueSpec
from handrail.logger import get_logger
from handrail.message import DEFAULT_PRIORITY, Message
from handrail_rabbitmq import wire
from handrail_rabbitmq.aging import Ages, Astray, timed_out
from handrail_rabbitmq.frames import Take
from handrail_rabbitmq.link import FORBIDDEN, Channel, GoneError, Link
from handrail_rabbitmq.names import HEAD, level_queue
from handrail_rabbitmq.requeueing import LOOK_EVERY, put_back
from handrail_rabbitmq.tags import DONE, LOST, OPEN, Consumer, Finished, Level, Tag
from handrail_rabbitmq.unsettled import Unsettled

log = get_logger("handrail.rabbitmq")

#: Seconds that a delivery may stay hidden while every slot is taken, before it goes back to the server.
STALE = 0.1
#: The same for one that would not go back to its place while nobody else takes from the queue.
ALONE = 1.0
#: The same for all of them when the subscription ends, and nothing of it was given back.
LEAVING = 1.0
#: Seconds to wait at most for the deliveries that a new consumer should bring, before the best of what came is taken.
GATHER = 0.25
#: The least that is fetched of a queue that is served newest first: order goes no further than that.
LIFO_WINDOW = 200
#: Seconds of work that is fetched beyond the credit of each level when there are several.
LOOKAHEAD = 0.02
#: Seconds between replacements of a consumer by one with another prefetch.
REPLACE_EVERY = 0.05
#: Seconds for which a channel stays open at most until the queue has done all that it was told.
LAST_WORDS = 2.0
#: Seconds for which acknowledgements are held back at most until nothing is on its way to a consumer that is to end.
QUIET = 1.0
#: Seconds for what went back before to come once more, so that all can go back in its order.
FETCH = 1.0
#: Seconds before a queue whose channel the server closed is subscribed again.
AGAIN = 0.5


def _rank(delivery: Delivery) -> tuple[int, int, int]:
    rank: tuple[int, int, int] = delivery.tag.rank
    return rank


class Intake:
    """Implements ``handrail.adapter.Subscription``."""

    def __init__(
        self,
        link: Link,
        spec: QueueSpec,
        full: str,
        credit: int,
        deliver: Deliver,
        lost: Lost,
        *,
        quorum: bool,
        finished: Finished,
        undue: Callable[[Delivery], bool],
        crashes: Callable[[str, str], int],
        completed: Callable[[Message], bool],
        gone: Callable[[Intake, Channel], None],
    ) -> None:
        self._link = link
        self.spec = spec
        self.full = full
        #: The most that may be held on the channel; what :meth:`set_credit` says, less what the rests hold.
        self.credit = self._wanted = credit
        self._deliver = deliver
        self._lost = lost
        self._finished = finished
        self._undue = undue
        self._crashes = crashes
        self._completed = completed
        self._on_gone = gone
        self._loop = asyncio.get_running_loop()
        self._lifo = spec.order == "lifo"
        self._quorum = quorum
        #: Since it was cancelled: see :meth:`_consumers_counted`.
        self._counted: dict[Level, int] = {}
        self.channel: Channel | None = None
        #: Levels that exist on the server, the queue itself among them.
        self.levels: set[Level] = {DEFAULT_PRIORITY}
        self._consumers: dict[Level, Consumer] = {}
        #: Delivered to the dispatcher and not settled, by delivery tag.
        self.held: dict[int, Delivery] = {}
        self._hidden: list[Delivery] = []
        self._arrived: list[Delivery] = []
        self.unsettled = Unsettled()
        self.paused = False
        self.cancelled = False
        # what the server said when it closed the channel because the user has no right to consume
        self._forbidden = ""
        #: When something last came, on the loop's clock.
        self.came = self._loop.time()
        # the first of the looks, without a break, that saw messages wait in vain; and how long that was at the last one
        self._waiting_since = 0.0
        self._in_vain = 0.0
        #: How many are still awaited of the consumers that start, which levels these have, and how many came of those.
        self._gathering = 0
        self._starting: set[Level] = set()
        self._gathered = 0
        self._gather_timer: asyncio.TimerHandle | None = None
        self._stale: asyncio.TimerHandle | None = None
        self._give_back = False
        #: Whether acknowledgements go out; and the consumers of whose deliveries some wait.
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._acking: set[Consumer] = set()
        #: What was given back, by level, and has not come again: a quorum queue has it before all else, and what is given back
        #: next behind it.
        self._returned: dict[Level, int] = {}
        #: Nothing is delivered for a moment, for it is to go back.
        self._collecting = False
        #: What is to go back while others are in hand, and who waits for that.
        self._releasing: list[Delivery] = []
        self._released: list[asyncio.Future[None]] = []
        self._worker: asyncio.Task[None] | None = None
        self._again = False
        self._replaced = 0.0
        self._settled = 0
        self._rate = 0.0
        self._measured = self._loop.time()
        self._keep: set[Any] = set()
        self._ages = Ages()
        self._aged = False
        #: What is so old that it stays behind on a channel of its own.
        self._rests: list[Rest] = []
        self._astray = Astray(self._loop.call_later, lost)
        #: Messages whose crashes are known here and not on the server.
        self.crashed: set[int] = set()

    # --- the port -----------------------------------------------------------------------------------------------------

    def set_credit(self, credit: int) -> None:
        self._wanted = credit
        self.recount()

    def recount(self) -> None:
        """The rests hold more or less than before."""
        self.credit = (
            max(0, self._wanted - sum(len(rest.held) for rest in self._rests)) if self._rests else self._wanted
        )
        self._pump()

    def in_hand(self) -> list[Delivery]:
        """All that the server has given us and that is not settled."""
        return [
            *(delivery for rest in self._rests for delivery in rest.held.values()),
            *self.held.values(),
            *self._hidden,
        ]

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self._kick()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.came = self._loop.time()
            # through the loop, since a deliver within the caller's own call is nothing that callers expect
            self._loop.call_soon(self._pump)

    async def cancel(self) -> None:
        self.cancelled = True
        self._kick()
        while self._worker is not None:
            await asyncio.shield(self._worker)
        if self._quorum and self.channel is not None:
            with contextlib.suppress(GoneError):
                self._counted = await self._consumers_counted(self.channel)
        if self._hidden:
            # with what the dispatcher gives back in a moment, for that was before them
            self._loop.call_later(LEAVING if self.held else 0.0, self._give_back_later)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def begin(self, levels: set[Level]) -> None:
        """On a new connection, or after the channel closed: consume. Raises :class:`GoneError`."""
        self.levels |= levels
        self._adopt(await self._link.channel())
        self._forbidden = ""
        self._kick()

    def _adopt(self, channel: Channel) -> None:
        channel.on_close = lambda: self._gone(channel)
        channel.raw.add_on_cancel_callback(self._on_cancelled_by_server)
        self.channel = channel
        self.came = self._loop.time()
        self._ages.forget(self.came)

    async def settled_in(self) -> None:
        """Returns when the consumers are as they should be. Raises :class:`GoneError` when the user may not consume."""
        while self._worker is not None:
            await asyncio.shield(self._worker)
        if self._forbidden:
            raise GoneError(self._forbidden, FORBIDDEN)

    def _gone(self, channel: Channel) -> None:
        """The channel is gone: nothing that came on it is ours any more."""
        if self.channel is not channel:
            return
        self.channel = None
        if channel.code == FORBIDDEN:
            self._forbidden = channel.reason or ""
        lost = list(self.held.values())
        for delivery in (*lost, *self._hidden, *self._arrived):
            delivery.tag.state = LOST
        self.held.clear()
        self._hidden.clear()
        self._arrived.clear()
        self.unsettled.clear()
        self._consumers.clear()
        self._returned.clear()
        self._acking.clear()
        self.crashed.clear()
        self._end_gathering()
        if lost:
            self._lose(lost, channel)
        self._on_gone(self, channel)

    def _lose(self, lost: list[Delivery], channel: Channel) -> None:
        if timed_out(channel) is not None and not self.cancelled:
            self._astray.add(lost)
        else:
            self._lost(lost)

    async def end(self) -> None:
        """Give everything back, in order, and close the channel."""
        self.cancelled = True
        for rest in self._rests:
            await rest.end()
        self._kick()
        if self._worker is not None:
            # what is given back while a consumer stands would come to it again
            await asyncio.wait([self._worker], timeout=2.0)
        channel = self.channel
        if channel is None:
            return
        with contextlib.suppress(GoneError):
            self.unsettled.flush(channel)
            if self._counted and not (self.held or self._hidden or self._arrived):
                await self._all_done(channel)
        self.channel = None
        for delivery in (*self.held.values(), *self._hidden, *self._arrived):
            delivery.tag.state = LOST
        # a channel that closes gives all back at once, in order
        channel.close()

    async def _consumers_counted(self, channel: Channel) -> dict[Level, int]:
        """For each level of what is in hand: the consumers its queue will have when the server is done with all of that.

        A quorum queue counts a cancelled consumer until all that it was given is settled.
        """
        given = (*self.held.values(), *self._hidden, *self._arrived)
        return {
            level: (await channel.count(level_queue(self.full, level))).consumers - len(_tags(given, level))
            for level in {one.tag.consumer.level for one in given}
        }

    async def _all_done(self, channel: Channel) -> None:
        """Returns when the queues have done what they were told, as far as can be seen, or after a while.

        A channel has 32 commands to a quorum queue under way. What is beyond waits in it, and is forgotten when it closes.
        """
        until = self._loop.time() + LAST_WORDS
        for level, left in self._counted.items():
            while (await channel.count(level_queue(self.full, level))).consumers > left and self._loop.time() < until:
                await asyncio.sleep(LOOK_EVERY)

    # --- what comes ---------------------------------------------------------------------------------------------------

    def _taker(self, channel: Channel, consumer: Consumer) -> Take:
        queue = self.spec.name

        def take(number: int, redelivered: bool, properties: bytes | BasicProperties, body: bytes) -> None:
            if self.channel is not channel:
                return  # given up; its tags mean something else on the next one
            try:
                self._take(consumer, number, redelivered, wire.message(queue, properties, body))
            except Exception:  # an exception in a callback ends pika's connection
                log.exception("taking a delivery failed", queue=queue)
                self._link.rebuild("taking a delivery failed")

        return take

    def _take(self, consumer: Consumer, number: int, redelivered: bool, message: Message) -> None:
        consumer.unsettled += 1
        if self._returned:
            if redelivered and (left := self._returned.get(consumer.level, 0) - 1) > 0:
                self._returned[consumer.level] = left
            else:
                self._returned.pop(consumer.level, None)
        if consumer.unsettled >= consumer.prefetch:
            consumer.full = True
        self.unsettled.numbers.append(number)
        counts = (message.attempts, message.starts, message.due)
        delivery = Delivery(message, Tag(self, consumer, number, counts), redelivered)
        if self._gathering and consumer.level in self._starting:
            self._gathered += 1
            self._gathering -= 1
            if not self._gathering:
                self._end_gathering()
        if redelivered:
            if self._finished.has(delivery) or self._completed(message):
                self.ack(delivery)
                self.flush()
                return
            if self._astray and (stray := self._astray.back(message)) is not None:
                # it still runs here: what it held was taken back, and now it holds this
                stray.tag = delivery.tag
                self.held[number] = stray
                return
            crashes = self._crashes(self.spec.name, message.id)
            if crashes > message.crashes:
                message.crashes = crashes
                self.crashed.add(number)
        if message.due is not None and self._undue(delivery):
            self.held[number] = delivery
            return
        if not self._arrived:
            self._loop.call_soon(self._sort_in)
        self._arrived.append(delivery)

    def _sort_in(self) -> None:
        arrived, self._arrived = self._arrived, []
        if not arrived:
            return
        self.came = self._loop.time()
        if (
            not self._hidden
            and not self._lifo
            and len(self.levels) == len(self._consumers) == 1
            and not (self.paused or self.cancelled or self._gathering or self._releasing or self._collecting)
            and len(arrived) <= self.credit - len(self.held)
        ):
            # the usual case: one level, and room for all
            for delivery in arrived:
                self.held[delivery.tag.number] = delivery
            self._deliver(arrived)
            return
        self._hide(arrived)
        self._pump()

    def _hide(self, arrived: list[Delivery]) -> None:
        hidden = self._hidden
        for delivery in arrived:
            tag: Tag = delivery.tag
            level, number = tag.consumer.level, -tag.number if self._lifo else tag.number
            tag.rank = (-(delivery.message.priority if level == HEAD else int(level)), level != HEAD, number)
            if hidden and hidden[-1].tag.rank > tag.rank:
                bisect.insort(hidden, delivery, key=_rank)
            else:
                hidden.append(delivery)

    def _pump(self) -> None:
        """Deliver the best of the hidden, as far as there is room; look after the consumers."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._hide(arrived)
        if self.channel is None or self.cancelled:
            return
        if not (self.paused or self._gathering or self._releasing or self._collecting):
            free = self.credit - len(self.held)
            # while a level has no consumer something better may wait there
            if free > 0 and self._hidden and len(self._consumers) == len(self.levels):
                batch = self._hidden[:free]
                del self._hidden[:free]
                for delivery in batch:
                    self.held[delivery.tag.number] = delivery
                self._give_back = False
                self._deliver(batch)
            if self._hidden and self._stale is None and not self._lifo:
                self._stale = self._loop.call_later(STALE, self._too_long, self._hidden[-1])
        if self._wants_work():
            self._kick()

    def _too_long(self, last: Delivery | None) -> None:
        self._stale = None
        if not self._hidden:
            return
        if last is None or self._hidden[-1] is last or last in self._hidden:
            self._give_back = True
            self._kick()
        else:
            self._pump()

    def _end_gathering(self) -> None:
        self._gathering = 0
        if self._gather_timer is not None:
            self._gather_timer.cancel()
            self._gather_timer = None
        self._loop.call_soon(self._pump)

    # --- what goes ----------------------------------------------------------------------------------------------------

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge with the next :meth:`flush`."""
        tag: Tag = delivery.tag
        tag.state = DONE
        tag.consumer.unsettled -= 1
        tag.consumer.acked += 1
        self._acking.add(tag.consumer)
        self.held.pop(tag.number, None)
        self.unsettled.ack(tag.number)
        self._settled += 1

    async def give_back(self, deliveries: list[Delivery]) -> None:
        """Give *deliveries* back untouched, in the order in which they came. Raises :class:`GoneError`."""
        for delivery in deliveries:
            tag: Tag = delivery.tag
            tag.state = DONE
            tag.consumer.unsettled -= 1
            self.held.pop(tag.number, None)
            self.unsettled.give_back(tag.number)
        channel = self.channel
        if channel is None or not deliveries:
            return
        if self.cancelled and not self.held and not self._hidden:
            self.unsettled.flush(channel)
            self.channel = None
            channel.close()
        else:
            await self._send_back(channel, deliveries)

    async def _send_back(self, channel: Channel, deliveries: list[Delivery]) -> None:
        for level in {one.tag.consumer.level for one in deliveries}:
            mine = [one for one in deliveries if one.tag.consumer.level == level]
            # a quorum queue counts a consumer until all is settled that it was given
            ours = _tags((*mine, *self.held.values()), level)
            numbers = sorted(one.tag.number for one in mine)
            if self._quorum:
                self._returned[level] = self._returned.get(level, 0) + len(mine)
            await put_back(channel, level_queue(self.full, level), numbers, ours=len(ours))

    async def release(self, deliveries: list[Delivery]) -> None:
        """Give *deliveries* back while others are in hand: what came after them goes back too, and comes again behind them.

        Raises :class:`GoneError`.
        """
        self._releasing += deliveries
        released = self._loop.create_future()
        self._released.append(released)
        self._kick()
        if self._worker is not None:
            await released
        if rest := [one for one in deliveries if one.tag.state == OPEN]:
            await self.give_back(rest)

    async def _release(self, channel: Channel) -> None:
        levels = {one.tag.consumer.level for one in self._releasing}
        await self._collect(channel, levels)
        releasing, self._releasing = self._releasing, []
        waiters, self._released = self._released, []
        behind = [one for one in self._hidden if one.tag.consumer.level in levels]
        self._hidden = [one for one in self._hidden if one.tag.consumer.level not in levels]
        try:
            await self.give_back([*behind, *(one for one in releasing if one.tag.state == OPEN)])
        finally:
            _tell(waiters)

    async def _collect(self, channel: Channel, levels: Iterable[Level]) -> None:
        """Have among the hidden all of *levels* that must go back with what is before it, and nothing more on its way."""
        self._collecting = True
        try:
            for level in levels:
                # a consumer that went on would bring what is given back before what is on its way to it
                if level in self._consumers:
                    await self._stop(channel, self._consumers[level])
                left = self._returned.get(level, 0)
                if left and not await self._shared(channel, level):
                    one = await self._consume(channel, level, min(left, 65535))
                    until = self._loop.time() + FETCH
                    while self._returned.get(level) and self._loop.time() < until:
                        await asyncio.sleep(0.002)
                    await self._stop(channel, one)
                # whoever else takes from it has them, or they are purged
                self._returned.pop(level, None)
            self._hide(self._arrived)
            self._arrived = []
        finally:
            self._collecting = False
            self._loop.call_soon(self._pump)  # whatever was to be done with them, it may be over by now

    async def _shared(self, channel: Channel, level: Level) -> bool:
        """Whether others take from *level* too; looked for thrice, since what is done with counts for a moment."""
        mine = _tags((*self.held.values(), *self._hidden, *self._arrived), level)
        if level in self._consumers:
            mine.add(self._consumers[level].tag)
        left = sum(any(one.tag.consumer.level == level for one in rest.held.values()) for rest in self._rests)
        for _ in range(3):
            if (await channel.count(level_queue(self.full, level))).consumers <= len(mine) + left:
                return False
            await asyncio.sleep(0.03)
        return True

    def flush(self) -> Channel | None:
        """Send acknowledgements, and deliver what there is room for then. The channel they went by."""
        channel = self.channel
        if channel is not None:
            if self._flowing.is_set():
                for consumer in self._acking:
                    consumer.acked = 0
                self._acking.clear()
                self.unsettled.flush(channel)
            self._measure()
            self._pump()
        return channel

    async def pass_on(self) -> Channel | None:
        """As :meth:`flush`, when acknowledgements are not held back any more."""
        await self._flowing.wait()
        return self.flush()

    async def give_back_hidden(self, also: list[Delivery] | None = None) -> None:
        """Give the hidden back, together with *also*, in the order in which they came. Raises :class:`GoneError`."""
        hidden, self._hidden = self._hidden, []
        await self.give_back([*hidden, *(also or [])])

    def _give_back_later(self) -> None:
        async def give_back() -> None:
            try:
                await self.give_back_hidden()
            except GoneError as error:
                log.debug("gone before it was given back", queue=self.spec.name, reason=str(error))

        task = self._loop.create_task(give_back())
        self._keep.add(task)
        task.add_done_callback(self._keep.discard)

    def _measure(self) -> None:
        now = self._loop.time()
        elapsed = now - self._measured
        if elapsed > 0.1:
            self._rate = self._settled / elapsed
            self._settled = 0
            self._measured = now

    # --- consumers ----------------------------------------------------------------------------------------------------

    def add_level(self, level: Level) -> None:
        if level not in self.levels:
            self.levels.add(level)
            self._kick()

    def _wants_work(self) -> bool:
        if self._releasing:
            return True
        if self.paused or self.cancelled:
            return bool(self._consumers)
        if self._aged:
            return True
        if self._give_back:
            return True
        if self.credit > len(self.held) and not self._gathering:
            if len(self._consumers) < len(self.levels):
                return True
            return any(self._starved(one) for one in self._consumers.values())
        return any(one.prefetch > 2 * max(self.credit, 1) + 50 for one in self._consumers.values()) and not self._lifo

    def _starved(self, one: Consumer) -> bool:
        """Whether the server holds messages back that there is room for."""
        target = self._target()
        return one.full and one.prefetch < (target if target <= 16 else target * 0.8)

    def _target(self) -> int:
        free = self.credit - len(self.held)
        # beyond what is free only as much as surely flows off before it would be given back
        wanted = min(self.credit, free + math.ceil(self._rate * STALE))
        if len(self.levels) > 1:
            # the next of a level must be here before the last is done, or a lower level would go first
            wanted += min(4 + int(self._rate * LOOKAHEAD), 64)
        return max(wanted, LIFO_WINDOW if self._lifo else 1)

    def _kick(self) -> None:
        if self._worker is None:
            if self.channel is not None:
                self._worker = self._loop.create_task(self._work())
        else:
            self._again = True

    async def _work(self) -> None:
        try:
            while True:
                self._again = False
                channel = self.channel
                if channel is None:
                    return
                await self._reconcile(channel)
                if not self._again and not self._wants_work():
                    return
                if (wait := self._replaced + REPLACE_EVERY - self._loop.time()) > 0 and not (
                    self.paused or self.cancelled
                ):
                    await asyncio.sleep(wait)
        except GoneError as error:
            log.debug("consumers not changed", queue=self.spec.name, reason=str(error))
        except Exception as error:
            log.exception("changing the consumers failed", queue=self.spec.name)
            self._link.rebuild(f"{type(error).__name__}: {error}")
        finally:
            self._worker = None
            self._releasing.clear()
            waiters, self._released = self._released, []
            _tell(waiters)

    async def _reconcile(self, channel: Channel) -> None:
        if self._releasing:
            await self._release(channel)
            self._again = True
            return
        if self.paused or self.cancelled:
            for one in list(self._consumers.values()):
                await self._stop(channel, one)
            going = (*self._hidden, *self._arrived, *(self.held.values() if self.cancelled else ()))
            await self._collect(channel, {one.tag.consumer.level for one in going})
            if self.paused and not self.cancelled:
                await self.give_back_hidden()
            return
        if self._aged:
            self._aged = False
            await self._leave_behind(channel)
            return
        if self._give_back:
            self._give_back = False
            # the worst are given back; a level whose consumer went on would only send them again
            levels = {delivery.tag.consumer.level for delivery in self._hidden}
            for level in levels & self._returned.keys():
                if not await self._shared(channel, level):
                    # they would stand behind what went back before, and nobody else waits for them
                    self._stale = self._stale or self._loop.call_later(ALONE, self._too_long, None)
                    return
            await self._collect(channel, levels)
            if self.credit <= len(self.held):
                await self.give_back_hidden()
            else:
                self._loop.call_soon(self._pump)
                return
        if self.credit <= len(self.held):
            for one in list(self._consumers.values()):
                if one.prefetch > 2 * max(self.credit, 1) + 50 and not self._lifo:
                    await self._stop(channel, one)
            return
        for one in [one for one in self._consumers.values() if self._starved(one)]:
            await self._stop(channel, one)
        missing = [level for level in self.levels if level not in self._consumers]
        if missing:
            await self._start(channel, missing)

    def look_at_ages(self, limit: float) -> None:
        """Let what may have been in hand for *limit* seconds stay behind, before it can harm what comes after it."""
        if self.channel is not None and self._ages.look(self.unsettled.numbers, self._loop.time()) >= limit:
            self._aged = True
            self._kick()

    async def _leave_behind(self, channel: Channel) -> None:
        """Go on with a channel of its own for what comes from now on. Raises :class:`GoneError`."""
        for one in list(self._consumers.values()):
            await self._stop(channel, one)
        while self._hidden or self._arrived:
            await self._collect(channel, {one.tag.consumer.level for one in (*self._hidden, *self._arrived)})
            await self.give_back_hidden()
        self.flush()
        fresh = await self._link.channel()
        if self.channel is not channel:
            fresh.close()
            return
        self.flush()
        if self.held:
            rest = Rest(self, channel)
            rest.held, self.held = self.held, {}
            rest.unsettled, self.unsettled = self.unsettled, Unsettled()
            rest.crashed, self.crashed = self.crashed, set()
            for delivery in rest.held.values():
                delivery.tag.intake = rest
            self._rests.append(rest)
        else:
            self.unsettled.clear()
            self.crashed.clear()
            self.channel = None
            channel.close()
        self._adopt(fresh)
        self.recount()

    def rest_ended(self, rest: Rest) -> None:
        """All that *rest* held is settled or lost."""
        if rest in self._rests:
            self._rests.remove(rest)
        self.recount()

    def ended(self, delivery: Delivery) -> None:
        """What is no longer ours has its outcome: a handler that the message might come back to there is not any more."""
        if self._astray:
            self._astray.ended(delivery)

    async def _stop(self, channel: Channel, one: Consumer) -> None:
        self._consumers.pop(one.level, None)
        try:
            if self._quorum:
                self._flowing.clear()
                await self._quiet(channel, one)
            await channel.cancel(one.tag)
        finally:
            self._flowing.set()
            with contextlib.suppress(GoneError):
                self.flush()

    async def _quiet(self, channel: Channel, one: Consumer) -> None:
        """Returns when nothing is on its way to *one*: the server gives back what comes too late, in any order if it is much.

        While it is not told of what is settled, it sends only what the prefetch has room for.
        """
        until = self._loop.time() + QUIET
        while one.unsettled + one.acked < one.prefetch and self._loop.time() < until:
            if not (await channel.count(level_queue(self.full, one.level))).ready:
                return
            await asyncio.sleep(0.001)

    async def _start(self, channel: Channel, levels: list[Level]) -> None:
        self._replaced = self._loop.time()
        counts = 0
        gather = self._lifo or len(self.levels) > 1
        prefetch = min(self._target(), 65535)
        if gather:
            self._gathering = 1 << 30  # nothing is delivered until all levels had their say
            self._starting, self._gathered = set(levels), 0
        for level in sorted(levels, key=lambda level: 99 if level == HEAD else int(level), reverse=True):
            name = level_queue(self.full, level)
            if gather:
                counts += min((await channel.count(name)).ready, prefetch)
            await self._consume(channel, level, prefetch)
        if gather:
            self._gathering = max(0, counts - self._gathered)
            if self._gathering:
                self._gather_timer = self._loop.call_later(GATHER, self._end_gathering)
            else:
                self._end_gathering()

    async def _consume(self, channel: Channel, level: Level, prefetch: int) -> Consumer:
        channel.prefetch = prefetch
        channel.begin(channel.raw.basic_qos, prefetch_count=prefetch)
        # a channel that closes gives back consumer by consumer, in the order of their tags
        one = Consumer(level, f"{self.full}.{id(self):x}.{level}.{self._loop.time():017.6f}", prefetch)
        self._consumers[level] = one
        await channel.consume(level_queue(self.full, level), one.tag, self._taker(channel, one))
        return one

    def _on_cancelled_by_server(self, frame: Any) -> None:
        """The queue was deleted, or moved: its consumer is gone, and wants to be there again."""
        tag = frame.method.consumer_tag
        for one in list(self._consumers.values()):
            if one.tag == tag:
                del self._consumers[one.level]
                log.warning("the server ended a subscription; subscribing again", queue=self.spec.name)
                if one.level != DEFAULT_PRIORITY:
                    self.levels.discard(one.level)
                if self.channel is not None:
                    self.channel.close()

    # --- health -------------------------------------------------------------------------------------------------------

    @property
    def consumers(self) -> int:
        """How often the server counts us among the consumers of the queue itself: quorum queues count what was cancelled too."""
        left = sum(
            any(one.tag.consumer.level == DEFAULT_PRIORITY for one in rest.held.values()) for rest in self._rests
        )
        return (DEFAULT_PRIORITY in self._consumers) + left

    @property
    def subscribed(self) -> bool:
        return (
            self.paused
            or self.cancelled
            or (self.channel is not None and bool(self._consumers or self.held or self._rests or self._worker))
        )

    @property
    def doubted(self) -> bool:
        """Whether two looks saw messages wait for which there was room, and still nothing came."""
        return self._in_vain > 0.0 and self.came < self._waiting_since

    async def waited(self, channel: Channel) -> float:
        """Seconds for which each look saw messages wait, with room for them and none coming. Raises :class:`GoneError`.

        One look proves nothing: what it sees may have been sent a moment ago.
        """
        looked = self._loop.time()
        if not await self._waits(channel):
            self._waiting_since = 0.0
        elif not self._waiting_since or self.came >= self._waiting_since:
            self._waiting_since = looked
        self._in_vain = looked - self._waiting_since if self._waiting_since else 0.0
        return self._in_vain

    async def _waits(self, channel: Channel) -> bool:
        """Whether messages are ready and there is room for them."""
        if self.paused or self.cancelled or self.channel is None or self.credit <= len(self.held):
            return False
        for level in list(self.levels):
            if (await channel.count(level_queue(self.full, level))).ready:
                return self.credit > len(self.held)
        return False


class Rest(Intake):
    """What an intake left behind on a channel that takes no more: it is settled there, or taken back by the server."""

    def __init__(self, parent: Intake, channel: Channel) -> None:
        super().__init__(
            parent._link,
            parent.spec,
            parent.full,
            0,
            parent._deliver,
            parent._lost,
            quorum=parent._quorum,
            finished=parent._finished,
            undue=parent._undue,
            crashes=parent._crashes,
            completed=parent._completed,
            gone=parent._on_gone,
        )
        self._parent = parent
        self.cancelled = True
        self.channel = channel
        channel.on_close = lambda: self._gone(channel)

    def ack(self, delivery: Delivery) -> None:
        super().ack(delivery)
        self._less()

    async def give_back(self, deliveries: list[Delivery]) -> None:
        await super().give_back(deliveries)
        self._less()

    def _less(self) -> None:
        self._parent.recount()
        if not self.held:
            # not at once, for the acknowledgements go by it yet
            self._loop.call_later(AGAIN, self._close)

    def _close(self) -> None:
        self.flush()
        channel, self.channel = self.channel, None
        self._parent.rest_ended(self)
        if channel is not None:
            channel.close()

    def ended(self, delivery: Delivery) -> None:
        self._parent.ended(delivery)

    def _lose(self, lost: list[Delivery], channel: Channel) -> None:
        self._parent.rest_ended(self)
        self._parent._lose(lost, channel)


def _tags(deliveries: Iterable[Delivery], level: Level) -> set[str]:
    """The consumers of *level* by which *deliveries* came."""
    return {one.tag.consumer.tag for one in deliveries if one.tag.consumer.level == level}


def _tell(waiters: list[asyncio.Future[None]]) -> None:
    for one in waiters:
        if not one.done():
            one.set_result(None)
