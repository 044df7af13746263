"""Sends messages and knows the fate of each: in order, pipelined within a bound, confirmed, and found when they come back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika import BasicProperties
from pika.exceptions import AMQPChannelError, AMQPConnectionError

from handrail.errors import BrokerError, SendError, SendTimeoutError
from handrail.logger import get_logger
from handrail.message import Message, new_id
from handrail_rabbitmq import names, wire
from handrail_rabbitmq.link import FORBIDDEN, Channel, GoneError, Link
from handrail_rabbitmq.topology import Topology

log = get_logger("handrail.rabbitmq")

#: The most that is sent and not confirmed: messages, and bytes. pika's own buffer knows no limit.
WINDOW, WINDOW_BYTES = 2000, 16 << 20
#: Seconds before a message that the server refused for now is offered again, when it must go somewhere.
AGAIN = 0.5
#: How often a message is offered at most that is refused by channels which have had none taken for its queue; and the most
#: seconds between two channels that are opened for one queue.
OFFERS, LONGEST_PAUSE = 3, 10.0
#: Seconds for what is on its way to be confirmed before the channel is replaced by another.
FAREWELL = 1.0
#: Seconds for the registry to say which queues it knows.
REGISTRY_PATIENCE = 5.0

_Fate = Callable[["Item", SendError | None], None]


class RefusedError(SendError):
    """The server refused the message for now: its queue is full, or has no leader."""


class Item:
    """One message on its way, and whom to tell of its fate."""

    __slots__ = (
        "at",
        "done",
        "exchange",
        "fixed",
        "gone",
        "key",
        "level",
        "message",
        "offers",
        "properties",
        "returned",
        "sure",
        "tried",
    )

    def __init__(self, message: Message, done: _Fate, level: int | str | None = None, dead: str | None = None) -> None:
        self.message = message
        self.done = done
        #: Its place in what was given to :meth:`Publisher.publish`.
        self.at = 0
        #: Priority, or ``head``.
        self.level: int | str = message.priority if level is None else level
        #: Whether it goes to the queue ``key`` whatever its priority: dead letters do.
        self.fixed = dead is not None
        self.exchange = ""
        self.key = dead or ""
        self.properties: BasicProperties | None = None
        self.returned = False
        #: Whether its way is known and needs nothing made.
        self.sure = False
        #: Whether it was offered again after something that it needed had gone.
        self.tried = False
        #: How often it was refused and is offered all the same.
        self.offers = 0
        #: Whether nobody waits for it any more: it is not sent if it was not yet.
        self.gone = False


class Publisher:
    """The way of all messages to the server."""

    def __init__(self, link: Link, topology: Topology) -> None:
        self._link = link
        self._topology = topology
        self._channel: Channel | None = None
        self._waiting: deque[Item] = deque()
        self._sent: dict[int, Item] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Wait for what they need to be made, or to be offered again in a moment.
        self._parked: set[Item] = set()
        self._bytes = 0
        self._next = 1
        self._low = 1
        self._making: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False
        # why the channel last closed, until the server confirms something: said once
        self._told: str | None = None
        # routing keys for which this channel has had a message taken
        self._proven: set[str] = set()
        # refused by a channel that is to be replaced by another, in their order; and whether it is about to be
        self._refused: list[Item] = []
        self._renewing = False
        # routing key → when another channel may be opened for it, on the loop's clock, and seconds until the one after that
        self._renewals: dict[str, tuple[float, float]] = {}

    # --- life ---------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """On a new connection: a channel with confirms, and what was not confirmed goes again, first."""
        channel = await self._link.channel()
        raw = channel.raw
        raw.add_on_return_callback(self._on_return)
        await channel.confirm(self._on_confirm)
        self._next = self._low = 1
        self._proven.clear()
        channel.on_close = lambda: self._gone(channel)
        self._channel = channel
        self._drain()

    def _gone(self, channel: Channel) -> None:
        if self._channel is not channel:
            return
        self._channel = None
        sent, self._sent = self._sent, {}
        self._bytes = 0
        self._topology.forget()
        refused, self._refused = self._refused, []
        self._parked.difference_update(refused)
        for item in reversed([*refused, *sent.values()]):
            item.returned = False
            if item.gone:
                continue
            if channel.code == 404 and item.exchange == self._topology.names.registry:
                # it was deleted: offering this again would close the next channel, too
                item.done(item, SendError(f"{self._link.place.shown}: the channel closed: {channel.reason}"))
                continue
            if channel.code == FORBIDDEN and f"'{item.exchange or 'amq.default'}'" in (channel.reason or ""):
                item.done(item, SendError(str(self._topology.refusal(GoneError(channel.reason or "", FORBIDDEN)))))
                continue
            self._route_anew(item)
            self._waiting.appendleft(item)
        if self._renewing:
            self._renewing = False
            self._told = channel.reason  # it was said why
        if self._link.up and not self._closed:
            # the channel alone: an exchange that was deleted under us closes it
            if channel.reason != self._told:
                log.warning(
                    "publishing channel closed; opening another", broker=self._link.place.shown, reason=channel.reason
                )
            self._told = channel.reason
            self._loop.call_later(AGAIN, self._begin_again)

    @staticmethod
    def _route_anew(item: Item) -> None:
        if not (item.fixed or item.sure):
            item.exchange = item.key = ""
            if item.properties is not None:
                item.properties.headers.pop("CC", None)

    def _renew(self, item: Item) -> bool:
        """Whether *item*, which was refused, will be offered again on another channel.

        A channel on which the first message for a quorum queue is sent while the node of its leader is down refuses all for that
        queue until the node is back, though it may have another leader in no time (3.10: ``rabbit_fifo_client:enqueue``). So a
        channel is believed that a queue is full only if it has had a message taken for it, or others refuse as well.
        """
        channel = self._channel
        if channel is None or item.sure or item.key in self._proven or item.offers + 1 >= OFFERS:
            return False
        if not self._renewing:
            now = self._loop.time()
            after, pause = self._renewals.get(item.key, (now, AGAIN / 2))
            if now < after:
                return False
            self._renewals[item.key] = (now + pause, min(2 * pause, LONGEST_PAUSE))
            self._renewing = True
            log.warning("the server refused a message; offering it on another channel", queue=item.key)
            self._loop.call_later(FAREWELL, self._farewell, channel)
        item.offers += 1
        self._parked.add(item)
        self._refused.append(item)
        return True

    def _farewell(self, channel: Channel) -> None:
        """Close the channel that is to be replaced, unless it is already."""
        if self._channel is channel and self._renewing:
            channel.close()

    def _begin_again(self) -> None:
        async def begin() -> None:
            try:
                if self._channel is None and self._link.up:
                    await self.begin()
            except GoneError as error:
                log.debug("no publishing channel", reason=str(error))

        self._again = self._loop.create_task(begin())

    def close(self) -> None:
        self._closed = True
        error = SendError(f"{self._link.place.shown}: the adapter was closed before the server confirmed")
        waiting = [*self._sent.values(), *self._waiting, *self._parked]
        self._parked.clear()
        self._sent.clear()
        self._waiting.clear()
        for item in waiting:
            if not item.gone:
                item.done(item, error)

    # --- sending ------------------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message], timeout: float) -> dict[int, SendError]:
        """See ``Adapter.publish``."""
        if not messages:
            return {}
        errors: dict[int, SendError] = {}
        finished = self._loop.create_future()
        items: list[Item] = []
        left = len(messages)

        def done(item: Item, error: SendError | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                errors[item.at] = error
            else:
                item.gone = True
            if not left and not finished.done():
                finished.set_result(None)

        for at, message in enumerate(messages):
            items.append(item := Item(message, done))
            item.at = at
        self._waiting.extend(items)
        self._drain()
        if left:
            await asyncio.wait([finished], timeout=timeout)
        if left:
            why = self._link.state or "the server does not confirm"
            failure = SendTimeoutError.after(timeout, f"{self._link.place.shown}: {why}")
            for index, item in enumerate(items):
                if not item.gone and index not in errors:
                    item.gone = True
                    item.done = _nobody
                    errors[index] = failure
            self._waiting = deque(item for item in self._waiting if not item.gone)
            self._make_room()
        return errors

    def _make_room(self) -> None:
        """Open another channel when what the server never confirms, and nobody waits for, fills the window.

        A queue without a leader confirms nothing, and the messages of others would wait for it.
        """
        if len(self._sent) >= WINDOW // 2 and next(iter(self._sent.values())).gone and self._channel is not None:
            self._channel.close()

    def put(self, item: Item) -> None:
        """Send *item* after everything that waits."""
        self._waiting.append(item)
        self._drain()

    async def ask_registry(self, keys: Sequence[str]) -> set[str]:
        """Which of *keys* the registry has. Raises :class:`GoneError`, also where it does not answer."""
        found: set[str] = set()
        if not await self._topology.make_registry():
            return found
        finished = self._loop.create_future()
        left = len(keys)

        def done(item: Item, error: SendError | None) -> None:
            nonlocal left
            left -= 1
            if error is None:
                found.add(item.key)
            if not left and not finished.done():
                finished.set_result(None)

        for key in keys:
            self._note(key, b"", done)
        self._drain()
        until = self._loop.time() + REGISTRY_PATIENCE
        while left and not self._link.blocked and self._loop.time() < until:
            await asyncio.wait([finished], timeout=0.1)
        if left:
            raise GoneError(self._link.state or "the server does not say which queues were made")
        return found

    def announce(self, key: str, body: bytes, reply_to: str | None = None, done: _Fate | None = None) -> None:
        """Tell every worker that listens for *key*; *done* hears an error when nobody does."""
        if self._topology.has_registry:
            self._note(key, body, done or _nobody, reply_to)
            self._drain()

    def answer(self, queue: str, body: bytes) -> None:
        """Send *body* to a queue of somebody who asked."""
        item = Item(Message(queue="", id=new_id(), body=body), _nobody, dead=queue)
        item.properties = BasicProperties(message_id=item.message.id, delivery_mode=1)
        item.tried = item.sure = True
        self._waiting.append(item)
        self._drain()

    def _note(self, key: str, body: bytes, done: _Fate, reply_to: str | None = None) -> None:
        item = Item(Message(queue="", id=new_id(), body=body), done)
        item.exchange, item.key, item.tried = self._topology.names.registry, key, True
        item.sure = True
        item.properties = BasicProperties(message_id=item.message.id, delivery_mode=1, reply_to=reply_to)
        self._waiting.append(item)

    def _drain(self) -> None:
        """Send what waits, as far as the window and the topology allow."""
        channel = self._channel
        if channel is None or self._making is not None or self._link.blocked or self._renewing:
            return
        waiting, sent, publish = self._waiting, self._sent, channel.publish
        now = time.time()
        while waiting and len(sent) < WINDOW and self._bytes < WINDOW_BYTES:
            item = waiting[0]
            if item.gone:
                waiting.popleft()
                continue
            try:
                missing = self._route(item, now)
                if missing is not None and item.message.due is not None:
                    # a delayed message has no place in any order yet, so nobody waits for its way to be made
                    waiting.popleft()
                    self._aside(item, missing)
                    continue
                if missing is not None:
                    self._making = self._loop.create_task(self._make(item, missing))
                    return
            except SendError as error:
                waiting.popleft()
                item.done(item, error)
                continue
            waiting.popleft()
            body = item.message.body
            number = self._next
            sent[number] = item
            self._next = number + 1
            self._bytes += len(body)
            try:
                properties = wire.encoded(item.message) if item.properties is None else wire.encode(item.properties)
                publish(item.exchange, item.key, properties, body)
            except (AMQPChannelError, AMQPConnectionError):
                # it is closing, and says so in a moment; then all that was sent goes again
                return
            except Exception as error:  # noqa: BLE001 - whatever pika cannot write is that message's fault alone
                del sent[number]
                self._next = number
                self._bytes -= len(body)
                item.gone = True
                if not isinstance(error, SendError):
                    error = SendError(f"the message cannot be sent: {type(error).__name__}: {error}")
                item.done(item, error)

    def _route(self, item: Item, now: float) -> Callable[[], Any] | None:
        """Say where *item* goes; what must be made before, None when nothing."""
        if item.sure:
            return None
        message, topology = item.message, self._topology
        if item.fixed:
            name = item.key
            return None if topology.has(name) else lambda: topology.make_queue(name, message.queue)
        level = item.level
        if not topology.has_level(message.queue, level):
            return lambda: topology.make_level(message.queue, level)
        target = topology.target(message.queue, level)
        if message.due is None or message.due <= now:
            item.key = target
            return None
        hops = names.way(message.due - now)
        if not topology.has_delay(hops, target):
            return lambda: topology.make_delay(hops, target)
        key, cc = names.routes(hops, target)
        item.exchange, item.key = topology.names.entry, key
        if item.properties is None:
            item.properties = wire.properties(message)
        item.properties.headers["CC"] = cc
        return None

    async def _make(self, item: Item, make: Callable[[], Any]) -> None:
        again = 0.0
        try:
            await make()
        except BrokerError as error:
            if self._link.up and not item.gone:
                if self._waiting and self._waiting[0] is item:
                    self._waiting.popleft()
                item.gone = True
                item.done(item, SendError(str(error)))
            else:
                again = AGAIN
        except Exception as error:
            log.exception("making what a message needs failed")
            if self._waiting and self._waiting[0] is item:
                self._waiting.popleft()
            item.gone = True
            item.done(item, SendError(f"{type(error).__name__}: {error}"))
        finally:
            self._making = None
        if again:
            self._loop.call_later(again, self._drain)
        else:
            self._drain()

    def _aside(self, item: Item, make: Callable[[], Any]) -> None:
        async def made() -> None:
            error: SendError | None = None
            try:
                await make()
            except BrokerError as failure:
                if self._link.up:
                    error = SendError(str(failure))
            except Exception as failure:  # noqa: BLE001 - one message's trouble must not stop the rest
                error = SendError(f"{type(failure).__name__}: {failure}")
            if item not in self._parked:
                return
            self._parked.discard(item)
            if error is None:
                self._waiting.append(item)
                self._drain()
            elif not item.gone:
                item.gone = True
                item.done(item, error)

        self._parked.add(item)
        task = self._loop.create_task(made())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unblocked(self) -> None:
        self._drain()

    # --- what the server tells ----------------------------------------------------------------------------------------

    def _on_return(self, _channel: Any, method: Any, properties: BasicProperties, _body: bytes) -> None:
        for item in self._sent.values():
            if (
                not item.returned
                and item.message.id == properties.message_id
                and item.key == method.routing_key
                and item.exchange == method.exchange
            ):
                item.returned = True
                return

    def _on_confirm(self, tag: int, multiple: bool, refused: bool) -> None:
        sent = self._sent
        self._told = None
        if multiple:
            numbers = [number for number in range(self._low, tag + 1) if number in sent]
            self._low = tag + 1
        else:
            numbers = [tag] if tag in sent else []
        for number in numbers:
            item = sent.pop(number)
            self._bytes -= len(item.message.body)
            try:
                self._confirmed(item, refused=refused)
            except Exception:  # an exception in a callback ends pika's connection
                log.exception("telling what became of a message failed")
        if self._renewing and not sent and self._channel is not None:
            self._farewell(self._channel)
        if self._waiting:
            self._drain()

    def _offer_again(self, item: Item) -> None:
        if item in self._parked:
            self._parked.discard(item)
            self._route_anew(item)
            self._topology.forget()
            self._waiting.appendleft(item)
            self._drain()

    def _confirmed(self, item: Item, *, refused: bool) -> None:
        if item.gone:
            return
        if refused:
            if self._renew(item):
                return
            text = f"{self._link.place.shown}: the server refused the message: queue {item.key!r} is full or failing"
            item.done(item, RefusedError(text))
        elif item.returned and not item.tried:
            # somebody deleted what was known to be there: make it again, once
            item.tried, item.returned = True, False
            self._parked.add(item)
            # a queue made while its namesake is still being deleted swallows messages (seen with quorum queues of 3.10)
            self._loop.call_later(AGAIN, self._offer_again, item)
        elif item.returned:
            item.done(
                item, SendError(f"{self._link.place.shown}: no queue {item.key!r} on the server takes the message")
            )
        else:
            if not item.sure:
                self._proven.add(item.key)
            if self._renewals:
                self._renewals.pop(item.key, None)
            item.done(item, None)


def _nobody(_item: Item, _error: SendError | None) -> None:
    """Nobody waits for this one."""
