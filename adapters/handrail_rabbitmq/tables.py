"""Properties and header tables of AMQP as bytes, and back, without loss: pika cuts the fraction off numbers, and times that no
calendar knows end its connection. It does no I/O.
"""

from __future__ import annotations

import calendar
import datetime as dt
import decimal
from collections.abc import Callable
from struct import Struct
from typing import Any

from pika import BasicProperties, exceptions


class Timestamp(int):
    """A time in a table: seconds since 1970 by the specification, and whatever its sender took for that."""


#: Values of fixed size, by their kind, as RabbitMQ reads and writes them.
_FIXED: dict[int, tuple[Struct, Callable[[Any], Any]]] = {
    kind: (Struct(f">{code}"), make)
    for kind, code, make in (
        *((ord("t"), "B", bool), (ord("b"), "b", int), (ord("B"), "B", int)),
        *((ord("s"), "h", int), (ord("U"), "h", int), (ord("u"), "H", int), (ord("I"), "i", int), (ord("i"), "I", int)),
        *((ord("l"), "q", int), (ord("L"), "q", int), (ord("f"), "f", float), (ord("d"), "d", float)),
        *((ord("T"), "Q", Timestamp),),
    )
}
_double, _int, _long = Struct(">cd").pack, Struct(">ci").pack, Struct(">cq").pack
_time, _decimal = Struct(">cQ").pack, Struct(">cBi").pack

#: The properties of a message, in the order of their flags from the highest bit down.
_PROPERTIES = (
    *(("content_type", "text"), ("content_encoding", "text"), ("headers", "table"), ("delivery_mode", "octet")),
    *(("priority", "octet"), ("correlation_id", "text"), ("reply_to", "text"), ("expiration", "text")),
    *(("message_id", "text"), ("timestamp", "long"), ("type", "text"), ("user_id", "text"), ("app_id", "text")),
    ("cluster_id", "text"),
)
#: Those that handrail itself reads, and that so must be text.
_WORDS = ("content_type", "message_id")


# --- reading ----------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> BasicProperties:
    """Flags and values as they stand in a content header. Raises ``ValueError`` for what is none."""
    made = BasicProperties()
    try:
        flags, at = int.from_bytes(data[:2]), 2
        for place, (name, kind) in enumerate(_PROPERTIES):
            if flags & (0x8000 >> place):
                value: Any
                if kind == "table":
                    value, at = _table(data, at)
                elif kind == "text":
                    end = at + 1 + data[at]
                    value, at = _text(data[at + 1 : end]), end
                    if isinstance(value, bytes) and name in _WORDS:
                        value = value.decode("utf-8", "replace")
                else:
                    size = 1 if kind == "octet" else 8
                    value, at = int.from_bytes(data[at : at + size]), at + size
                setattr(made, name, value)
        if at > len(data):
            raise IndexError("cut off")
    except (IndexError, ArithmeticError) as error:
        raise ValueError(f"no properties of AMQP: {error}") from error
    return made


def _text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    end = at + 4 + int.from_bytes(data[at : at + 4])
    at += 4
    found: dict[str, Any] = {}
    while at < end:
        name_end = at + 1 + data[at]
        name = data[at + 1 : name_end].decode("utf-8", "replace")
        found[name], at = _value(data, name_end)
    if at != end:
        raise IndexError("a table ends within a value")
    return found, end


def _value(data: bytes, at: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if (fixed := _FIXED.get(kind)) is not None:
        end = at + fixed[0].size
        if end > len(data):
            raise IndexError("cut off")
        return fixed[1](fixed[0].unpack_from(data, at)[0]), end
    if kind in b"Sx":
        end = at + 4 + int.from_bytes(data[at : at + 4])
        value = data[at + 4 : end]
        return (value if kind == ord("x") else _text(value)), end
    if kind == ord("F"):
        return _table(data, at)
    if kind == ord("A"):
        end = at + 4 + int.from_bytes(data[at : at + 4])
        at += 4
        found = []
        while at < end:
            value, at = _value(data, at)
            found.append(value)
        return found, end
    if kind == ord("V"):
        return None, at
    if kind == ord("D"):
        return decimal.Decimal(int.from_bytes(data[at + 1 : at + 5], signed=True)).scaleb(-data[at]), at + 5
    raise ValueError(f"a table of AMQP has no kind {chr(kind)!r}")


# --- writing ----------------------------------------------------------------------------------------------------------


def encode(properties: BasicProperties) -> bytes:
    """The opposite of :func:`decode`. Raises what pika raises for what cannot be written."""
    flags, parts = 0, []
    for place, (name, kind) in enumerate(_PROPERTIES):
        value = getattr(properties, name)
        if value is None:
            continue
        flags |= 0x8000 >> place
        if kind == "table":
            parts.append(_encoded_table(value))
        elif kind == "text":
            parts.append(_short(value))
        else:
            parts.append(value.to_bytes(1 if kind == "octet" else 8))
    return flags.to_bytes(2) + b"".join(parts)


def _short(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    if len(data) > 255:
        raise exceptions.ShortStringTooLong(data)
    return bytes((len(data),)) + data


def _encoded_table(table: dict[str, Any]) -> bytes:
    data = b"".join(_short(name) + _encoded(value) for name, value in table.items())
    return len(data).to_bytes(4) + data


def _encoded(value: Any) -> bytes:
    match value:
        case str() | bytes():
            data = value.encode() if isinstance(value, str) else value
            return (b"S" if isinstance(value, str) else b"x") + len(data).to_bytes(4) + data
        case bool():
            return b"t\1" if value else b"t\0"
        case Timestamp():
            return _time(b"T", value)
        case int():
            return _int(b"I", value) if -(2**31) <= value < 2**31 else _long(b"l", value)
        case float():
            return _double(b"d", value)
        case dict():
            return b"F" + _encoded_table(value)
        case list():
            data = b"".join(_encoded(one) for one in value)
            return b"A" + len(data).to_bytes(4) + data
        case None:
            return b"V"
        case decimal.Decimal():
            scale = max(0, -int(value.as_tuple().exponent))
            return _decimal(b"D", scale, int(value.scaleb(scale)))
        case dt.datetime():
            return _time(b"T", calendar.timegm(value.utctimetuple()))
    raise exceptions.UnsupportedAMQPFieldException([], value)
