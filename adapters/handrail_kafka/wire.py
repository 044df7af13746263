"""Messages as Kafka records: the body is the value, metadata goes into headers, the ordering key is the record's key.

Headers come from the wire, where anybody may write: nothing here raises for what was received.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from handrail.message import (
    DEFAULT_PRIORITY,
    JSON,
    PREFIX,
    Message,
    apply_metadata,
    metadata,
    number,
    valid_id,
)

Headers = list[tuple[str, bytes]]

#: Names of metadata that :func:`handrail.message.metadata` leaves to the broker.
ID, SENT_AT, PRIORITY, TYPES, TARGET, CONTENT_TYPE = (
    "handrail-id",
    "handrail-sent-at",
    "handrail-priority",
    "handrail-types",
    "handrail-queue",
    "content-type",
)
#: Bytes that a record's framing, its batch's header and a request's head take, generously.
OVERHEAD = 512

_json = msgspec.json.Encoder()


class Place(Protocol):
    """Where a record lies: its partition."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...


class Record(Protocol):
    """What aiokafka delivers, as far as it is used here."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Native(msgspec.Struct, frozen=True):
    """What a foreign record had that a message cannot say."""

    #: Its key, when that is no text.
    key: bytes | None = None
    #: Its own headers as they were, when names come twice or values are null.
    headers: tuple[tuple[str, bytes | None], ...] | None = None
    #: It had no value at all: a tombstone, for topics that keep the last of each key.
    null: bool = False


def key_of(message: Message) -> bytes | None:
    if message.key is not None:
        return message.key.encode()
    return message.native.key if isinstance(message.native, Native) else None


def value_of(message: Message) -> bytes | None:
    if isinstance(message.native, Native) and message.native.null and not message.body:
        return None
    return message.body


def headers_of(message: Message, target: str = "") -> Headers:
    """The headers of *message* as a record; *target* is the queue that it waits for, on records among the delays."""
    found: Headers = [(ID, message.id.encode())]
    if message.priority != DEFAULT_PRIORITY:
        found.append((PRIORITY, str(message.priority).encode()))
    if message.content_type != JSON:
        found.append((CONTENT_TYPE, message.content_type.encode()))
    for name, text in metadata(message).items():
        found.append((name, text.encode("utf-8", "surrogateescape")))
    if target:
        found.append((TARGET, target.encode()))
    native = message.native.headers if isinstance(message.native, Native) else None
    if native is not None:
        found += native  # type: ignore[arg-type]  # a null value goes back as the null it was
    if message.headers:
        kept = {name for name, _value in native} if native is not None else ()
        types: dict[str, str] = {}
        for name, value in message.headers.items():
            if name in kept:
                continue
            kind, data = _to_bytes(value)
            if kind:
                types[name] = kind
            found.append((name, data))
        if types:
            found.append((TYPES, _json.encode(types)))
    return found


def _to_bytes(value: Any) -> tuple[str, bytes]:
    if isinstance(value, str):
        return "", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bool):
        return "b", b"true" if value else b"false"
    if isinstance(value, int):
        return "i", str(value).encode()
    if isinstance(value, float):
        return "f", repr(value).encode()
    return "x", bytes(value)


def _from_bytes(kind: str, data: bytes) -> Any:
    try:
        if kind == "i":
            return int(data)
        if kind == "f":
            return float(data)
        if kind == "b":
            return data == b"true"
        if kind != "x":
            return data.decode()
    except ValueError:
        pass
    return data


def size_of(key: bytes | None, body: bytes, headers: Headers) -> int:
    """Bytes that the record takes on the wire, never too few."""
    size = len(body) + (len(key) if key else 0) + OVERHEAD
    for name, value in headers:
        size += 4 * len(name) + (len(value) if value else 0) + 10
    return size


def position_id(record: Record, place: Place) -> str:
    """The id of a message whose sender gave it none: where it lies."""
    return f"{place.topic[-100:]}/{place.partition}/{record.offset}"


def message_of(record: Record, queue: str, place: Place) -> Message:
    """The message that *record*, of the partition *place*, is for *queue*."""
    found = record.headers
    # what has no headers but the two that every message of ours has, which is nearly all that comes
    if len(found) == 2 and record.key is None:
        (first, message_id), (second, sent_at) = found
        if first == ID and second == SENT_AT and message_id and sent_at and record.value is not None:
            text = message_id.decode("utf-8", "replace")
            if valid_id(text):
                return Message(queue=queue, id=text, body=record.value, sent_at=number(sent_at, 0.0))
    ours: dict[str, str] = {}
    theirs: list[tuple[str, bytes | None]] = []
    content_type = JSON
    for name, value in record.headers:
        if value is not None and name.startswith(PREFIX):
            ours[name] = value.decode("utf-8", "replace")
        elif name == CONTENT_TYPE and value:
            content_type = value.decode("utf-8", "replace")
        else:
            theirs.append((name, value))
    found_id = ours.get(ID, "")
    if not valid_id(found_id):
        found_id = position_id(record, place)
    message = Message(queue=queue, id=found_id, body=record.value or b"", content_type=content_type)
    raw_key: bytes | None = None
    if record.key is not None:
        try:
            message.key = record.key.decode()
        except ValueError:
            raw_key = record.key
    raw_headers = None
    if theirs:
        types = _types(ours.get(TYPES))
        message.headers = {
            name: "" if value is None else _from_bytes(types.get(name, ""), value) for name, value in theirs
        }
        if len(message.headers) < len(theirs) or any(value is None for _name, value in theirs):
            raw_headers = tuple(theirs)
    null = record.value is None
    if null or raw_key is not None or raw_headers is not None:
        message.native = Native(raw_key, raw_headers, null)
    if len(ours) > 1 or (ours and ID not in ours):
        apply_metadata(message, ours)
        priority = ours.get(PRIORITY, "")
        if len(priority) == 1 and priority in "0123456789":
            message.priority = int(priority)
    return message


def priority_of(record: Record) -> int:
    """The priority of *record*, without decoding the rest."""
    for name, value in record.headers:
        if name == PRIORITY and value and len(value) == 1 and value.isdigit():
            return int(value)
    return DEFAULT_PRIORITY


def _header(record: Record, wanted: str) -> bytes:
    """The first header of that name which holds anything; nothing without one."""
    return next((value for name, value in record.headers if name == wanted and value), b"")


def sent_at_of(record: Record) -> float:
    """When *record* was sent, Unix time in seconds; 0 when it does not say."""
    return number(_header(record, SENT_AT), 0.0)


def target_of(record: Record) -> str:
    """The queue that a record among the delays waits for."""
    return _header(record, TARGET).decode("utf-8", "replace")


def due_of(record: Record) -> float:
    """When a record among the delays is due, Unix time in seconds; 0 when it does not say."""
    for name, value in record.headers:
        if name == "handrail-due":
            try:
                return float(value)
            except (TypeError, ValueError):
                return 0.0
    return 0.0


def _types(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError:
        return {}
