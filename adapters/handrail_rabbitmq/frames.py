"""pika's connection with a short way for the frames that pass by the thousand; every other frame takes pika's own way.

pika decodes a delivery as three frame objects and a method object, and writes a publish as three of them. Here the usual
delivery, confirm, publish and acknowledgement go straight between bytes and the one function that wants them. The short way
is taken only where pika's parts are the ones it was written against; elsewhere all works as before, and only the speed is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any

from pika import BasicProperties, exceptions
from pika import channel as pika_channel
from pika import frame as pika_frame
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import io_services_utils

from handrail_rabbitmq import tables

#: Takes a delivery: its tag, whether it was delivered before, its properties (flags and values, as they came) and its body.
Take = Callable[[int, bool, bytes | BasicProperties, bytes], None]
#: Hears of a confirm: its number, and whether it speaks for all before it.
Confirm = Callable[[int, bool], None]

#: Bytes read from the socket at once; pika's own 4096 are a dozen small messages.
READ = 1 << 16

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_END = 0xCE
_QOS, _QOS_OK, _PUBLISH, _DELIVER, _ACK = 0x003C000A, 0x003C000B, 0x003C0028, 0x003C003C, 0x003C0050
_BASIC = 0x003C
# type, channel, size, method
_method = Struct(">BHII").unpack_from
# type, channel, size, class, weight, size of the body
_header = Struct(">BHIHHQ").unpack_from
# type, channel, size
_body = Struct(">BHI").unpack_from
# delivery tag, bits
_tag = Struct(">QB").unpack_from
_head = Struct(">BHI").pack
_header_head = Struct(">BHIHHQ").pack
_ack = Struct(">BHIIQBB").pack
_qos = Struct(">BHIIIHBB").pack
#: Bytes before the properties in a header frame, and of whole frames.
_HEADER_SIZE, _ACK_SIZE, _QOS_OK_SIZE = 19, 21, 12


class Encoded(BasicProperties):  # type: ignore[misc,unused-ignore]
    """Properties that are encoded already, for pika's own way of publishing."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self._encoded = encoded

    def encode(self) -> list[bytes]:
        return [self._encoded]


class Gathering(AsyncioConnection):  # type: ignore[misc,unused-ignore]
    """pika's connection, but what is written in one turn of the loop goes out in one system call.

    Should a later pika write by another way, this is not called, and only the speed is lost.
    """

    _gathered: list[bytes] | None = None

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._gathered is None:
            self._gathered = []
            asyncio.get_running_loop().call_soon(self._emit_gathered)
        self._gathered.append(data)

    def _read_frame(self) -> tuple[int, Any]:
        data = self._frame_buffer
        if len(data) > _HEADER_SIZE and data[0] == _HEADER:
            _kind, number, size, _class, _weight, length = _header(data)
            end = size + 8
            if end <= len(data) and data[end - 1] == _END:
                # pika would lose what it cannot represent
                return end, pika_frame.Header(number, length, tables.decode(bytes(data[_HEADER_SIZE : end - 1])))
        found: tuple[int, Any] = super()._read_frame()
        return found

    def _emit_gathered(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered and self._transport is not None:
            self._emit(b"".join(gathered))

    def _emit(self, data: bytes) -> None:
        super()._adapter_emit_data(data)


class ShortChannel(pika_channel.Channel):  # type: ignore[misc,unused-ignore]
    """A channel that its connection hands deliveries and confirms without pika's objects."""

    def __init__(self, connection: Any, number: int, on_open_callback: Any) -> None:
        super().__init__(connection, number, on_open_callback)
        self.takes: dict[bytes, Take] = {}
        self.on_confirm: Confirm | None = None
        #: Who waits for each answer to basic.qos that is still to come, None for pika itself.
        self.fences: deque[asyncio.Future[None] | None] = deque()
        self._methods: dict[tuple[str, str], bytes] = {}

    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None:
        self._raise_if_not_open()
        self.connection.emit(_ack(_METHOD, self.channel_number, 13, _ACK, delivery_tag, multiple, _END), 1)

    def fence(self, prefetch: int, passed: asyncio.Future[None]) -> None:
        """Ask for something that changes nothing; *passed* is done when the server has done all that came before."""
        self._raise_if_not_open()
        self.fences.append(passed)
        self.connection.emit(_qos(_METHOD, self.channel_number, 11, _QOS, 0, prefetch, 0, _END), 1)

    def _send_method(self, method: Any, content: Any = None) -> None:
        if method.INDEX == _QOS:
            self.fences.append(None)
        super()._send_method(method, content)

    def publish(self, exchange: str, key: str, properties: bytes, body: bytes) -> None:
        """As ``basic_publish``, mandatory, with properties that are encoded already."""
        self._raise_if_not_open()
        method = self._methods.get((exchange, key)) or self._publish_method(exchange, key)
        size, number, most = len(body), self.channel_number, self.connection.body_max
        header = _header_head(_HEADER, number, 12 + len(properties), _BASIC, 0, size)
        if size <= most:
            end = b"\xce" + _head(_BODY, number, size) if size else b""
            self.connection.emit(b"".join((method, header, properties, end, body, b"\xce")), 3 if size else 2)
            return
        self.connection.emit(b"".join((method, header, properties, b"\xce")), 2)
        for at in range(0, size, most):
            part = body[at : at + most]
            self.connection.emit(b"".join((_head(_BODY, number, len(part)), part, b"\xce")), 1)

    def _publish_method(self, exchange: str, key: str) -> bytes:
        names = [name.encode() for name in (exchange, key)]
        if too_long := [name for name in names if len(name) > 255]:
            raise exceptions.ShortStringTooLong(too_long[0])
        # ticket; the names; mandatory
        payload = b"".join((b"\0\0", *(bytes([len(name)]) + name for name in names), b"\x01"))
        made = b"".join((_head(_METHOD, self.channel_number, 4 + len(payload)), _PUBLISH.to_bytes(4), payload, b"\xce"))
        if len(self._methods) >= 1000:  # keys of delays and answers are without number
            self._methods.clear()
        self._methods[exchange, key] = made
        return made


class Short(Gathering):
    """The connection that knows the short way."""

    #: Whether what is written goes to the socket as it is.
    _plain = False

    @property
    def body_max(self) -> int:
        """The most bytes of a body that one frame carries."""
        return int(self._body_max_length)

    def emit(self, data: bytes, frames: int) -> None:
        """Write encoded frames."""
        self.bytes_sent += len(data)
        self.frames_sent += frames
        if (gathered := self._gathered) is not None:
            gathered.append(data)
        else:
            self._adapter_emit_data(data)

    def _create_channel(self, channel_number: int, on_open_callback: Any) -> ShortChannel:
        return ShortChannel(self, channel_number, on_open_callback)

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = READ
        self._plain = type(transport) is io_services_utils._AsyncPlaintextTransport
        if self._plain:
            # what is left is read in the next turn; to read until there is nothing costs an exception each time
            transport._MAX_CONSUME_BYTES = 1
        super()._proto_connection_made(transport)

    def _emit(self, data: bytes) -> None:
        transport = self._transport
        if self._plain and not transport._tx_buffers and transport._state == transport._STATE_ACTIVE:
            try:
                sent = transport._sock.send(data)
            except OSError:
                sent = 0  # pika meets it again and knows what to do
            if sent == len(data):
                return
            data = data[sent:]
        super()._emit(data)

    def _on_data_available(self, data_in: bytes) -> None:
        self._frame_buffer += data_in
        while self._frame_buffer and self._shortcut():
            consumed, frame = self._read_frame()
            if not frame:
                return
            self._trim_frame_buffer(consumed)
            self._process_frame(frame)

    def _shortcut(self) -> bool:
        """Hand on the deliveries and confirms that the buffer begins with; whether pika shall read what comes next.

        A delivery is method, header and body, which no other frame of its channel interrupts. One that has not arrived as a
        whole is left for the next read, unless it is of several frames, which pika puts together.
        """
        data = self._frame_buffer
        channels, most = self._channels, self._body_max_length
        at, end, frames, proceed = 0, len(data), 0, True
        while end - at >= _QOS_OK_SIZE:
            kind, number, size, method = _method(data, at)
            channel = channels.get(number)
            if kind != _METHOD or channel is None:
                break
            if method == _QOS_OK:
                if not channel.fences or data[at + 11] != _END or (passed := channel.fences.popleft()) is None:
                    break
                at += _QOS_OK_SIZE
                frames += 1
                if not passed.done():
                    passed.set_result(None)
                continue
            if end - at < _ACK_SIZE:
                break
            if method == _ACK and channel.on_confirm is not None and data[at + 20] == _END:
                tag, bits = _tag(data, at + 11)
                at += _ACK_SIZE
                frames += 1
                channel.on_confirm(tag, bits & 1 == 1)
                continue
            if method != _DELIVER:
                break
            name_end = at + 12 + data[at + 11]
            take = channel.takes.get(data[at + 12 : name_end])
            if take is None:
                break
            header = at + 8 + size
            if header + _HEADER_SIZE > end:
                proceed = False
                break
            kind, owner, size, _class, _weight, length = _header(data, header)
            body = header + 8 + size
            done = body + 8 + length if length else body
            if kind != _HEADER or owner != number or length > most:
                break
            if done > end:
                proceed = False
                break
            if length and _body(data, body) != (_BODY, number, length):
                break
            if not data[header - 1] == data[body - 1] == data[done - 1] == _END:
                break
            tag, bits = _tag(data, name_end)
            at = done
            frames += 3 if length else 2
            take(
                tag, bits & 1 == 1, data[header + _HEADER_SIZE : body - 1], data[body + 7 : done - 1] if length else b""
            )
        if at and self._frame_buffer is data:
            self.frames_received += frames
            self._trim_frame_buffer(at)
        return proceed and bool(self._frame_buffer)


#: What pika's functions do that the short way replaces or goes round, by the names that they use.
_REPLACED: dict[tuple[type[Any], str], set[str]] = {
    (AsyncioConnection, "_on_data_available"): {"_frame_buffer", "_read_frame", "_trim_frame_buffer", "_process_frame"},
    (AsyncioConnection, "_trim_frame_buffer"): {"_frame_buffer", "bytes_received"},
    (AsyncioConnection, "_output_marshaled_frames"): {"len", "bytes_sent", "frames_sent", "_adapter_emit_data"},
    (AsyncioConnection, "_create_channel"): {"LOGGER", "debug", "pika", "channel", "Channel"},
    (AsyncioConnection, "_deliver_frame_to_channel"): {
        *("channel_number", "_channels", "LOGGER", "critical", "NAME", "_handle_content_frame"),
    },
    (AsyncioConnection, "_send_message"): {
        *("len", "frame", "Method", "Header", "Body", "append", "marshal", "int", "math", "ceil", "float"),
        *("_body_max_length", "_output_marshaled_frames"),
    },
    (io_services_utils._AsyncPlaintextTransport, "write"): {
        *("_state", "_STATE_ACTIVE", "_LOGGER", "debug", "_sock", "get_write_buffer_size", "_buffer_tx_data"),
        *("_nbio", "set_writer", "fileno", "_on_socket_writable"),
    },
    (io_services_utils._AsyncPlaintextTransport, "_consume"): {
        *("_state", "_STATE_ACTIVE", "_MAX_CONSUME_BYTES", "_sigint_safe_recv", "_sock", "_MAX_RECV_BYTES", "len"),
        *("_LOGGER", "error", "RxEndOfFile", "_protocol", "data_received", "Exception", "exception"),
    },
    (io_services_utils._AsyncPlaintextTransport, "_produce"): {
        *("_tx_buffers", "_sigint_safe_send", "_sock", "popleft", "len", "_LOGGER", "debug", "appendleft"),
        *("_tx_buffered_byte_count", "_state"),
    },
    (pika_channel.Channel, "_send_method"): {"connection", "_send_method", "channel_number"},
    (pika_channel.Channel, "basic_ack"): {"_raise_if_not_open", "_send_method", "spec", "Basic", "Ack"},
    (pika_channel.Channel, "_on_deliver"): {
        *("method", "consumer_tag", "delivery_tag", "_cancelled", "is_open", "_consumers_with_noack", "basic_reject"),
        *("_consumers", "LOGGER", "error", "properties"),
    },
}


def connection() -> type[Gathering]:
    """The fastest connection that this pika allows."""
    for (owner, name), names in _REPLACED.items():
        code = getattr(getattr(owner, name, None), "__code__", None)
        if code is None or set(code.co_names) - {"range", "xrange"} != names:
            return Gathering
    return Short
