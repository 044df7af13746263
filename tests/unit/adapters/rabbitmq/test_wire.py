"""Messages as AMQP properties, and what foreign ones become."""

from __future__ import annotations

from typing import Any

import msgspec
import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec

from handrail.errors import SendError, TooLargeError
from handrail.message import Message, valid_id
from handrail_rabbitmq import wire


def crossed(message: Message) -> Message:
    """*message* after it was written and read, through pika's own encoding."""
    encoded = b"".join(wire.properties(message).encode())
    return wire.message(message.queue, spec.BasicProperties().decode(encoded), message.body)


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
