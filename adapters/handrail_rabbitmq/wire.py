"""Messages as AMQP properties and headers, and back. Anybody may write those, so reading never raises. It does no I/O."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pika

from handrail.errors import SendError, TooLargeError
from handrail.message import DEFAULT_PRIORITY, JSON, PREFIX, Message, apply_metadata, metadata, new_id, valid_id

_Properties = pika.BasicProperties

_KEY = "handrail-key"
#: Names the headers that are numbers which pika's field types cannot carry, and travel as text.
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
            if kind is float or (kind is int and not -(2**63) <= value < 2**63):
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


def message(queue: str, found: pika.BasicProperties, body: bytes) -> Message:
    """The message that came with *found* and *body* for *queue*, which is its name without the prefix."""
    raw: dict[str, Any] = found.headers or {}
    ours: dict[str, str] = {}
    headers: dict[str, Any] = {}
    strange: dict[str, Any] = {}
    for name, value in raw.items():
        if name.startswith(PREFIX):
            ours[name] = value if type(value) is str else str(value)
        elif name in _STRIPPED or name.startswith(_STRIPPED_PREFIXES):
            continue
        elif isinstance(value, str | bytes | bool | float):
            headers[name] = value
        elif isinstance(value, int):
            headers[name] = int(value)  # pika has an integer type of its own, which nobody else can encode
        elif _travels(value):
            strange[name] = value
    kept: dict[str, Any] = {}
    for name in _KEPT:
        value = getattr(found, name)
        if value is not None:
            kept[name] = value
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
        made.sent_at = float(found.timestamp)
    return made


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
    """Whether pika can write what pika has read."""
    if isinstance(value, dict):
        return all(_travels(one) for one in value.values())
    if isinstance(value, list):
        return all(_travels(one) for one in value)
    return value is None or isinstance(value, str | bytes | int | dt.datetime)
