"""One connection to the server that comes back by itself, and the awaitable face of its channels. It knows no queues."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pika
from pika import exceptions
from pika.adapters.utils import connection_workflow

from handrail.errors import BrokerError
from handrail.logger import get_logger
from handrail_rabbitmq import frames
from handrail_rabbitmq.place import Place

log = get_logger("handrail.rabbitmq")

# pika tells every refused connection in five lines, and each that is made in four; ours say the same in one. Whoever set a
# level of its own, before or after, sees them
_pika = logging.getLogger("pika")
if _pika.level == logging.NOTSET:
    _pika.setLevel(logging.CRITICAL)
# without any handler logging would print what is left to standard error
_pika.addHandler(logging.NullHandler())

#: Seconds between tries to connect: the first, and the most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
#: Seconds between two questions whether the server still answers, and without an answer after which it does not.
PING_EVERY, SILENCE = 2.0, 6.0


#: Seconds from which on an answer that a queue is empty may mean that its leader has not answered.
LEADER_PATIENCE = 0.2
#: The server's code for what the user has no right to.
FORBIDDEN = 403


class GoneError(Exception):
    """The channel or the connection is gone; what was asked on it may or may not have been done."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        #: The server's code, when the server closed the channel.
        self.code = code


class Count(NamedTuple):
    """What the server says of a queue: messages that nobody has, and consumers."""

    ready: int
    consumers: int


class Channel:
    """A channel whose questions can be awaited. All raise :class:`GoneError` once it is closed."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        #: Why it is closed, None while it is open.
        self.reason: str | None = None
        #: The server's code, when the server closed it: 404, 406 …
        self.code = 0
        #: What the next consumer on it may have unsettled; to say it again changes nothing.
        self.prefetch = 1
        self.on_close: Callable[[], None] | None = None
        self._asked: set[asyncio.Future[Any]] = set()
        raw.add_on_close_callback(self._closed)

    async def ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the raw channel that takes a callback; the answer's method."""
        future = self.begin(method, *args, **kwargs)
        return (await future).method

    def begin(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """As :meth:`ask`, without waiting: the future gives the answer's frame."""
        if self.reason is not None:
            raise GoneError(self.reason, self.code)
        future = asyncio.get_running_loop().create_future()

        def answered(frame: Any) -> None:
            if not future.done():
                future.set_result(frame)

        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        try:
            method(*args, callback=answered, **kwargs)
        except exceptions.AMQPError as error:
            raise GoneError(str(error)) from error
        return future

    def tell(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call a method of the raw channel that has no answer."""
        if self.reason is not None:
            raise GoneError(self.reason, self.code)
        try:
            method(*args, **kwargs)
        except exceptions.AMQPError as error:
            raise GoneError(str(error)) from error

    async def count(self, queue: str) -> Count:
        """Messages ready in *queue*, and its consumers. Raises :class:`GoneError`, of code 404 where there is no such queue."""
        loop = asyncio.get_running_loop()
        for _ in range(3):
            asked = loop.time()
            found = await self.ask(self.raw.queue_declare, queue, passive=True)
            # both are 0 too when a quorum queue's leader has not answered the server within 250 ms
            if found.message_count or found.consumer_count or loop.time() - asked < LEADER_PATIENCE:
                break
        return Count(found.message_count, found.consumer_count)

    async def consume(self, queue: str, consumer: str, take: frames.Take) -> None:
        """Consume *queue* by the consumer tag *consumer*; each delivery goes to *take*, until :meth:`cancel` returns."""
        if isinstance(self.raw, frames.ShortChannel):
            self.raw.takes[consumer.encode()] = take

        def on_message(_raw: Any, method: Any, properties: Any, body: bytes) -> None:
            take(method.delivery_tag, method.redelivered, properties, body)

        await self.ask(self.raw.basic_consume, queue, on_message_callback=on_message, consumer_tag=consumer)

    async def cancel(self, consumer: str) -> None:
        """End a consumer; what is still on its way to it is delivered before this returns."""
        future = self.begin(self.raw.basic_cancel, consumer)
        # pika would reject what is still on its way, out of order and counted as a failure from 4.3 on
        getattr(self.raw, "_cancelled", set()).discard(consumer)
        await future
        if isinstance(self.raw, frames.ShortChannel):
            self.raw.takes.pop(consumer.encode(), None)

    async def confirm(self, heard: Callable[[int, bool, bool], None]) -> None:
        """Have publishes confirmed: *heard* gets number, whether it speaks for all before it, and whether it is a refusal."""
        if isinstance(self.raw, frames.ShortChannel):
            self.raw.on_confirm = lambda number, multiple: heard(number, multiple, False)

        def on_confirm(frame: Any) -> None:
            method = frame.method
            heard(method.delivery_tag, method.multiple, method.NAME == "Basic.Nack")

        await self.ask(lambda callback: self.raw.confirm_delivery(on_confirm, callback=callback))

    async def fence(self) -> None:
        """Returns when the server has read all that it was told on this channel before. A quorum queue does it a moment later."""
        if not isinstance(self.raw, frames.ShortChannel):
            await self.ask(self.raw.basic_qos, prefetch_count=self.prefetch)
            return
        if self.reason is not None:
            raise GoneError(self.reason)
        passed = asyncio.get_running_loop().create_future()
        try:
            self.raw.fence(self.prefetch, passed)
        except exceptions.AMQPError as error:
            raise GoneError(str(error)) from error
        self._asked.add(passed)
        try:
            await passed
        finally:
            self._asked.discard(passed)

    def publish(self, exchange: str, key: str, properties: bytes, body: bytes) -> None:
        """Publish, mandatory, with encoded properties. Raises what pika raises for what it cannot write."""
        if isinstance(self.raw, frames.ShortChannel):
            self.raw.publish(exchange, key, properties, body)
        else:
            self.raw.basic_publish(exchange, key, body, frames.Encoded(properties), mandatory=True)

    async def opening(self, opened: asyncio.Future[None]) -> None:
        self._asked.add(opened)
        opened.add_done_callback(self._asked.discard)
        await opened

    def close(self) -> None:
        if self.reason is None and self.raw.is_open:
            self.raw.close()

    def drop(self, reason: str) -> None:
        """The connection is given up: whatever the raw channel still says is of no interest."""
        if self.reason is not None:
            return
        self.reason = reason
        for future in list(self._asked):
            if not future.done():
                future.set_exception(GoneError(reason, self.code))
                future.exception()  # nobody may be waiting any more
        if self.on_close is not None:
            self.on_close()

    def _closed(self, _raw: Any, error: BaseException) -> None:
        self.code = getattr(error, "reply_code", 0) if isinstance(error, exceptions.ChannelClosedByBroker) else 0
        try:
            self.drop(said(error))
        except Exception:  # an exception in a callback ends pika's connection
            log.exception("closing a channel failed")


class Notice:
    """Says once that the server is away, and once that it is back, for all connections of one adapter."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._down: dict[str, str] = {}

    def down(self, link: str, why: str) -> None:
        first = not self._down
        self._down[link] = why
        if first:
            log.warning("broker not reachable; trying again", broker=self._shown, reason=why)

    def up(self, link: str) -> None:
        if self._down.pop(link, None) is not None and not self._down:
            log.info("broker reachable again", broker=self._shown)


class Link:
    """A connection that is rebuilt, a new one each time, whenever it is lost, until :meth:`end`."""

    def __init__(self, name: str, place: Place, notice: Notice) -> None:
        self.name = name
        self.place = place
        self._notice = notice
        self._loop = asyncio.get_running_loop()
        # the next one to try first; clients spread over the nodes
        self._parameters = deque(place.parameters())
        self._parameters.rotate(random.randrange(len(self._parameters)))  # noqa: S311 - no secret
        self._raw: Any = None
        #: Raised by one with each connection: what belongs to an older one is of no use.
        self.epoch = 0
        #: Why it is down, empty while it is up.
        self.trouble = "still connecting"
        #: Why the server takes no messages on this connection just now, empty when it takes them.
        self.blocked = ""
        #: When the server last answered, on the loop's clock.
        self.heard = 0.0
        self._up = asyncio.Event()
        self._lost: asyncio.Future[str] | None = None
        self._channels: set[Channel] = set()
        self._task: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self.on_up: Callable[[], Awaitable[None]] | None = None
        self.on_change: Callable[[], None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, or go on trying in the background. Raises :class:`BrokerError` for what waiting does not mend."""
        first: asyncio.Future[None] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(first))
        await first

    async def end(self) -> None:
        task, self._task = self._task, None
        raw = self._raw
        self._forget("closed")
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if raw is not None and raw.is_open:
            closed = self._loop.create_future()
            raw.add_on_close_callback(lambda *_: _done(closed))
            raw.close()
            await asyncio.wait([closed], timeout=2.0)
        if raw is not None and not raw.is_closed:
            _abort(raw)
        self.trouble = "closed"

    @property
    def up(self) -> bool:
        return not self.trouble

    @property
    def silent(self) -> bool:
        """Whether the server has not answered for a while although the connection stands."""
        return self.up and not self.blocked and self._loop.time() - self.heard > SILENCE

    @property
    def state(self) -> str:
        """One line on what is wrong, empty when nothing is."""
        if self.trouble:
            return self.trouble
        if self.blocked:
            return f"the server takes no messages at the moment: {self.blocked}"
        if self.silent:
            return f"the server has not answered for {self._loop.time() - self.heard:.0f}s"
        return ""

    def usable(self) -> None:
        """It is as good as up for those who make it so."""
        self._up.set()

    async def ready(self, timeout: float) -> None:
        """Wait until it is up. Raises :class:`BrokerError` that says why it is not."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            raise BrokerError(f"{self.place.shown}: {self.trouble or 'not connected'}") from None

    async def channel(self) -> Channel:
        """A new channel. Raises :class:`GoneError` when the connection is down."""
        raw = self._raw
        if raw is None or not raw.is_open:
            raise GoneError(self.trouble or "not connected")
        opened = self._loop.create_future()
        channel = Channel(raw.channel(on_open_callback=lambda _raw: _done(opened)))
        self._channels.add(channel)
        channel.raw.add_on_close_callback(lambda *_: self._channels.discard(channel))
        await channel.opening(opened)
        return channel

    def rebuild(self, why: str) -> None:
        """Give this connection up and make another."""
        if self._raw is not None:
            raw = self._raw
            self._lose(why)
            if raw.is_open:
                raw.close()
                # a server that does not answer does not answer this either
                self._loop.call_later(2.0, _abort, raw)

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self, first: asyncio.Future[None]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                raw = await self._connect()
            except BrokerError as error:
                hopeless = isinstance(error, _RefusedError)
                if hopeless and not first.done():
                    self.trouble = str(error)
                    first.set_exception(BrokerError(f"{self.place.shown}: {error}"))
                    return
                self.trouble = str(error)
                if not first.done():
                    first.set_result(None)
                self._notice.down(self.name, str(error))
                self._changed()
                await asyncio.sleep(_spread(pause))
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            lost = self._lost = self._loop.create_future()
            self._raw = raw
            raw.add_on_close_callback(self._on_close)
            self.epoch += 1
            self.blocked = ""
            self.heard = self._loop.time()
            began = time.monotonic()
            try:
                self._pinger = self._loop.create_task(self._ping())
                self.trouble = ""
                if self.on_up is not None:
                    await self.on_up()
                if not lost.done():
                    self._up.set()
                    self._notice.up(self.name)
                    self._changed()
            except GoneError as error:
                if not lost.done():
                    self.rebuild(str(error))
            except Exception as error:
                log.exception("setting up the connection failed", broker=self.place.shown)
                self.rebuild(f"{type(error).__name__}: {error}")
            if not first.done():
                first.set_result(None)
            why = await lost
            self._notice.down(self.name, why)
            if time.monotonic() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await asyncio.sleep(_spread(pause))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _connect(self) -> Any:
        """A connection to the first of the hosts that gives one. Raises :class:`BrokerError` when none does."""
        failures = []
        for _ in self.place.hosts:
            parameters = self._parameters[0]
            # should this node leave us, now or later, another is asked before it is again
            self._parameters.rotate(-1)
            try:
                return await self._connect_to(parameters)
            except _RefusedError:
                raise
            except BrokerError as error:
                failures.append(str(error))
        raise BrokerError("; ".join(failures))

    async def _connect_to(self, parameters: pika.ConnectionParameters) -> Any:
        made = self._loop.create_future()

        def opened(raw: Any) -> None:
            if made.done():
                raw.close()
            else:
                made.set_result(raw)

        def failed(_raw: Any, error: BaseException) -> None:
            if not made.done():
                made.set_exception(why_not(error, self.place, where))

        where = f"{parameters.host}:{parameters.port}"
        raw = frames.connection()(
            parameters, on_open_callback=opened, on_open_error_callback=failed, custom_ioloop=self._loop
        )
        raw.add_on_connection_blocked_callback(self._on_blocked)
        raw.add_on_connection_unblocked_callback(self._on_unblocked)
        try:
            await asyncio.wait([made], timeout=self.place.connect_timeout + 2.0)
        except asyncio.CancelledError:
            # nobody will have it: it closes when it opens
            if not made.cancel() and made.exception() is None:
                raw.close()
            raise
        if not made.done():
            made.cancel()
            raise BrokerError(_no_answer(where, self.place))
        return made.result()

    async def _ping(self) -> None:
        try:
            channel = await self.channel()
            every = min(PING_EVERY, self.place.heartbeat / 2)
            while True:
                await asyncio.sleep(every)
                began = self._loop.time()
                asked = channel.begin(channel.raw.basic_qos, prefetch_count=1)
                while not asked.done():
                    await asyncio.wait([asked], timeout=every / 2)
                    # the loop itself may have been held up, so the last answer says nothing: count from the question
                    if not (asked.done() or self.blocked) and self._loop.time() - began > self.place.heartbeat - every:
                        self.rebuild(f"the server has not answered for {self.place.heartbeat}s")
                        return
                asked.result()
                self.heard = self._loop.time()
        except GoneError as error:
            # a channel alone does not close by itself: the connection is going
            log.debug("ping ended", link=self.name, reason=str(error))

    # --- what pika tells ----------------------------------------------------------------------------------------------

    def _on_close(self, _raw: Any, error: BaseException) -> None:
        if _raw is self._raw:
            self._lose(said(error))

    def _on_blocked(self, raw: Any, frame: Any) -> None:
        if raw is self._raw:
            self.blocked = str(frame.method.reason or "a resource alarm")
            log.warning("broker takes no messages", broker=self.place.shown, reason=self.blocked)
            self._changed()

    def _on_unblocked(self, raw: Any, _frame: Any) -> None:
        if raw is self._raw and self.blocked:
            self.blocked = ""
            self.heard = self._loop.time()
            log.info("broker takes messages again", broker=self.place.shown)
            self._changed()

    def _lose(self, why: str) -> None:
        lost = self._lost
        self._forget(why)
        if lost is not None and not lost.done():
            lost.set_result(why)

    def _forget(self, why: str) -> None:
        self._raw = None
        self.trouble = why
        self.blocked = ""
        self._up.clear()
        if self._pinger is not None:
            self._pinger.cancel()
            self._pinger = None
        channels, self._channels = self._channels, set()
        for channel in channels:
            channel.drop(why)
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


def _spread(seconds: float) -> float:
    """Some of *seconds*: not all clients shall come back at once."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _abort(raw: Any) -> None:
    """End a connection whose server does not answer: pika itself has no public way but to wait for the heartbeat."""
    if not raw.is_closed and (terminate := getattr(raw, "_terminate_stream", None)) is not None:
        terminate(exceptions.StreamLostError("given up"))


class _RefusedError(BrokerError):
    """Waiting does not mend it."""


_TEXT = re.compile(r"""["'](?:[A-Z_]+ - )?([^"']*(?:'[^'"]*'[^"']*)*)["']""")


def said(error: BaseException) -> str:
    """What the server said, or what became of the connection, in a few words."""
    text = getattr(error, "reply_text", "")
    if text:
        return str(text).partition(" - ")[2] or str(text)
    if isinstance(error, exceptions.StreamLostError | exceptions.ConnectionClosed):
        return "connection lost"
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return "no heartbeat from the server"
    return str(error) or type(error).__name__


#: What the other side says before it ends a TLS connection.
_ALERT = re.compile(r"\[SSL: (\w+)\]")
#: OpenSSL's numbers for a certificate that is for another host name or address.
_OTHER_NAME = (62, 64)


def _refused_by_tls(reason: str, where: str, place: Place) -> BrokerError:
    """*reason* in OpenSSL's words: ``TLSV13_ALERT_CERTIFICATE_REQUIRED``; empty when the connection just ended."""
    if "WRONG_VERSION" in reason:
        return _RefusedError(f"what answers on {where} does not speak TLS; check the port, or write amqp://")
    if place.cert is None and (not reason or "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason):
        return _RefusedError(f"{where} refuses clients without a certificate; give one by cert= and key=")
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        said_ = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return _RefusedError(f"{where} does not accept the client's certificate {place.cert}: {said_}")
    return _RefusedError(f"no TLS connection to {where}: {reason.replace('_', ' ').lower() or 'the server ended it'}")


def _no_answer(where: str, place: Place) -> str:
    return f"no answer from {where} within {place.connect_timeout:g}s"


def why_not(error: BaseException, place: Place, where: str) -> BrokerError:
    """Why no connection to *where*, host and port, came about, and what to do."""
    if isinstance(error, exceptions.ProbableAuthenticationError | exceptions.AuthenticationError):
        return _RefusedError(f"the server refused user {place.user!r} or its password; check the URL's credentials")
    if isinstance(error, exceptions.ProbableAccessDeniedError):
        why = f"user {place.user!r} may not use the virtual host {place.vhost!r}"
        if "not found" in str(error):
            why = f"there is no virtual host {place.vhost!r} on the server"
        elif "limit" in str(error):
            return BrokerError("the server takes no more connections for this virtual host or user")
        return _RefusedError(f"{why}; rabbitmqctl add_vhost and set_permissions make one")
    if isinstance(error, exceptions.IncompatibleProtocolError):
        # TLS 1.3 refuses a client's certificate only after the handshake, and pika keeps nothing of it but the text
        if place.tls:
            alert = _ALERT.search(str(error))
            return _refused_by_tls(alert[1] if alert else "", where, place)
        return _RefusedError(
            "what answers there does not speak AMQP 0-9-1; check host and port, or is it for amqps://?"
        )
    cause: BaseException = error
    while True:
        inner = getattr(cause, "exceptions", None) or [getattr(cause, "exception", None) or (cause.args or [None])[0]]
        if not isinstance(inner[-1], BaseException):
            break
        cause = inner[-1]
    if isinstance(cause, ConnectionRefusedError):
        return BrokerError(f"nothing listens on {where}; start the server, or correct host and port in the URL")
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = cause.verify_message.rstrip(".")
        if cause.verify_code in _OTHER_NAME:
            return _RefusedError(f"the server's certificate is not for {where}: {why}; give server_name=")
        return _RefusedError(f"the server's certificate is not trusted: {why}; give its authority by ca=")
    if isinstance(cause, ssl.SSLError):
        return _refused_by_tls(str(cause.reason or cause), where, place)
    if isinstance(cause, OSError) and cause.strerror:
        return BrokerError(f"cannot connect to {where}: {cause.strerror}")
    if isinstance(cause, TimeoutError | connection_workflow.AMQPConnectorStackTimeout):
        return BrokerError(_no_answer(where, place))
    return BrokerError(f"cannot connect to {where}: {cause or type(cause).__name__}")
