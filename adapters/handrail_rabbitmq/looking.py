"""Looks into queues and tidies them: gets messages, puts back what stays, in order. AMQP has no other way to look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from handrail.adapter import State
from handrail.errors import BrokerError, SendError
from handrail.logger import get_logger
from handrail.message import DEFAULT_PRIORITY, Message
from handrail_rabbitmq import names, wire
from handrail_rabbitmq.link import Channel, Count, GoneError
from handrail_rabbitmq.names import HEAD, level_queue
from handrail_rabbitmq.publishing import Publisher
from handrail_rabbitmq.requeueing import put_back
from handrail_rabbitmq.topology import DELAY_AGAIN, LEVEL_AGAIN, Topology
from handrail_rabbitmq.unsettled import Unsettled

log = get_logger("handrail.rabbitmq")

#: The most messages that are looked at for one answer.
MOST = 10_000
#: Seconds without another message after which a queue is taken to have given what it has.
QUIET = 0.5
#: Seconds for what is put back to be there again, at most: where others consume, who may have taken it; where it may have moved
#: on, being due; and where neither can be.
TAKEN, MOVED, PUT_BACK = 0.1, 1.0, 5.0
#: Dead letters that are on their way back at once.
CHUNK = 500


class Found:
    """One message that was got and not yet put back or taken away."""

    __slots__ = ("message", "number", "returned", "taken", "target")

    def __init__(self, number: int, message: Message, target: str, returned: bool) -> None:
        self.number = number
        self.message = message
        #: Whether it is among those that were given back to a quorum queue.
        self.returned = returned
        #: The queue on the server to which it is on its way; empty when it is there.
        self.target = target
        self.taken = False


class Looking:
    """What ``peek``, ``find``, ``purge``, ``replay`` and ``depth`` need of the server."""

    def __init__(self, topology: Topology, publisher: Publisher) -> None:
        self._topology = topology
        self._publisher = publisher

    # --- what is there ------------------------------------------------------------------------------------------------

    async def levels(self, queue: str) -> list[int | str]:
        """The levels of *queue* that exist, the queue itself among them, best first."""
        full = self._topology.full(queue)
        made = await self._made({f"{full}>{level}": level_queue(full, level) for level in names.levels()})
        there = [level for level in names.levels() if level_queue(full, level) in made]
        return sorted([*there, DEFAULT_PRIORITY], key=lambda level: -99 if level == HEAD else -int(level))

    async def hops(self) -> list[names.Hop]:
        """The delay queues that exist, the longest first: whoever looks in this order meets what moves on meanwhile again."""
        entry, delay_queue = self._topology.names.entry, self._topology.names.delay_queue
        if self._topology.never and not await self._topology.there(entry, exchange=True, again=DELAY_AGAIN):
            return []
        made = await self._made({f"delay>{hop}": delay_queue(hop) for hop in names.hops()})
        return [hop for hop in reversed([*names.hops()]) if delay_queue(hop) in made]

    async def _made(self, queues: Mapping[str, str]) -> set[str]:
        """Those of *queues*, by their keys in the registry, that exist."""
        if not self._topology.never:  # what operators made is in no registry
            try:
                found = await self._publisher.ask_registry(list(queues))
            except GoneError as error:
                # it is asked by publishing, which a server under an alarm does not take
                log.debug("the registry does not answer; each queue is asked for", reason=str(error))
            else:
                return {name for key, name in queues.items() if key in found}
        return {name for name in queues.values() if await self._topology.there(name, again=LEVEL_AGAIN)}

    async def count(self, name: str) -> Count | None:
        """Messages ready and consumers of the queue *name* on the server; None when there is no such queue."""
        async with self._topology.channel() as channel:
            try:
                return await channel.count(name)
            except GoneError:
                if channel.code == 404:
                    return None
                raise

    @asynccontextmanager
    async def _got(self, queue: str, name: str, most: int) -> AsyncIterator[list[Found]]:
        """At least *most* messages from the head of *name*, if it has them; what is not ``taken`` goes back in its order."""
        found: list[Found] = []
        async with self._topology.channel() as channel:
            count = others = 0
            try:
                count, others = await channel.count(name)
            except GoneError:
                if channel.code != 404:
                    raise
            wanted = min(count, most, 65535)
            if not wanted:
                yield found
                return
            got = _Getting(queue, channel, name, found)
            try:
                while await got.more(wanted) and found[-1].returned and len(found) < MOST:
                    # a quorum queue gives first what was given back to it, and what goes back now stands behind the rest of
                    # that: none of them may go back before all have come
                    wanted = min((await channel.count(name)).ready, max(len(found), 100))
                yield found
            finally:
                if channel.reason is None:
                    _take_away(channel, found)
                    await _put_back(channel, name, [one for one in found if not one.taken], others)

    async def _places(self, queue: str, state: State) -> list[str]:
        """The server's queues in which messages of that state stand."""
        if state == "dead":
            dead = self._topology.dead(queue)
            return [dead] if dead is not None else []
        if state == "delayed":
            return [self._topology.names.delay_queue(hop) for hop in await self.hops()]
        full = self._topology.full(queue)
        return [level_queue(full, level) for level in await self.levels(queue)]

    def _is_of(self, queue: str, state: State, one: Found) -> bool:
        if state != "delayed":
            return True
        full = self._topology.full(queue)
        return one.target == full or one.target in {level_queue(full, level) for level in names.levels()}

    # --- what the port asks -------------------------------------------------------------------------------------------

    async def messages(self, queue: str, state: State, most: int) -> list[Message]:
        """Messages of *state*, in their order of delivery (dead: newest first), at least the first *most*."""
        messages: list[tuple[Any, Message]] = []
        delayed: set[tuple[str, float | None]] = set()
        deep = MOST if state in ("dead", "delayed") else most
        full = self._topology.full(queue)
        for name in await self._places(queue, state):
            async with self._got(queue, name, deep) as found:
                for at, one in enumerate(found):
                    if not self._is_of(queue, state, one):
                        continue
                    if state == "ready":
                        head = name == level_queue(full, HEAD)
                        key: Any = (-one.message.priority if head else -_priority(full, name), not head, at)
                    elif state == "delayed":
                        if (same := (one.message.id, one.message.due)) in delayed:
                            continue  # it moved on while we looked, and was met before
                        delayed.add(same)
                        key = one.message.due or 0.0
                    else:
                        key = -at
                    messages.append((key, one.message))
        messages.sort(key=lambda pair: pair[0])
        return [message for _key, message in messages]

    async def purge(self, queue: str, state: State, ids: Sequence[str] | None) -> int:
        gone = 0
        for name in await self._places(queue, state):
            if ids is None and state != "delayed":
                async with self._topology.channel() as channel:
                    gone += (await channel.ask(channel.raw.queue_purge, name)).message_count
                continue
            chosen = set(ids) if ids is not None else None
            async with self._got(queue, name, MOST) as found:
                for one in found:
                    if self._is_of(queue, state, one) and (chosen is None or one.message.id in chosen):
                        one.taken = True
                        gone += 1
        return gone

    async def replay(self, queue: str, ids: Sequence[str] | None) -> int:
        dead = self._topology.dead(queue)
        if dead is None:
            return 0
        chosen = set(ids) if ids is not None else None
        count = 0
        while True:
            async with self._got(queue, dead, MOST if chosen is not None else CHUNK) as found:
                mine = [one for one in found if chosen is None or one.message.id in chosen]
                errors = await self._publisher.publish([reborn(one.message, queue) for one in mine], 30.0)
                for at, one in enumerate(mine):
                    if at not in errors:
                        one.taken = True
                        count += 1
                if errors:
                    failure: SendError = errors[min(errors)]
                    raise BrokerError(f"{count} replayed, then: {failure}")
            if chosen is not None or len(found) < CHUNK:
                return count

    async def depth(self, queue: str) -> tuple[int | None, int | None, int | None, int]:
        """Ready, delayed and dead on the server, and how many consume the queue itself."""
        main = await self.count(self._topology.full(queue))
        if main is None:
            return None, None, None, 0
        ready, consumers = main
        full = self._topology.full(queue)
        for level in await self.levels(queue):
            if level != DEFAULT_PRIORITY and (found := await self.count(level_queue(full, level))) is not None:
                ready += found.ready
        dead_queue = self._topology.dead(queue)
        dead = await self.count(dead_queue) if dead_queue is not None else Count(0, 0)
        return ready, await self._delayed(queue), dead.ready if dead is not None else 0, consumers

    async def _delayed(self, queue: str) -> int | None:
        places = await self._places(queue, "delayed")
        for _ in range(2):  # what is just moving on is for a moment in no queue's count
            counts = [found.ready for name in places if (found := await self.count(name)) is not None]
            if sum(counts) > MOST:
                return None  # they are of all queues, and telling whose they are means getting them all
            if sum(counts) and (mine := len(await self.messages(queue, "delayed", MOST))):
                return mine
        return 0


class _Getting:
    """Gets messages from the head of a queue, and adds them to *found*."""

    def __init__(self, queue: str, channel: Channel, name: str, found: list[Found]) -> None:
        self._queue = queue
        self._channel = channel
        self._name = name
        self._found = found
        self._came = asyncio.Event()

    async def more(self, count: int) -> bool:
        """Get the next *count*, or what there is; whether it was so many. Raises :class:`GoneError`."""
        channel, found = self._channel, self._found
        raw = channel.raw
        end = len(found) + count
        if not count:
            return False
        await channel.ask(raw.basic_qos, prefetch_count=count)
        tag = f"look.{id(found):x}.{end:06}"  # a channel's consumers give back in the order of their tags
        await channel.ask(raw.basic_consume, self._name, on_message_callback=self._take, consumer_tag=tag)
        while len(found) < end:
            self._came.clear()
            try:
                async with asyncio.timeout(QUIET):
                    await self._came.wait()
            except TimeoutError:
                break
        await channel.cancel(tag)
        return len(found) >= end

    def _take(self, _raw: Any, method: Any, properties: Any, body: bytes) -> None:
        headers = properties.headers or {}
        cc = headers.get("CC")
        target = cc[-1] if isinstance(cc, list) and cc and isinstance(cc[-1], str) else ""
        message = wire.message(self._queue, properties, body)
        returned = bool(headers.get("x-delivery-count") or headers.get("x-acquired-count"))
        self._found.append(Found(method.delivery_tag, message, target, returned))
        self._came.set()


def _take_away(channel: Channel, found: list[Found]) -> None:
    """Acknowledge what is ``taken``, in few commands: what a channel has not passed on yet when it closes is forgotten."""
    unsettled = Unsettled()
    for one in found:
        unsettled.numbers.append(one.number)
        if one.taken:
            unsettled.ack(one.number)
    unsettled.flush(channel)


async def _put_back(channel: Channel, name: str, left: list[Found], others: int) -> None:
    """Give *left* back; they are there when this returns, unless one of the *others* that consume took them."""
    await put_back(channel, name, [one.number for one in left])
    until = time.monotonic() + (TAKEN if others else MOVED if any(one.target for one in left) else PUT_BACK)
    while (await channel.count(name)).ready < len(left):
        # a quorum queue has them back when its disk says so
        if time.monotonic() > until:
            return
        await asyncio.sleep(0.01)


def reborn(message: Message, queue: str) -> Message:
    """A dead letter as it starts anew."""
    if message.fault is not None and message.fault.queue:
        queue = message.fault.queue
    return Message(
        queue=queue,
        id=message.id,
        body=message.body,
        content_type=message.content_type,
        headers=message.headers,
        priority=message.priority,
        key=message.key,
        sent_at=message.sent_at,
        options=message.options,
        send=message.send,
        native=message.native,
    )


def _priority(full: str, name: str) -> int:
    return DEFAULT_PRIORITY if name == full else int(name.rpartition(".p")[2])
