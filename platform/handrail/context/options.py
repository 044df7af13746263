"""The options of a send, checked and brought to the form in which they travel. It sends nothing and reads no settings."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from handrail import duration
from handrail.backoff import parse_backoff
from handrail.errors import InvalidOptionError
from handrail.message import HIGHEST, LOWEST, PREFIX, Options, valid_id
from handrail.outcome import Backoff

#: ``"1h30m"``, seconds as a number, or a timedelta.
Duration: TypeAlias = str | float | timedelta
Header: TypeAlias = str | int | float | bool | bytes

#: Bytes that the names and values of one message's headers may take together.
HEADERS_BYTES = 64 * 1024
KEY_BYTES = 256
_NAME_BYTES = 255


class Given(msgspec.Struct, frozen=True):
    """Options after the checks. None is: not given."""

    delay: float | None = None
    #: Unix time in seconds.
    at: float | None = None
    priority: int | None = None
    options: Options | None = None
    id: str | None = None
    headers: dict[str, Header] | None = None
    key: str | None = None

    def due(self, now: float) -> float | None:
        """Unix time before which it must not be delivered, or None for at once."""
        if self.delay:
            return now + self.delay
        return self.at if self.at is not None and self.at > now else None


NOTHING = Given()


def check(
    *,
    delay: Duration | None = None,
    at: datetime | float | None = None,
    priority: int | None = None,
    attempts: int | None = None,
    backoff: Mapping[str, Any] | list[Any] | Duration | Backoff | None = None,
    timeout: Duration | None = None,
    expires: Duration | None = None,
    id: str | None = None,  # noqa: A002 - the public name
    headers: Mapping[str, Header] | None = None,
    key: str | None = None,
) -> Given:
    """The options in the form in which they travel. Raises :class:`InvalidOptionError`, one line that names the option."""
    if delay is not None and at is not None:
        raise InvalidOptionError("delay= and at= both say when; give one of them")
    own = Options(
        attempts=None if attempts is None else _attempts(attempts),
        backoff=None if backoff is None else _backoff(backoff),
        timeout=None if timeout is None else _positive("timeout", timeout),
        expires=None if expires is None else _positive("expires", expires),
    )
    return Given(
        delay=None if delay is None else _seconds("delay", delay),
        at=None if at is None else _at(at),
        priority=None if priority is None else _priority(priority),
        options=None if own == Options() else own,
        id=None if id is None or id == "" else _id(id),
        headers=_headers(headers) if headers is not None else None,
        key=None if key is None else _key(key),
    )


def merge(shared: Given, own: Given) -> Given:
    """*own*, and what it leaves open from *shared*. Headers and the queue's options merge one by one."""
    when = own if own.delay is not None or own.at is not None else shared
    options = own.options
    if shared.options is not None:
        options = options or Options()
        names = Options.__struct_fields__
        options = Options(
            **{
                name: mine if (mine := getattr(options, name)) is not None else getattr(shared.options, name)
                for name in names
            }
        )
    headers = {**shared.headers, **(own.headers or {})} if shared.headers else own.headers
    return Given(
        delay=when.delay,
        at=when.at,
        priority=own.priority if own.priority is not None else shared.priority,
        options=options,
        id=own.id,
        headers=_headers(headers) if headers else None,  # together they may be too large
        key=own.key if own.key is not None else shared.key,
    )


def _seconds(name: str, value: Duration) -> float:
    if not isinstance(value, str | int | float | timedelta):
        raise InvalidOptionError(f"{name}={value!r} is not a duration; write it like 30s, 5m or 1h30m, or as seconds")
    try:
        return duration.seconds(value)
    except (ValueError, OverflowError) as error:
        raise InvalidOptionError(f"{name}=: {error}") from None


def _positive(name: str, value: Duration) -> float:
    number = _seconds(name, value)
    if not number:
        raise InvalidOptionError(f"{name}={value!r} leaves no time at all; it must be more than 0")
    return number


def _at(value: datetime | float) -> float:
    if isinstance(value, datetime):
        try:
            moment = value.timestamp()
        except (OverflowError, OSError, ValueError) as error:
            raise InvalidOptionError(f"at={value!r} is no time that can be kept: {error}") from None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOptionError(f"at={value!r} is no time; give a datetime, or Unix time in seconds")
    else:
        try:
            moment = float(value)
        except OverflowError:
            moment = math.inf
    if not math.isfinite(moment) or moment < 0:
        raise InvalidOptionError(f"at={value!r} is no time; give a datetime, or Unix time in seconds")
    if moment > time.time() + duration.LONGEST:
        hint = "; it looks like milliseconds: divide by 1000" if moment > 1e11 else ""
        raise InvalidOptionError(f"at={value!r} is more than ten years ahead{hint}")
    return moment


def _priority(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not LOWEST <= value <= HIGHEST:
        raise InvalidOptionError(
            f"priority={value!r} is no whole number from {LOWEST} to {HIGHEST} ({HIGHEST} goes first)"
        )
    return int(value)


def _attempts(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOptionError(
            f"attempts={value!r} is no whole number from 1; it counts the runs in all, the first included"
        )
    if value > 1_000_000:
        raise InvalidOptionError(f"attempts={value!r} is more than a million")
    return int(value)


def _backoff(value: Any) -> Backoff:
    try:
        return parse_backoff(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidOptionError(f"backoff=: {error}") from None


def _id(value: str) -> str:
    if not isinstance(value, str):
        raise InvalidOptionError(f"id={value!r} is {type(value).__name__}, not str")
    if not valid_id(value):
        shown = value if len(value) <= 60 else f"{value[:57]}…"
        raise InvalidOptionError(
            f"id={shown!r} cannot be an id on every broker; use 1 to 128 letters, digits and -_.:@/"
        )
    return str(value)


def _key(value: str) -> str:
    if not isinstance(value, str):
        raise InvalidOptionError(f"key={value!r} is {type(value).__name__}, not str")
    size = _size(value, "key=")
    if not 1 <= size <= KEY_BYTES:
        raise InvalidOptionError(f"key= has {size} bytes of UTF-8; it may have 1 to {KEY_BYTES}")
    return str(value)


def _headers(value: Mapping[str, Header]) -> dict[str, Header] | None:
    if not isinstance(value, Mapping):
        raise InvalidOptionError(f"headers={value!r} is {type(value).__name__}, not a mapping of names to values")
    found: dict[str, Header] = {}
    total = 0
    for name, item in value.items():
        total += _header_name(name) + _header_size(name, item)
        found[str(name)] = item
    if total > HEADERS_BYTES:
        raise InvalidOptionError(
            f"headers= take {total:,} bytes, more than {HEADERS_BYTES:,}; put large things in the message"
        )
    return found or None


def _header_name(name: str) -> int:
    if not isinstance(name, str) or not name:
        raise InvalidOptionError(f"headers= has the name {name!r}; a name is a non-empty str")
    if name.lower().startswith(PREFIX):
        raise InvalidOptionError(f"headers= has the name {name!r}; names that begin with {PREFIX!r} are handrail's own")
    if not name.isprintable():
        raise InvalidOptionError(f"headers= has the name {name!a}; a name holds printable characters only")
    size = _size(name, f"headers= name {name!r}")
    if size > _NAME_BYTES:
        raise InvalidOptionError(f"headers= has a name of {size} bytes, more than {_NAME_BYTES}: {name[:40]!r}…")
    return size


def _header_size(name: str, value: Header) -> int:
    match value:
        case bool():
            return 1
        case str():
            return _size(value, f"headers[{name!r}]")
        case bytes():
            return len(value)
        case int():
            if not -(2**63) <= value < 2**63:
                raise InvalidOptionError(f"headers[{name!r}] is an integer beyond 64 bits; send it as a string")
            return 8
        case float():
            if not math.isfinite(value):
                raise InvalidOptionError(f"headers[{name!r}] is {value!r}, which not every broker can carry")
            return 8
    raise InvalidOptionError(
        f"headers[{name!r}] is {type(value).__name__}; a value is str, int, float, bool or bytes (for more, use the message)"
    )


def _size(value: str, what: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidOptionError(f"{what} holds the lone surrogate {value[error.start]!a}, which is no text") from None
