"""The pipe between the dispatcher and a host: what they say to each other, and the framing. It decides nothing.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one array of messages, what gathered in one turn of
the loop or the first part of it. Every message is an array whose first element is its op. Bodies cross undecoded.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from handrail.config.model import Settings
from handrail.outcome import Backoff


class ToHost(enum.IntEnum):
    """What the dispatcher says. The shapes stand behind each op; the op itself comes first in the array."""

    #: ``Load`` as a mapping: what to load. The first message, sent once.
    LOAD = 1
    #: token, slot, queue number, body, :data:`Facts`: run this. The queue number is the index in ``Load.queues``.
    RUN = 2
    #: token, reason: stop this job; ``timeout``, ``cancelled`` or ``drain``. The host answers FREED when nothing of it is left.
    CANCEL = 3
    #: number: answer with PONG.
    PING = 4
    #: send number, list of (index, error text) of messages that were not stored: what became of a SEND.
    SENT = 5
    #: none: all work is over: leave the lifespan, then end.
    STOP = 6


class ToDispatcher(enum.IntEnum):
    """What a host says."""

    #: list of ``Found`` mappings, list of problems (one text each, for people). After LOAD. With problems no READY follows.
    FOUND = 1
    #: none: the lifespan is entered, handlers can run.
    READY = 2
    #: token, End, then by End; see there.
    DONE = 3
    #: token: a cancelled or timed-out job has really ended (an async task finished, a thread returned).
    FREED = 4
    #: token: the job is a thread that cannot be stopped; it was abandoned.
    ABANDONED = 5
    #: number
    PONG = 6
    #: send number, list of encoded messages: publish these.
    SEND = 7
    #: token, progress (0 to 1)
    PROGRESS = 8
    #: token, text, level: a line a handler wrote with ``context.job.log``
    LOG = 9
    #: level, event, mapping: something the host itself has to say in the worker's log.
    SAY = 10


class End(enum.IntEnum):
    """How a job ended in its host; the further elements of DONE."""

    #: result as JSON bytes, or None when there is none (None is not kept)
    COMPLETED = 0
    #: class name, text, traceback, index of the matching ``errors`` rule or -1
    FAILED = 1
    #: reason, traceback: no retry
    REJECTED = 2
    #: seconds
    LATER = 3
    #: reason: the body cannot be decoded or does not fit the annotated type; no retry can mend it
    UNFIT = 4


#: What a host is told of a delivery besides its body, in this order: id, attempt (this one, from 1), starts, crashes,
#: sent_at, content type, priority, key, headers (mapping or None), deadline (monotonic seconds or None).
Facts = tuple[str, int, int, int, float, str, int, str | None, dict[str, Any] | None, float | None]


class Load(msgspec.Struct, frozen=True):
    """What a host is to load."""

    settings: Settings
    #: The queues this host serves; RUN names them by index.
    queues: list[str]
    #: Distinguishes this host's bytecode cache, so that code saved twice in a second is never stale.
    generation: str
    #: The board's descriptor in the host, or -1 without a board.
    board_fd: int = -1
    #: Whether log lines of the host should be readable by people rather than JSON.
    colors: bool = False


class Found(msgspec.Struct, frozen=True):
    """What a host found for one queue."""

    queue: str
    #: Where the function stands, for people: ``handlers/mail.py:send_welcome``.
    where: str
    kind: Literal["async", "thread", "process"]
    #: Whether it takes ``(message, callback)`` rather than ``(message)``.
    callback: bool
    #: Name of the annotated type of ``message``, or empty.
    type: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()

#: The most a frame may hold; a length beyond it means the stream is out of step.
LARGEST_FRAME = 1 << 30
#: A frame of that many bytes, or of that many messages, leaves at once rather than at the end of the turn. Were a hundred jobs
#: to cross as one, the dispatcher and its host would take turns: each has work for half of the time only.
FULL_FRAME, FULL_COUNT = 1 << 24, 25

#: What stands before the messages of a frame: its length, then msgpack's mark of an array with a 32-bit count.
_HEAD = struct.Struct(">IBI")
_FRONT = bytes(_HEAD.size)
_ARRAY = 0xDD

Batch = list[list[Any]]


class Pipe(Protocol):
    """One end. ``send`` queues a message, which leaves with others, at the latest at the end of this turn of the loop."""

    def send(self, message: list[Any]) -> None: ...

    def close(self) -> None: ...


class _Outbox:
    """The frame that gathers. A message is encoded when it is sent: one that cannot be raises there, and harms no other."""

    __slots__ = ("count", "frame")

    def __init__(self) -> None:
        self.count = 0
        self.frame = bytearray(_FRONT)

    def add(self, message: list[Any]) -> None:
        frame = self.frame
        before = len(frame)
        try:
            _encoder.encode_into(message, frame, -1)
            if len(frame) - before > LARGEST_FRAME - FULL_FRAME:
                raise OverflowError(f"{len(frame) - before:,} bytes are more than fit between two processes")
        except BaseException:
            del frame[before:]
            raise
        self.count += 1

    def take(self) -> bytearray:
        """The finished frame; the next one is empty. It is given away: a transport may keep it until it is written."""
        frame, count = self.frame, self.count
        self.frame, self.count = bytearray(_FRONT), 0
        _HEAD.pack_into(frame, 0, len(frame) - 4, _ARRAY, count)
        return frame


class SocketPipe(asyncio.Protocol):
    """One end of a socket pair, on the running loop."""

    def __init__(self, receive: Callable[[Batch], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._out = _Outbox()
        self._in = bytearray()
        self._transport: asyncio.Transport | None = None
        self._closed = False

    @classmethod
    async def connect(
        cls, sock: socket.socket, receive: Callable[[Batch], None], lost: Callable[[], None]
    ) -> SocketPipe:
        """A pipe over *sock*. *receive* gets each frame's messages; *lost* is called once when no more can come.

        That is when the other end is gone, the stream is out of step, or this end was closed. After :meth:`close`
        *receive* is not called again.
        """
        pipe = cls(receive, lost)
        await asyncio.get_running_loop().create_connection(lambda: pipe, sock=sock)
        return pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # a host's outcomes and a dispatcher's runs are bounded by the credit given, so no further limit is needed
        transport.set_write_buffer_limits(high=1 << 28)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol
        self._closed = True
        self._lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._in
        if buffer:
            buffer += data
            # a frame in many pieces is put together once, when it is whole (or can never be)
            if len(buffer) < 4 or len(buffer) - 4 < int.from_bytes(buffer[:4], "big") <= LARGEST_FRAME:
                return
            data = bytes(buffer)
            buffer.clear()
        at, end = 0, len(data)
        while end - at >= 4 and not self._closed:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > LARGEST_FRAME:
                self.close()
                return
            if end - at - 4 < size:
                break
            self._receive(_decoder.decode(memoryview(data)[at + 4 : at + 4 + size]))
            at += 4 + size
        if at < end:
            buffer += data[at:]

    def send(self, message: list[Any]) -> None:
        """Queue *message*; raises ``TypeError``, ``OverflowError`` or ``UnicodeError`` for one that msgpack cannot carry."""
        first = not self._out.count
        self._out.add(message)
        if len(self._out.frame) >= FULL_FRAME or self._out.count >= FULL_COUNT:
            self.flush()
        elif first:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was queued now instead of at the end of this turn."""
        if self._out.count:
            frame = self._out.take()
            if not self._closed and self._transport is not None:
                self._transport.write(frame)

    def close(self) -> None:
        if self._transport is not None and not self._closed:
            self.flush()
            self._closed = True
            self._transport.close()


class MemoryPipe:
    """One end of a pipe within one loop, for a host that lives in the dispatcher's own process (tests, embedding).

    Messages cross as msgpack all the same, so that nothing works here that would fail between processes.
    """

    def __init__(self) -> None:
        self._peer: MemoryPipe | None = None
        self._receive: Callable[[Batch], None] = lambda _batch: None
        self._lost: Callable[[], None] = lambda: None
        self._out = _Outbox()
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[MemoryPipe, MemoryPipe]:
        a, b = cls(), cls()
        a._peer, b._peer = b, a
        return a, b

    def listen(self, receive: Callable[[Batch], None], lost: Callable[[], None]) -> None:
        """*receive* gets each batch; *lost* is called once when the other end was closed, not for one's own :meth:`close`."""
        self._receive, self._lost = receive, lost

    def send(self, message: list[Any]) -> None:
        """Queue *message*; raises as :meth:`SocketPipe.send` does."""
        first = not self._out.count
        self._out.add(message)
        if first:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._out.count:
            frame = self._out.take()
            if self._peer is not None and not self._closed and not self._peer._closed:
                self._peer._receive(_decoder.decode(memoryview(frame)[4:]))

    def close(self) -> None:
        if self._closed:
            return
        self._flush()
        self._closed = True
        if self._peer is not None and not self._peer._closed:
            asyncio.get_running_loop().call_soon(self._peer._lost)


def backoff_of(mapping: dict[str, Any] | None) -> Backoff | None:
    """A backoff that crossed a pipe or a wire as a mapping."""
    return None if mapping is None else msgspec.convert(mapping, Backoff)
