"""Payloads to bytes and back."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import uuid
from collections import OrderedDict, deque
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail import codec
from handrail.codec import DecodeError, content_of, decode, decoder, encode, encode_result
from handrail.errors import SerialisationError


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Share(float):
    pass


@dataclasses.dataclass
class User:
    name: str
    joined: date | None = None
    tags: list[str] = dataclasses.field(default_factory=list)


class Order(msgspec.Struct):
    id: int
    user: User | None = None
    note: str | msgspec.UnsetType = msgspec.UNSET


class Model(pydantic.BaseModel):
    n: int
    when: datetime | None = None
    user_id: int = pydantic.Field(0, alias="userId")


class Options(TypedDict):
    a: int


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"a": [1, 2.5, True, None, "ä"]}, '{"a":[1,2.5,true,null,"ä"]}'),
        (None, "null"),
        (0, "0"),
        ("", '""'),
        (MOMENT, '"2026-01-02T03:04:05.678000Z"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (time(3, 4), '"03:04:00"'),
        (timedelta(minutes=2), '"PT120S"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.10"), '"1.10"'),
        (Decimal("NaN"), '"NaN"'),
        ([b"\x00\xff"], '["AP8="]'),
        (Colour.RED, '"red"'),
        (Level.HIGH, "3"),
        ((1, 2), "[1,2]"),
        ({1}, "[1]"),
        (frozenset({1}), "[1]"),
        (Point(1, 2), "[1,2]"),
        (deque([1, 2]), "[1,2]"),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        (Text("a"), '"a"'),
        (Number(3), "3"),
        (Share(0.5), "0.5"),
        ({Text("k"): Number(1)}, '{"k":1}'),
        (User("ann", date(2026, 1, 2)), '{"name":"ann","joined":"2026-01-02","tags":[]}'),
        (Order(1), '{"id":1,"user":null}'),
        (Model(n=1, userId=2), '{"n":1,"when":null,"userId":2}'),
        ([Model(n=1, when=MOMENT)], '[{"n":1,"when":"2026-01-02T03:04:05.678000Z","userId":0}]'),
        ({1: "a", 2.5: "b", Level.HIGH: "c", uuid.UUID(int=1): "d", date(2026, 1, 2): "e"}, None),
        (2**64, "18446744073709551616"),
        (-(2**200), str(-(2**200))),
        ({"n": 10**4000}, '{"n":1' + "0" * 4000 + "}"),
    ],
)
def test_what_becomes_of_each_type(value, body):
    """Each type that JSON has no word for has one way to be written."""
    written, content_type = encode(value)

    assert content_type == "application/json"
    if body is None:
        assert list(json.loads(written).values()) == list("abcde")
    else:
        assert body == written.decode()
    assert written == encode_result(value)


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_pass_through(value):
    """A payload of bytes is those bytes; a result of bytes is base64 text, for results are JSON."""
    assert encode(value) == (b"\x00\xff", "application/octet-stream")
    assert encode_result(value) == b'"AP8="'


def circle() -> Any:
    inner: dict[str, Any] = {}
    inner["list"] = [1, {"back": inner}]
    return {"start": inner}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Broken(pydantic.BaseModel):
    n: int = 1

    @pydantic.field_serializer("n")
    def _explode(self, _value: int) -> int:
        raise RuntimeError("no such luck")


UNWRITABLE = [
    ({"items": [0, 1, 2, {"when": object()}]}, "message.items[3].when: an object cannot be written as JSON"),
    ({"a b": {"c": print}}, "message['a b'].c: a builtin_function_or_method cannot be written as JSON; call it first"),
    (User, "message: a type cannot be written as JSON"),
    (range(3), "message: a range cannot be written as JSON; turn it into JSON's own types"),
    ((n for n in [1]), "message: a generator cannot be written as JSON"),
    (User("ann", None, [object()]), "message.tags[0]: an object cannot"),
    (Order(1, User("ann", 1j)), "message.user.joined: a complex cannot"),
    (float("nan"), "message: nan is a float that JSON cannot write; send None or a string instead"),
    ({"a": [None, {"b": float("-inf")}]}, "message.a[1].b: -inf is a float that JSON cannot write"),
    (User("ann", float("inf")), "message.joined: inf is a float"),
    ([Share("nan")], "message[0]: nan is a float"),
    ({"a": "ok\ud800"}, r"message.a: lone surrogate '\ud800' at character 2; it is no text"),
    ({"a": {"\udfff": 1}}, r"message.a: key '\udfff': lone surrogate"),
    ({None: 1}, "message: the key None is a NoneType; JSON's keys are strings"),
    ({"a": {True: 1}}, "message.a: the key True is a bool; JSON's keys are strings"),
    ({(1, 2): 1}, "message: the key (1, 2) is a tuple"),
    ({"n": 10**5000}, "message.n: an integer of more than 4300 digits; send it as hex text: hex(n)"),
    (circle(), "message.start.list[1].back: circular reference: it holds message.start again"),
    (deep(100_000), "message: nested 100000 levels deep, more than can be written as JSON; flatten it"),
    ([msgspec.UNSET], "message[0]: UNSET can stand only in a field of a msgspec struct"),
    ([Broken()], "message[0]: test_codec.Broken failed to serialise itself: PydanticSerializationError"),
]


@pytest.mark.parametrize(("value", "text"), UNWRITABLE, ids=[text[:50] for _, text in UNWRITABLE])
def test_what_cannot_be_written_is_named_by_its_path(value, text):
    """Whatever JSON cannot hold is refused in one line that begins with its path."""
    with pytest.raises(SerialisationError) as raised:
        encode(value)

    assert text in str(raised.value).replace("tests.unit.", "")
    assert "\n" not in str(raised.value)


def test_results_are_named_as_results():
    """A handler's result is refused by a path that begins with ``result``."""
    with pytest.raises(SerialisationError, match=r"result\.a\[0\]: an object cannot be written"):
        encode_result({"a": [object()]})


def test_a_long_path_is_cut_in_its_middle():
    """The path to something very deep stays one readable line."""
    value: Any = object()
    for _ in range(300):
        value = {"a": value}
    with pytest.raises(SerialisationError) as raised:
        encode(value)

    assert "…" in str(raised.value)
    assert len(str(raised.value)) < 200


def test_the_same_object_twice_is_no_circle():
    """An object that stands in two places is written twice."""
    shared = {"n": None}

    assert encode([shared, shared])[0] == b'[{"n":null},{"n":null}]'


def test_null_in_a_text_is_no_nan():
    """Payloads with None or the word null in them are written whatever they are made of."""
    value = {"a": None, "b": "null", "c": [User("null")], "d": Decimal(1), "e": 1.5}

    assert json.loads(encode(value)[0])["a"] is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_values_come_back_as_they_were(value):
    """Any JSON value survives the way there and back, big integers to the last digit."""
    body, _ = encode(value)

    assert decode(body, "json") == value
    assert json.loads(body) == value


@given(
    st.recursive(
        st.none() | st.floats() | st.text(st.characters()), lambda i: st.lists(i) | st.dictionaries(st.text(), i)
    )
)
def test_floats_and_texts_are_written_or_refused(value):
    """A payload with NaN or a surrogate anywhere is refused; what is written always comes back equal."""
    try:
        body, _ = encode(value)
    except SerialisationError as error:
        assert str(error).startswith("message")  # noqa: PT017 - either way is right
    else:
        assert decode(body, "json") == value


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not JSON: the body is empty"),
        (b" \n", "not JSON: the body is empty"),
        (b"hello", "not JSON: expecting value at character 0, near 'hello'"),
        (b'{"a":1', """not JSON: expecting ',' delimiter at character 6, near '{"a":1'"""),
        (b'{"a": 1,\n "b": x}', "not JSON: expecting value at line 2, column 7"),
        (b"[1,]", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a":1} {"b":2}', "not JSON: extra data at character 8"),
        (b"NaN", "it holds NaN, which JSON does not know"),
        (b'{"a":-Infinity}', "it holds -Infinity, which JSON does not know"),
        (b"1e999", "the number 1e999 is too large for a float"),
        (b'{"a":"\\ud800"}', r"message.a: lone surrogate '\ud800'"),
        (b"\xff\xfe", "not UTF-8: byte 0xff at position 0"),
        (b'{"a":"\xe4"}', "not UTF-8: byte 0xe4 at position 6"),
        (b"[" * 100_000, "JSON nested too deep to be read"),
        (b"1" * 5000, "JSON that cannot be read: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_body_that_is_not_json_says_where(body, text):
    """A body that cannot be read is refused in one line that says where and why."""
    with pytest.raises(DecodeError) as raised:
        decode(body, "json")

    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=60))
def test_no_body_breaks_the_decoder(body):
    """Whatever bytes come, decoding gives a value or a DecodeError."""
    for type_ in (None, User, Order, Model, dict[str, int]):
        try:
            decode(body, "json", type_)
        except DecodeError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either way is right


def test_a_byte_order_mark_is_skipped():
    """JSON behind a byte order mark is read, as some senders write it; a text keeps it."""
    assert decode(b'\xef\xbb\xbf{"a":1}', "json") == {"a": 1}
    assert decode(b'\xef\xbb\xbf{"a":1}', "json", Options) == {"a": 1}
    with pytest.raises(DecodeError, match="not JSON"):
        decode(b"\xef\xbb\xbf", "json")
    assert decode(b"\xef\xbb\xbfa", "text") == "\ufeffa"


@pytest.mark.parametrize(
    ("type_", "body", "value"),
    [
        (None, b'{"a":1}', {"a": 1}),
        (Any, b"1", 1),
        (object, b"null", None),
        (dict, b'{"a":1}', {"a": 1}),
        (User, b'{"name":"ann","joined":"2026-01-02","more":1}', User("ann", date(2026, 1, 2))),
        (Order, b'{"id":1,"user":{"name":"ann"}}', Order(1, User("ann"))),
        (Model, b'{"n":1,"when":"2026-01-02T03:04:05.678Z","userId":2}', Model(n=1, when=MOMENT, userId=2)),
        (list[Model], b'[{"n":1}]', [Model(n=1)]),
        (Model | None, b"null", None),
        (dict[str, Model], b'{"a":{"n":1}}', {"a": Model(n=1)}),
        (Options, b'{"a":1}', {"a": 1}),
        (Point, b"[1,2]", Point(1, 2)),
        (datetime, b'"2026-01-02T03:04:05.678000Z"', MOMENT),
        (Colour, b'"red"', Colour.RED),
        (Literal["a", "b"], b'"b"', "b"),
        (set[int], b"[1,1]", {1}),
        (Decimal, b'"1.10"', Decimal("1.10")),
        (Annotated[int, msgspec.Meta(gt=0)], b"1", 1),
        (int, str(2**80).encode(), 2**80),
    ],
)
def test_bodies_become_the_annotated_type(type_, body, value):
    """A body is converted to a dataclass, struct, model, TypedDict, or whatever else msgspec or pydantic can make."""
    assert value == decode(body, "json", type_)
    assert value == decode(body, "bytes", type_) or type_ in {None, Any, object}


@pytest.mark.parametrize(
    "value",
    [User("ann", date(2026, 1, 2)), Order(1, User("b"), "note"), Model(n=1, when=MOMENT, userId=3), Point(1, 2)],
)
def test_what_was_sent_typed_arrives_typed(value):
    """An object sent by one program is the same object where its type is annotated."""
    assert value == decode(encode(value)[0], "json", type(value))


class Wrap(msgspec.Struct):
    items: list[Model]


@pydantic.dataclasses.dataclass
class Strict:
    n: Annotated[int, pydantic.Field(gt=0)]


@pytest.mark.parametrize(
    ("type_", "body", "text"),
    [
        (User, b'{"name":1}', "message.name: expected str, got int (for User)"),
        (User, b"[]", "message: expected object, got array (for User)"),
        (User, b"{}", "message: object missing required field name (for User)"),
        (
            Order,
            b'{"id":1,"user":{"name":"a","tags":["x",2]}}',
            "message.user.tags[1]: expected str, got int (for Order)",
        ),
        (Model, b'{"n":"x"}', "message.n: input should be a valid integer"),
        (Model, b'{"when":1}', "message.n: field required (for Model)"),
        (Model, b'{"n":"x","userId":"y"}', "(for Model, and 1 more)"),
        (list[Model], b'[{"n":1},{"n":[]}]', "message[1].n: input should be a valid integer"),
        (Wrap, b'{"items":[{"n":1},{"n":"x"}]}', "message.items[1].n: input should be a valid integer"),
        (Strict, b'{"n":0}', "message.n: input should be greater than 0 (for Strict)"),
        (Options, b'{"a":null}', "message.a: expected int, got null (for Options)"),
        (int, b'"1"', "message: expected int, got str (for int)"),
        (Colour, b'"blue"', "message: invalid enum value 'blue' (for Colour)"),
        (User, b"{", "not JSON"),
        (Model, b"{", "not JSON"),
        (Model, b"\xff", "not UTF-8"),
    ],
)
def test_a_body_that_does_not_fit_says_what_was_expected(type_, body, text):
    """A body that does not fit the annotated type is refused in one line: path, expected, found."""
    with pytest.raises(DecodeError) as raised:
        decode(body, "json", type_)

    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


class Plain:
    pass


@pytest.mark.parametrize("type_", [Plain, list[Plain], User | Order, "User", bytes.join])
def test_a_type_that_json_can_never_become_is_refused_before_any_message(type_):
    """decoder() itself refuses an annotation that no message could fit."""
    with pytest.raises(TypeError, match=r"cannot be converted|could not be resolved"):
        decoder("json", type_)


def test_texts_and_bytes():
    """A text queue gives str, a bytes queue the bytes; a typed bytes queue reads them as JSON."""
    assert decode(b"a\xc3\xa4", "text") == decode(b"a\xc3\xa4", "text", str) == "aä"
    assert decode(b"\xff", "bytes") == decode(b"\xff", "bytes", bytes) == b"\xff"
    with pytest.raises(DecodeError, match="not UTF-8: byte 0xff at position 1"):
        decode(b"a\xff", "text")
    with pytest.raises(TypeError, match="content: text gives str, not int"):
        decoder("text", int)


def test_a_decoder_is_made_once():
    """The decoder of a type is made once, and shared."""
    assert decoder("json", User) is decoder("json", User)
    assert decoder("json") is not decoder("text")


def test_only_bytes_that_handrail_sent_stay_bytes():
    """On a json queue, our own bytes stay bytes; a foreign octet-stream is read as the JSON it usually is."""
    assert content_of("json", "application/octet-stream", 1.0) == "bytes"
    assert content_of("json", "application/octet-stream", 0.0) == "json"
    assert content_of("json", "application/json", 1.0) == "json"
    assert content_of("text", "application/octet-stream", 1.0) == "text"


def test_the_interpreter_s_limit_of_digits_holds():
    """An integer at the limit of digits is exact both ways."""
    number = 10 ** (sys.get_int_max_str_digits() - 1)

    assert decode(encode(number)[0], "json") == number
    assert codec.JSON == encode(number)[1]
