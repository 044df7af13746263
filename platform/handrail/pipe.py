"""The pipe between the dispatcher and a host: what they say to each other, and the framing. It decides nothing.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one array of messages, whatever gathered in one
turn of the loop. Every message is an array whose first element is its op. Bodies cross undecoded.
"""

from __future__ import annotations

import asyncio
import enum
import socket
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

Batch = list[list[Any]]


class Pipe(Protocol):
    """One end. ``send`` queues a message; everything queued in one turn of the loop leaves in one write."""

    def send(self, message: list[Any]) -> None: ...

    def close(self) -> None: ...


class SocketPipe(asyncio.Protocol):
    """One end of a socket pair, on the running loop."""

    def __init__(self, receive: Callable[[Batch], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._out: Batch = []
        self._in = bytearray()
        self._transport: asyncio.Transport | None = None
        self._closed = False

    @classmethod
    async def connect(
        cls, sock: socket.socket, receive: Callable[[Batch], None], lost: Callable[[], None]
    ) -> SocketPipe:
        """A pipe over *sock*. *receive* gets each frame's messages, *lost* is called once when the other end is gone."""
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
            data = bytes(buffer) if len(buffer) >= 4 and len(buffer) - 4 >= int.from_bytes(buffer[:4], "big") else b""
            if not data:
                return
            buffer.clear()
        at, end = 0, len(data)
        while end - at >= 4:
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
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(message)

    def flush(self) -> None:
        """Write what was queued now instead of at the end of this turn."""
        if not self._out or self._closed or self._transport is None:
            self._out.clear()
            return
        frame = _encoder.encode(self._out)
        self._out.clear()
        self._transport.write(len(frame).to_bytes(4, "big") + frame)

    def close(self) -> None:
        if self._transport is not None and not self._closed:
            self.flush()
            self._transport.close()


class MemoryPipe:
    """One end of a pipe within one loop, for a host that lives in the dispatcher's own process (tests, embedding).

    Messages cross as msgpack all the same, so that nothing works here that would fail between processes.
    """

    def __init__(self) -> None:
        self._peer: MemoryPipe | None = None
        self._receive: Callable[[Batch], None] = lambda _batch: None
        self._lost: Callable[[], None] = lambda: None
        self._out: Batch = []
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[MemoryPipe, MemoryPipe]:
        a, b = cls(), cls()
        a._peer, b._peer = b, a
        return a, b

    def listen(self, receive: Callable[[Batch], None], lost: Callable[[], None]) -> None:
        self._receive, self._lost = receive, lost

    def send(self, message: list[Any]) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(message)

    def _flush(self) -> None:
        batch, self._out = self._out, []
        if batch and self._peer is not None and not self._closed and not self._peer._closed:
            self._peer._receive(_decoder.decode(_encoder.encode(batch)))

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
