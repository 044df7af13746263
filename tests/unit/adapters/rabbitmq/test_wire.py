"""Messages as AMQP properties, and what foreign ones become."""

from __future__ import annotations

import decimal
from typing import Any

import msgspec
import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.errors import SendError, TooLargeError
from handrail.message import Message, valid_id
from handrail.outcome import Fault
from handrail_rabbitmq import tables, wire


def crossed(message: Message) -> Message:
    """*message* after it was written and read."""
    return wire.message(message.queue, wire.encode(wire.properties(message)), message.body)


VALUES = (
    st.text(alphabet=st.characters(codec="utf-8"))
    | st.binary()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
)


@given(st.dictionaries(st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,20}", fullmatch=True), VALUES, min_size=1, max_size=6))
def test_headers_of_every_type_come_back_as_they_were(headers: dict[str, Any]) -> None:
    """Text, bytes, booleans, floats and integers of any size cross, though pika writes not all of them."""
    found = crossed(Message(queue="work", id="a", body=b"", headers=headers)).headers

    assert found == headers
    assert {name: type(value) for name, value in (found or {}).items()} == {n: type(v) for n, v in headers.items()}


def test_a_foreign_message_gets_an_id_and_the_defaults() -> None:
    """Plain JSON without any property is a first attempt with a fresh id."""
    found = wire.message("work", pika.BasicProperties(), b"{}")

    assert valid_id(found.id)
    assert (found.priority, found.attempts, found.sent_at, found.headers, found.native) == (4, 0, 0.0, None, None)


def test_what_we_have_no_place_for_survives() -> None:
    """Correlation id, reply-to, type, tables and lists of a foreign message are there again when it is put back."""
    foreign = pika.BasicProperties(
        correlation_id="c", reply_to="r", type="t", headers={"table": {"a": [1, "b"]}, "plain": "x"}, message_id="id ä"
    )
    found = wire.message("work", foreign, b"{}")

    again = wire.properties(found)

    assert (again.correlation_id, again.reply_to, again.type) == ("c", "r", "t")
    assert again.headers["table"] == {"a": [1, "b"]}
    assert again.headers["plain"] == "x"
    assert again.headers["amqp-message-id"] == "id ä"


def test_the_notes_of_servers_are_dropped() -> None:
    """x-death and its kin do not pile up, nor does a delay's route go with the message."""
    headers = {"x-death": [{"count": 1}], "x-first-death-queue": "q", "CC": ["a"], "x-delivery-count": 3, "mine": 1}

    assert wire.message("work", pika.BasicProperties(headers=headers), b"").headers == {"mine": 1}


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.binary() | st.none() | st.lists(st.text())))
def test_nothing_in_headers_raises(headers: dict[str, Any]) -> None:
    """Anybody may write headers: ours with nonsense in them are left at their defaults."""
    nonsense = dict(
        zip((f"handrail-{name}" for name in ("due", "options", "numbers", "attempts")), headers.values(), strict=False)
    )

    found = wire.message("work", pika.BasicProperties(headers={**headers, **nonsense}), b"")

    assert found.attempts >= 0


def test_headers_beyond_what_a_server_takes_are_refused_in_words() -> None:
    """The server would close the connection, so such a message is refused before."""
    with pytest.raises(TooLargeError, match="use the body"):
        wire.properties(Message(queue="work", id="a", body=b"", headers={"x": "y" * 110_000}))
    with pytest.raises(SendError, match="255"):
        wire.properties(Message(queue="work", id="a", body=b"", headers={"x" * 300: 1}))


def test_a_lone_surrogate_is_made_valid() -> None:
    """pika would raise on it; it is replaced."""
    found = crossed(Message(queue="work", id="a", body=b"", headers={"x": "a\ud800b"}))

    assert found.headers == {"x": "a?b"}
    assert msgspec.json.encode(found.headers)


TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
COUNTS = st.integers(0, 3)


@given(
    st.builds(
        Message,
        queue=st.just("work"),
        id=st.from_regex(r"[A-Za-z0-9\-_.:@/]{1,128}", fullmatch=True),
        body=st.just(b"{}"),
        content_type=st.sampled_from(["application/json", "text/plain", "x" * 255, "ä"]),
        headers=st.none() | st.dictionaries(TEXTS, VALUES, max_size=2),
        priority=st.integers(0, 9),
        key=st.none() | TEXTS,
        sent_at=st.floats(0, 2e9),
        due=st.none() | st.floats(0, 2e9),
        attempts=COUNTS,
        starts=COUNTS,
        crashes=COUNTS,
        send=TEXTS,
        fault=st.none() | st.builds(Fault, reason=TEXTS, traceback=TEXTS, at=st.floats(0, 2e9), queue=TEXTS),
    )
)
def test_what_is_written_and_read_directly_is_what_is_written_and_read_by_parts(message: Message) -> None:
    """The short ways of the usual message write the same bytes, and read the same message."""
    encoded = wire.encode(wire.properties(message))

    assert wire.encoded(message) == encoded
    assert wire.message("work", encoded, b"{}") == wire.message("work", tables.decode(encoded), b"{}")


@given(st.integers(0, 9), st.floats(1e9, 1.7e9), st.integers(0, 2**80 - 1), st.data())
def test_a_message_that_asks_for_nothing_has_no_table(
    priority: int, sent_at: float, chance: int, data: st.DataObject
) -> None:
    """Its id and two properties tell when it was sent, to the millisecond; any client reads them, damaged ones too."""
    sent = Message(
        queue="work", id=f"{int(sent_at * 1000) << 80 | chance:032x}", body=b"{}", priority=priority, sent_at=sent_at
    )
    encoded = wire.encoded(sent)
    found = tables.decode(encoded)

    assert (found.headers, found.app_id, found.timestamp) == (None, "handrail", int(sent_at * 1000) // 1000)
    crossed = wire.message("work", encoded, b"{}")
    assert crossed.sent_at == pytest.approx(sent_at, abs=1.1e-3)
    assert msgspec.structs.replace(crossed, sent_at=sent_at) == sent
    assert wire.message("work", found, b"{}") == crossed
    assert wire.encoded(crossed) == encoded

    damaged = bytearray(encoded)
    damaged[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        parts = tables.decode(bytes(damaged))
    except ValueError:
        return
    direct, by_parts = wire.message("work", bytes(damaged), b"{}"), wire.message("work", parts, b"{}")
    if not valid_id(parts.message_id or ""):
        by_parts.id = direct.id  # a fresh one each
    assert direct == by_parts


FOREIGN_VALUES = st.recursive(
    TEXTS | st.binary(max_size=9) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.builds(
        pika.BasicProperties,
        content_type=st.none() | TEXTS,
        content_encoding=st.none() | TEXTS,
        headers=st.none() | st.dictionaries(TEXTS, FOREIGN_VALUES, max_size=3),
        delivery_mode=st.none() | st.integers(0, 255),
        priority=st.none() | st.integers(0, 255),
        correlation_id=st.none() | TEXTS,
        expiration=st.none() | TEXTS,
        timestamp=st.none() | st.integers(0, 2**64 - 1),
        app_id=st.none() | TEXTS,
        cluster_id=st.none() | TEXTS,
    )
)
def test_properties_are_written_and_read_as_pika_does(properties: pika.BasicProperties) -> None:
    """Where pika loses nothing the bytes are pika's, and reading them gives what was written."""
    encoded = tables.encode(properties)

    assert encoded == b"".join(properties.encode())
    assert tables.decode(encoded) == properties


def test_what_pika_would_lose_is_kept() -> None:
    """Fractions, decimals, and times that are in no calendar stand in the headers as their sender wrote them."""
    sent = {"ratio": 0.5, "price": decimal.Decimal("-12.50"), "ms": tables.Timestamp(2**53), "all": [1.25, {"x": -0.5}]}
    encoded = tables.encode(pika.BasicProperties(headers=sent))

    found = wire.message("work", encoded, b"{}")

    assert tables.decode(wire.encode(wire.properties(found))).headers.items() >= sent.items()
    assert found.headers == {"ratio": 0.5}
    assert isinstance(found.native.headers["ms"], tables.Timestamp)


def test_a_kind_that_amqp_does_not_have_is_an_error() -> None:
    """What is no table is said to be none, and nothing is read beyond its end."""
    table = b"\x01a?"
    with pytest.raises(ValueError, match=r"no kind '\?'"):
        tables.decode(b"\x20\x00" + len(table).to_bytes(4) + table)
    with pytest.raises(ValueError, match="no properties of AMQP"):
        tables.decode(b"\x80\x00\x05abc")


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\xb8\x80" + tail), st.data())
def test_damaged_properties_are_never_read_directly(noise: bytes, data: st.DataObject) -> None:
    """Noise, and properties with one byte changed, are what they are when they are read by parts, if they are anything."""
    good = bytearray(wire.encode(wire.properties(Message(queue="work", id="an-id", body=b"", sent_at=1.5, attempts=2))))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] = data.draw(st.integers(0, 255))
    for encoded in (noise, bytes(good)):
        try:
            expected = wire.message("work", tables.decode(encoded), b"")
        except ValueError:
            continue
        found = wire.message("work", encoded, b"")
        if expected.id != found.id:  # a message without an id gets a fresh one
            assert not valid_id(tables.decode(encoded).message_id or "")
            found.id = expected.id
        assert found == expected
