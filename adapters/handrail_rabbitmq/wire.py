"""Messages as AMQP properties and headers, and back. Anybody may write those, so reading never raises. It does no I/O."""

from __future__ import annotations

import decimal
from typing import Any

import msgspec
import pika

from handrail.errors import SendError, TooLargeError
from handrail.message import (
    DEFAULT_PRIORITY,
    HIGHEST,
    JSON,
    PREFIX,
    Message,
    apply_metadata,
    metadata,
    moment_of,
    new_id,
    valid_id,
)
from handrail_rabbitmq import tables

_Properties = pika.BasicProperties

#: The flags of what our own messages have: content type, headers, delivery mode, priority, id.
_USUAL = b"\xb8\x80"
#: The kind of a table's value.
_TEXT = ord("S")
#: Says that a message is ours, so that its id tells when it was sent, to the millisecond.
APP = "handrail"
#: What most messages are: JSON, with an id of ours, and nothing to tell beside the moment of their sending. They have no
#: table at all, which costs the server much: content type, delivery mode, priority, id, timestamp and application.
_LEAN = b"\x98\xc8\x10application/json\x02"
_LEAN_END = b"\x08handrail"
_LEAN_SIZE = len(_LEAN) + 2 + 32 + 8 + len(_LEAN_END)
_NAMES: dict[str, bytes] = {}

_KEY = "handrail-key"
#: Names the headers that are numbers which no type of AMQP's can carry, and travel as text.
_NUMBERS = "handrail-numbers"
#: Where a foreign message's own id is kept when it cannot be ours.
_FOREIGN_ID = "amqp-message-id"

#: Bytes of headers beyond which a server closes the connection (131,064), less room for a fault of two texts of 8 KB.
MOST_HEADERS = 100_000

#: Set by servers; they would pile up, and up to 3.13 a message that seems to go in a circle is dropped in silence.
_STRIPPED = frozenset({"CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-delivery-failed-count"})
_STRIPPED_PREFIXES = ("x-first-death-", "x-last-death-", "x-opt-")

#: Properties of foreign messages that we keep: all but user_id (the server demands it be ours), expiration (it would end
#: a retry) and what has a place in :class:`Message`.
_KEPT = ("content_encoding", "correlation_id", "reply_to", "type", "app_id", "cluster_id", "timestamp")


class Native(msgspec.Struct, omit_defaults=True):
    """What a foreign message had that has no place in :class:`Message`."""

    properties: dict[str, Any]
    #: Headers of types that are no user's header of ours: tables, lists, times.
    headers: dict[str, Any]


def properties(message: Message) -> pika.BasicProperties:
    """The AMQP properties of *message*, without routes. Raises :class:`SendError` for headers that cannot travel."""
    headers: dict[str, Any] = metadata(message)
    if message.key is not None:
        headers[_KEY] = message.key
    native: Native | None = message.native if isinstance(message.native, Native) else None
    if native is not None and native.headers:
        headers.update(native.headers)
    if message.headers:
        numbers = []
        for name, value in message.headers.items():
            kind = type(value)
            if kind is int and not -(2**63) <= value < 2**63:
                numbers.append(name)
                headers[name] = repr(value)
            elif kind is str:
                headers[name] = value if value.isascii() else value.encode("utf-8", "replace").decode()
            else:
                headers[name] = value
        if numbers:
            headers[_NUMBERS] = msgspec.json.encode(numbers).decode()
        _check(headers)
    made = _Properties(
        content_type=message.content_type,
        delivery_mode=2,
        priority=message.priority,
        message_id=message.id,
        headers=headers,
    )
    if native is not None:
        for name, value in native.properties.items():
            setattr(made, name, value)
    return made


def _check(headers: dict[str, Any]) -> None:
    size = 0
    for name, value in headers.items():
        if len(name.encode("utf-8", "replace")) > 255:
            raise SendError(f"header {name[:40]!r}… has a name of more than 255 bytes; AMQP takes no longer ones")
        size += (
            len(name) + 5 + (len(value) * (1 if isinstance(value, bytes) else 4) if hasattr(value, "__len__") else 9)
        )
    if size > MOST_HEADERS:
        size = sum(len(str(name).encode()) + 5 + len(str(value).encode()) for name, value in headers.items())
        if size > MOST_HEADERS:
            raise TooLargeError(
                f"headers of {size:,} bytes are more than RabbitMQ takes ({MOST_HEADERS:,}); use the body"
            )


def encode(properties: pika.BasicProperties) -> bytes:
    """Flags and values, as they stand in a content header. Raises what pika raises."""
    return tables.encode(properties)


def encoded(message: Message) -> bytes:
    """As :func:`properties`, encoded: what most messages have is written without pika's help."""
    if (lean := _lean(message)) is not None:
        return lean
    content_type, id_ = message.content_type.encode(), message.id.encode()
    if message.headers or message.native is not None or len(content_type) > 255 or len(id_) > 255:
        return encode(properties(message))
    found = metadata(message)
    if message.key is not None:
        found[_KEY] = message.key
    table = bytearray()
    for name, text in found.items():
        value = text.encode()
        table += _NAMES.get(name) or _name(name)
        table += len(value).to_bytes(4)
        table += value
    return b"".join(
        (
            _USUAL,
            len(content_type).to_bytes(),
            content_type,
            len(table).to_bytes(4),
            table,
            b"\x02",
            message.priority.to_bytes(),
            len(id_).to_bytes(),
            id_,
        )
    )


def _lean(message: Message) -> bytes | None:
    """The properties of *message* without a table, if all there is to tell finds room in those."""
    if (
        message.attempts
        or message.starts
        or message.crashes
        or message.due is not None
        or message.send
        or message.key is not None
        or message.headers
        or message.options is not None
        or message.fault is not None
        or message.native is not None
        or message.content_type != JSON
        or abs((moment := moment_of(message.id)) - message.sent_at * 1000) >= 1
        or moment < 0
    ):
        return None
    return b"".join(
        (
            _LEAN,
            message.priority.to_bytes(),
            b"\x20",
            message.id.encode(),
            (moment // 1000).to_bytes(8),
            _LEAN_END,
        )
    )


def _name(name: str) -> bytes:
    """How an entry of a table begins whose value is a text."""
    made = _NAMES[name] = len(name).to_bytes() + name.encode() + b"S"
    return made


def message(queue: str, found: pika.BasicProperties | bytes, body: bytes) -> Message:
    """The message that came with *found* and *body* for *queue*, which is its name without the prefix."""
    if isinstance(found, bytes):
        made = _usual(queue, found, body)
        if made is not None:
            return made
        found = tables.decode(found)
    raw: dict[str, Any] = found.headers or {}
    ours: dict[str, str] = {}
    headers: dict[str, Any] = {}
    strange: dict[str, Any] = {}
    for name, value in raw.items():
        if name.startswith(PREFIX):
            ours[name] = value if type(value) is str else str(value)
        elif name in _STRIPPED or name.startswith(_STRIPPED_PREFIXES):
            continue
        elif isinstance(value, str | bytes | bool | float | int) and not isinstance(value, tables.Timestamp):
            headers[name] = value
        elif _travels(value):
            strange[name] = value
    kept = {name: value for name in _KEPT if (value := getattr(found, name)) is not None}
    is_lean = kept.get("app_id") == APP and "timestamp" in kept
    if is_lean:
        del kept["app_id"], kept["timestamp"]
    id_ = found.message_id
    if not (id_ and valid_id(id_)):
        if id_:
            headers.setdefault(_FOREIGN_ID, id_)
        id_ = new_id()
    made = Message(
        queue=queue,
        id=id_,
        body=body,
        content_type=found.content_type or JSON,
        priority=found.priority if found.priority is not None and found.priority <= 9 else DEFAULT_PRIORITY,
    )
    if ours:
        if numbers := ours.get(_NUMBERS):
            _restore(headers, numbers)
        made.key = ours.get(_KEY) or None
        apply_metadata(made, ours)
    if headers:
        made.headers = headers
    if kept or strange:
        made.native = Native(kept, strange)
    if not made.sent_at and isinstance(found.timestamp, int) and 0 < found.timestamp < 1e11:
        moment = moment_of(id_) / 1000
        made.sent_at = moment if is_lean and int(moment) == found.timestamp else float(found.timestamp)
    return made


def _usual(queue: str, found: bytes, body: bytes) -> Message | None:
    """The message, when *found* holds what most messages have and nothing else: ours, with only our texts in its table."""
    if len(found) == _LEAN_SIZE and found.startswith(_LEAN) and (made := _from_lean(queue, found, body)) is not None:
        return made
    if found[:2] != _USUAL:
        return None
    ours: dict[str, str] = {}
    try:
        table = 3 + found[2]
        at = table + 4
        limit = at + int.from_bytes(found[table:at])
        priority, id_ = found[limit + 1], found[limit + 3 :].decode()
        if len(id_) != found[limit + 2] or not valid_id(id_) or priority > HIGHEST:
            return None
        while at < limit:
            end = at + 1 + found[at]
            name = found[at + 1 : end].decode()
            if found[end] != _TEXT or not name.startswith(PREFIX) or name == _NUMBERS:
                return None
            at = end + 5 + int.from_bytes(found[end + 1 : end + 5])
            ours[name] = found[end + 5 : at].decode()
        content_type = found[3:table].decode()
    except (IndexError, UnicodeDecodeError):
        return None
    if at != limit:
        return None
    made = Message(
        queue=queue,
        id=id_,
        body=body,
        content_type=content_type or JSON,
        priority=priority,
        key=ours.get(_KEY) or None,
    )
    if ours:
        apply_metadata(made, ours)
    return made


def _from_lean(queue: str, found: bytes, body: bytes) -> Message | None:
    """The message, when *found* is what a sender who asks for nothing special writes."""
    at = len(_LEAN)
    id_ = found[at + 2 : at + 34].decode("ascii", "replace")
    moment = moment_of(id_)
    if (
        found[at] > HIGHEST
        or found[at + 1] != 32
        or not found.endswith(_LEAN_END)
        or moment // 1000 != int.from_bytes(found[at + 34 : at + 42])
    ):
        return None
    return Message(queue=queue, id=id_, body=body, priority=found[at], sent_at=moment / 1000)


def _restore(headers: dict[str, Any], numbers: str) -> None:
    try:
        names = msgspec.json.decode(numbers, type=list[str])
    except msgspec.DecodeError:
        return
    for name in names:
        text = headers.get(name)
        if isinstance(text, str):
            try:
                headers[name] = int(text) if text.lstrip("-").isdigit() else float(text)
            except ValueError:
                continue


def _travels(value: Any) -> bool:
    """Whether it can be written again."""
    if isinstance(value, dict):
        return all(_travels(one) for one in value.values())
    if isinstance(value, list):
        return all(_travels(one) for one in value)
    return value is None or isinstance(value, str | bytes | int | float | decimal.Decimal)
