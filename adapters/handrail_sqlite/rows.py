"""Messages as rows and back. It knows the columns, and asks no database."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from handrail.errors import SendError
from handrail.logger import get_logger
from handrail.message import JSON, Message, Options
from handrail.outcome import Fault
from handrail_sqlite import statements as sql

log = get_logger("handrail.sqlite")

#: Seconds since 1970 beyond which a time is nonsense; it keeps microseconds within 64 bits.
_LATEST = 1e12
#: Bytes of the largest body: SQLite's limit for a row is 1,000,000,000.
LARGEST_BODY = 990_000_000
#: Type of the msgpack extension that carries an integer of more than 64 bits.
_BIG = 1


class _Meta(msgspec.Struct, omit_defaults=True):
    """What few messages have; msgpack in ``extra.meta``."""

    content_type: str = JSON
    headers: dict[str, Any] | None = None
    key: str | None = None
    options: Options | None = None
    send: str = ""


class Row(msgspec.Struct, array_like=True, gc=False):
    """What a claim selects of each message, in the order of the statement."""

    seq: int
    id: str
    priority: int
    sent: int
    due: int | None
    attempts: int
    starts: int
    crashes: int
    redelivered: int
    size: int
    more: int


def _ext(code: int, data: memoryview) -> Any:
    return int(bytes(data)) if code == _BIG else msgspec.msgpack.Ext(code, bytes(data))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Meta, ext_hook=_ext).decode
decode_rows = msgspec.json.Decoder(list[Row]).decode
_encode_rows = msgspec.json.Encoder().encode


def to_json(rows: Sequence[Any]) -> str:
    """*rows* as the JSON text that statements take."""
    return _encode_rows(rows).decode()


def _big_integers(value: Any) -> Any:
    match value:
        case int() if not -(1 << 63) <= value < 1 << 64:
            return msgspec.msgpack.Ext(_BIG, str(value).encode())
        case dict():
            return {name: _big_integers(one) for name, one in value.items()}
        case list() | tuple():
            return [_big_integers(one) for one in value]
        case _:
            return value


def meta(message: Message) -> bytes | None:
    """What of *message* has no column, None for a plain one."""
    if (
        message.headers is None
        and message.key is None
        and message.options is None
        and not message.send
        and message.content_type == JSON
    ):
        return None
    found = _Meta(message.content_type, message.headers, message.key, message.options, message.send)
    try:
        return _encode(found)
    except OverflowError:
        found.headers = _big_integers(message.headers)
        return _encode(found)


def apply(message: Message, data: bytes) -> None:
    """Set on *message* what :func:`meta` wrote. Damage costs the metadata, never the message."""
    try:
        found = _decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        log.warning("metadata cannot be read; the message is taken without it", id=message.id, error=str(error))
        return
    message.content_type = found.content_type
    message.headers = found.headers
    message.key = found.key
    message.options = found.options
    message.send = found.send


def micros(seconds: float) -> int:
    """Unix *seconds* as the whole microseconds that the columns hold. Raises ``ValueError`` for what is no time."""
    if not -_LATEST < seconds < _LATEST:
        raise ValueError(f"{seconds!r} is not a time")
    return round(seconds * 1e6)


class Batch:
    """Messages ready to be inserted in one statement."""

    __slots__ = ("bodies", "bytes", "counts", "delayed", "extras", "faults", "indexes", "queues", "rows")

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int | None, int, int, int, str]] = []
        self.bodies: list[bytes] = []
        #: Position in ``rows`` → what more it has.
        self.extras: list[tuple[int, bytes]] = []
        self.counts: list[tuple[int, int, int, int]] = []
        self.faults: list[tuple[int, Fault]] = []
        #: Ids of the queues that it touches.
        self.queues: set[int] = set()

    def add(self, messages: Sequence[Message], queues: Mapping[str, int]) -> dict[int, SendError]:
        """Take *messages*; returns, by index, those that no row can hold. They were left out."""
        errors: dict[int, SendError] = {}
        rows, bodies = self.rows, self.bodies
        for index, message in enumerate(messages):
            try:
                data = meta(message)
                body = message.body
                if type(body) is not bytes:
                    body = bytes(body)
                if len(body) > LARGEST_BODY:
                    raise ValueError(f"its body of {len(body):,} bytes is more than SQLite holds")
                more = 0 if data is None else sql.EXTRA
                if message.fault is not None:
                    more |= sql.FAULT
                due = message.due
                message.id.encode()
                row = (
                    queues[message.queue],
                    int(message.priority),
                    None if due is None else micros(due),
                    len(body),
                    micros(message.sent_at),
                    more,
                    message.id,
                )
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                errors[index] = SendError(f"message {message.id!r} cannot be stored: {error}")
                continue
            at = len(rows)
            if data is not None:
                self.extras.append((at, data))
            if message.attempts or message.starts or message.crashes:
                self.counts.append((at, message.attempts, message.starts, message.crashes))
            if message.fault is not None:
                self.faults.append((at, message.fault))
            rows.append(row)
            bodies.append(body)
        return errors


def from_peek(row: tuple[Any, ...], queue: str) -> Message:
    """A message from a row of the statements that peek and find."""
    id_, priority, sent, due, attempts, starts, crashes, body, data, reason, traceback, at, origin = row
    message = Message(
        queue=queue,
        id=id_,
        body=body,
        priority=priority,
        sent_at=sent / 1e6,
        due=None if due is None else due / 1e6,
        attempts=attempts,
        starts=starts,
        crashes=crashes,
    )
    if data is not None:
        apply(message, data)
    if reason is not None:
        message.fault = Fault(reason=reason, traceback=traceback, at=at / 1e6, queue=origin)
    return message


def numbers(values: Sequence[int]) -> array[int]:
    """*values* as the array that ``carray`` takes."""
    return array("q", values)


def from_json(text: str) -> Any:
    """The JSON that a statement returned."""
    return json.loads(text)
