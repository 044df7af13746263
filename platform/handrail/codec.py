"""Payloads and results to bytes and back: JSON, and bytes as they are. It knows no queue, no broker and no handler.

What JSON has no word for becomes text: dates and times ISO 8601, durations ISO 8601, UUIDs and Decimals (NaN included)
their usual form, ``bytes`` inside a payload base64. Sets, tuples and named tuples become arrays; dataclasses, msgspec
structs, attrs classes and pydantic models (by alias) objects; enums their values. Integers are exact up to the
interpreter's own limit of digits. A mapping's keys may be strings, and numbers, enums, UUIDs and dates, which become
strings; ``None``, booleans and tuples are refused as keys. Floats that JSON cannot write (NaN, the infinities) and lone
surrogates are refused.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import re
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec
import msgspec.inspect

from handrail.errors import SerialisationError
from handrail.message import JSON

BYTES = "application/octet-stream"
TEXT = "text/plain"

Content: TypeAlias = Literal["json", "text", "bytes"]

#: How much of a path an error shows at each end; the middle of a longer one is cut.
_PATH_SEGMENTS = 12


class DecodeError(ValueError):
    """A body that is not what its queue says, or does not fit the annotated type. One line, with the place in it."""


# ---------------------------------------------------------------------------------------------------------- encoding


def encode(value: Any) -> tuple[bytes, str]:
    """*value* as a message's body, and its content type: JSON, or the very bytes when it is ``bytes``.

    Raises :class:`SerialisationError`, whose text begins with the path: ``message.items[3].when: …``.
    """
    kind = type(value)
    if kind is bytes:
        return value, BYTES
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), BYTES
    return _json(value, "message"), JSON


def encode_result(value: Any) -> bytes:
    """A handler's result as JSON (``bytes`` as base64 text); errors name the path from ``result``."""
    return _json(value, "result")


def _hook(value: Any) -> Any:
    """What the encoder does not know by itself, as something it does."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):  # the encoder asks for keys too, and True is no key
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    pydantic = sys.modules.get("pydantic")  # a model's class cannot exist without it; importing it costs 0.1 s
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, deque):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{_article(_name(type(value)))} cannot be written as JSON")


_encode = msgspec.json.Encoder(enc_hook=_hook).encode


def _json(value: Any, root: str) -> bytes:
    try:
        body = _encode(value)
    except Exception as error:  # noqa: BLE001 - the user's own objects take part, and may raise anything
        raise SerialisationError(_fault(value, root, failed=True) or f"{root}: {_line(error)}") from None
    # msgspec writes NaN and the infinities as null; only then is a closer look worth its time
    if b"null" in body and _suspicious(value):
        fault = _fault(value, root)
        if fault is not None:
            raise SerialisationError(fault)
    return body


_PLAIN = frozenset({str, int, bool, type(None)})


def _suspicious(value: Any) -> bool:
    """Whether *value* may hold a float that JSON cannot write. Fast; yes on doubt."""
    stack = [value]
    pop, extend = stack.pop, stack.extend
    while stack:
        item = pop()
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is dict:
            extend(item.values())
        elif kind is list or kind is tuple:
            extend(item)
        elif kind is not float or not math.isfinite(item):
            return True
    return False


_LEAVES = (
    bytes,
    bytearray,
    memoryview,
    uuid.UUID,
    Decimal,
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
    msgspec.Raw,
)
_KEYS = (str, int, float, enum.Enum, uuid.UUID, dt.date, dt.time, dt.timedelta, Decimal)

_Step = tuple[str, Any]


def _fault(value: Any, root: str, *, failed: bool = False) -> str | None:
    """Path and reason of the first thing in *value* that cannot be written, or None. Never recurses.

    *failed* says that writing it has failed already, so that depth is a reason too.
    """
    path: list[str] = []
    open_at: dict[int, int] = {}  # id of each container on the way down → its depth, to name a circle
    # objects that _parts made on the way must live as long as their ids are in open_at
    frames: list[tuple[Any, Iterator[_Step]]] = [(None, iter([("", value)]))]
    deepest = 0
    while frames:
        try:
            step = next(frames[-1][1], None)
        except _Unwritable as error:
            return f"{_path(root, path)}: {error}"
        if step is None:
            done, _ = frames.pop()
            open_at.pop(id(done), None)
            if path:
                path.pop()
            continue
        segment, item = step
        path.append(segment)
        if id(item) in open_at:
            start = _path(root, path[: open_at[id(item)]])
            return f"{_path(root, path)}: circular reference: it holds {start} again"
        try:
            parts = _parts(item)
        except _Unwritable as error:
            return f"{_path(root, path)}: {error}"
        if parts is None:
            path.pop()
            continue
        open_at[id(item)] = len(path)
        frames.append((item, iter(parts)))
        deepest = max(deepest, len(path))
    # deeper than this, what can be encoded depends on how much of the stack is in use
    if failed and deepest > 200:
        return f"{root}: nested {deepest} levels deep, more than can be written as JSON; flatten it"
    return None


class _Unwritable(Exception):  # noqa: N818 - never leaves this module
    """Why something cannot be written, without its path."""


def _parts(value: Any) -> Iterable[_Step] | None:
    """What *value* holds, with the piece of path to each; None for what holds nothing. Raises _Unwritable."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, enum.Enum):
        return [(".value", value.value)]
    if isinstance(value, str):
        _check_text(value)
        return None
    if isinstance(value, int):
        _check_int(value)
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Unwritable(f"{float(value)!r} is a float that JSON cannot write; send None or a string instead")
        return None
    if isinstance(value, _LEAVES):
        return None
    if isinstance(value, dict):
        return _items(value)
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"[{index}]", item) for index, item in enumerate(value))
    if isinstance(value, msgspec.Struct):
        return _attributes(value, value.__struct_fields__)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _attributes(value, (field.name for field in dataclasses.fields(value)))
    if (fields := getattr(type(value), "__attrs_attrs__", None)) is not None:
        return _attributes(value, (field.name for field in fields))
    if value is msgspec.UNSET:
        raise _Unwritable("UNSET can stand only in a field of a msgspec struct")
    return [("", _replaced(value))]


def _replaced(value: Any) -> Any:
    try:
        return _hook(value)
    except TypeError as error:
        mend = (
            "; call it first" if callable(value) and not isinstance(value, type) else "; turn it into JSON's own types"
        )
        raise _Unwritable(f"{error}{mend}") from None
    except Exception as error:  # noqa: BLE001 - a model's own serialiser
        raise _Unwritable(f"{_name(type(value))} failed to serialise itself: {_line(error)}") from None


def _items(value: dict[Any, Any]) -> Iterator[_Step]:
    for key, item in list(value.items()):
        if isinstance(key, str):
            text = key
            try:
                _check_text(text)
            except _Unwritable as error:
                raise _Unwritable(f"key {text!a}: {error}") from None
        elif isinstance(key, bool) or not isinstance(key, _KEYS):
            raise _Unwritable(f"the key {_short(key)} is {_article(_name(type(key)))}; JSON's keys are strings")
        else:
            text = str(key)
        yield (f".{text}" if text.isidentifier() else f"[{text!r}]"), item


def _attributes(value: Any, names: Iterable[str]) -> Iterator[_Step]:
    return ((f".{name}", item) for name in names if (item := getattr(value, name, msgspec.UNSET)) is not msgspec.UNSET)


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unwritable(
            f"lone surrogate {value[error.start]!a} at character {error.start}; it is no text, and UTF-8 cannot carry it"
        ) from None


def _check_int(value: int) -> None:
    try:
        str(value)
    except ValueError:
        limit = sys.get_int_max_str_digits()
        raise _Unwritable(f"an integer of more than {limit} digits; send it as hex text: hex(n)") from None


def _path(root: str, path: list[str]) -> str:
    path = [segment for segment in path if segment]
    if len(path) > 2 * _PATH_SEGMENTS:
        path = [*path[:_PATH_SEGMENTS], "…", *path[-_PATH_SEGMENTS:]]
    return root + "".join(path)


def _name(kind: type) -> str:
    return (
        kind.__qualname__ if kind.__module__ in {"builtins", "__main__"} else f"{kind.__module__}.{kind.__qualname__}"
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiouAEIOU' else 'a'} {noun}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


# ---------------------------------------------------------------------------------------------------------- decoding


def content_of(content: Content, content_type: str, sent_at: float) -> Content:
    """How to decode a message of a queue of *content*: bytes that handrail itself sent stay bytes on a ``json`` queue.

    A foreign sender's ``application/octet-stream`` says nothing (some clients put it on everything) and changes nothing.
    """
    return "bytes" if content == "json" and content_type == BYTES and sent_at else content


def decode(body: bytes, content: Content, type_: Any | None = None) -> Any:
    """*body* as the handler's message; see :func:`decoder`, which is the one for many of them."""
    return decoder(content, type_)(body)


_decoders: dict[tuple[Content, Any], Callable[[bytes], Any]] = {}


def decoder(content: Content, type_: Any | None = None) -> Callable[[bytes], Any]:
    """A function from a body to a message: the JSON value, or an instance of *type_*; the text; or the bytes.

    *type_* may be a dataclass, msgspec struct, TypedDict, named tuple, attrs class, pydantic model, or any combination
    of these that msgspec or pydantic can convert to. On a ``bytes`` queue a type other than ``bytes`` reads the body as
    JSON. A byte order mark before JSON is skipped. The function raises :class:`DecodeError`; ``decoder`` itself raises
    ``TypeError`` for a type that JSON can never become.
    """
    try:
        return _decoders[content, type_]
    except (KeyError, TypeError):  # TypeError: an annotation that cannot be hashed
        made = _decoder(content, type_)
    try:
        _decoders[content, type_] = made
    except TypeError:
        return made
    return made


def _decoder(content: Content, type_: Any | None) -> Callable[[bytes], Any]:
    if isinstance(type_, str):
        raise TypeError(f"the annotation {type_!r} could not be resolved to a type")
    free = type_ is None or type_ is Any or type_ is object
    if content == "text" and (free or type_ is str):
        return _text
    if content == "bytes" and (free or type_ is bytes):
        return bytes
    if content == "text":
        raise TypeError(f"a queue of content: text gives str, not {_type_name(type_)}; use content: json")
    if free:
        return _guarded(msgspec.json.Decoder().decode, Any)
    return _typed(type_)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(_not_utf8(error)) from None


def _typed(type_: Any) -> Callable[[bytes], Any]:
    try:
        found = _classes(type_)
        native = not found.pydantic or found.structs
        unknown = [kind for kind in found.unknown if not _pydantic_can(kind)]
        if native and not unknown:
            return _guarded(msgspec.json.Decoder(type_, dec_hook=_convert).decode, type_)
    except TypeError as error:  # a union that msgspec cannot tell apart, a type that cannot be resolved
        reason = str(error)
    except NameError as error:
        raise TypeError(f"the annotation {_type_name(type_)} names something unknown: {error}") from None
    else:
        reason = f"{_type_name(unknown[0])} is no dataclass, struct or model" if unknown else ""
    adapter = _adapter(type_, reason)
    return _guarded(adapter.validate_json, type_)


@dataclasses.dataclass(slots=True)
class _Classes:
    """What kinds of classes a type is made of."""

    pydantic: bool = False
    structs: bool = False
    unknown: list[Any] = dataclasses.field(default_factory=list)


def _classes(type_: Any) -> _Classes:
    found = _Classes()
    seen: set[int] = set()
    todo: list[Any] = [msgspec.inspect.type_info(type_)]
    while todo:
        info = todo.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, list | tuple):
            todo += info
            continue
        if not isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
            continue
        if isinstance(info, msgspec.inspect.CustomType):
            found.unknown.append(info.cls)
            found.pydantic |= _is_pydantic(info.cls)
        elif isinstance(info, msgspec.inspect.StructType):
            found.structs = True
        elif isinstance(info, msgspec.inspect.DataclassType):
            found.pydantic |= _is_pydantic(info.cls)
        todo += [getattr(info, name) for name in info.__struct_fields__ if name not in {"cls", "default"}]
    return found


def _is_pydantic(kind: Any) -> bool:
    return hasattr(kind, "__pydantic_validator__")


def _pydantic_can(kind: Any) -> bool:
    try:
        _adapter(kind, "")
    except TypeError:
        return False
    return True


def _adapter(type_: Any, reason: str) -> Any:
    import pydantic  # noqa: PLC0415 - costs 0.1 s, and most queues need none

    try:
        return pydantic.TypeAdapter(type_)
    except Exception as error:  # noqa: BLE001 - pydantic raises what the user's class raises
        raise TypeError(
            f"JSON cannot be converted to {_type_name(type_)}: {reason or _line(error)}; "
            "annotate a dataclass, a msgspec struct or a pydantic model"
        ) from None


def _convert(type_: type, value: Any) -> Any:
    """A pydantic model inside a msgspec struct. By way of JSON again, for its rules differ between Python and JSON."""
    return decoder("json", type_)(_encode(value))


_AT = re.compile(r"(?s)(.*) - at `(?:key in )?\$?(.*)`")


def _guarded(read: Callable[[bytes], Any], type_: Any) -> Callable[[bytes], Any]:
    def run(body: bytes) -> Any:
        try:
            return read(body)
        except Exception as error:  # noqa: BLE001 - hooks and validators are the user's code and may raise anything
            if body[:3] == b"\xef\xbb\xbf":  # a byte order mark: some senders write one, readers may skip it
                return run(body[3:])
            raise DecodeError(_why(body, type_, error)) from None

    return run


def _why(body: bytes, type_: Any, error: Exception) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as bad:
        return _not_utf8(bad)
    try:
        value = json.loads(text, parse_constant=_constant, parse_float=_finite)
    except json.JSONDecodeError as bad:
        return _syntax(text, bad)
    except _Unwritable as bad:
        return f"JSON that cannot be read: {bad}"
    except RecursionError:
        return "JSON nested too deep to be read"
    except ValueError as bad:  # an integer of more digits than the interpreter converts
        return f"JSON that cannot be read: {bad}"
    if isinstance(error, RecursionError):
        return "JSON nested too deep to be read"
    if fault := _fault(value, "message"):
        return f"JSON that cannot be read: {fault}"
    return _misfit(type_, error)


def _syntax(text: str, bad: json.JSONDecodeError) -> str:
    if not text.strip():
        return "not JSON: the body is empty"
    place = f"line {bad.lineno}, column {bad.colno}" if "\n" in text.strip() else f"character {bad.pos}"
    near = text[max(0, bad.pos - 10) : bad.pos + 20]
    return f"not JSON: {bad.msg[:1].lower()}{bad.msg[1:]} at {place}, near {near!r}"


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise _Unwritable(f"the number {number[:40]} is too large for a float")
    return float(number)


def _constant(name: str) -> float:
    raise _Unwritable(f"it holds {name}, which JSON does not know")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"


def _misfit(type_: Any, error: Exception) -> str:
    """What of the message does not fit the annotated type."""
    if isinstance(error, DecodeError):
        return str(error)
    if isinstance(error, msgspec.ValidationError):
        if isinstance(error.__cause__, DecodeError):
            error_text = str(error.__cause__)
            at = _AT.fullmatch(str(error))
            return error_text.replace("message", f"message{at[2]}", 1) if at else error_text
        text, where = str(error), ""
        if at := _AT.fullmatch(text):
            text, where = at[1], at[2]
        return f"message{where}: {text[:1].lower()}{text[1:].replace('`', '')} (for {_type_name(type_)})"
    listed = getattr(error, "errors", None)
    if callable(listed):
        return _pydantic_misfit(type_, listed())
    return f"message: {_type_name(type_)} refused it: {_line(error)}"


def _pydantic_misfit(type_: Any, problems: list[dict[str, Any]]) -> str:
    first = problems[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    text = " ".join(str(first["msg"]).split())
    return f"message{where}: {text[:1].lower()}{text[1:]} (for {_type_name(type_)}{more})"


def _type_name(type_: Any) -> str:
    return type_.__qualname__ if isinstance(type_, type) and not hasattr(type_, "__args__") else str(type_)
