"""Messages, their ids, and the metadata that travels in headers."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.message import PREFIX, Message, Options, apply_metadata, metadata, new_id, valid_id
from handrail.outcome import Backoff, Fault


def fresh(**fields):
    return Message(queue="q", id="a", body=b"1", **fields)


@pytest.mark.parametrize(
    "value",
    ["a", "A-z_0.9:@/", "x" * 128, pytest.param(new_id(), id="one of ours"), "550e8400-e29b-41d4-a716-446655440000"],
)
def test_valid_ids(value):
    """An id is 1 to 128 letters, digits and -_.:@/."""
    assert valid_id(value)


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", "ä", "a\n", "a\x00", "٣", "a+b", "a,b"])
def test_invalid_ids(value):
    """Anything else is none, since some broker could not carry it."""
    assert not valid_id(value)


def test_a_message_is_unique_by_what_handrail_made():
    """A name of the sending, or an id of the moment of sending, is one message's alone; any other id may be many's."""
    now = time.time()

    assert Message(queue="q", id=new_id(), body=b"", sent_at=now).unique
    assert Message(queue="q", id="mine", body=b"", sent_at=now, send=new_id()).unique
    assert not Message(queue="q", id="mine", body=b"", sent_at=now).unique
    assert not Message(queue="q", id=new_id(), body=b"").unique
    assert not Message(queue="q", id=new_id(), body=b"", sent_at=now - 3600).unique
    assert not Message(queue="q", id="x" * 32, body=b"", sent_at=now).unique


def test_fresh_ids_are_distinct_and_sort_by_age():
    """Ids made in different milliseconds sort by age, and no two are the same."""
    first = new_id()
    until = time.time() + 0.005
    many = []
    while time.time() < until:
        many.append(new_id())
    last = new_id()

    assert first < last
    assert len({first, last, *many}) == len(many) + 2
    assert all(len(made) == 32 and valid_id(made) for made in many)


def test_a_fresh_message_has_no_metadata():
    """What is at its default is not written into headers."""
    assert metadata(fresh()) == {}


FULL = {
    "sent_at": 1_700_000_000.25,
    "due": 1_700_000_100.5,
    "attempts": 2,
    "starts": 4,
    "crashes": 1,
    "send": "nonce",
    "options": Options(attempts=5, backoff=Backoff(type="list", delays=(1.0, 2.0)), timeout=1.5, expires=60.0),
    "fault": Fault(reason="ValueError: ä", traceback="frames", at=1_700_000_200.0, queue="q"),
}


@pytest.mark.parametrize("names", [list(FULL), *[[name] for name in FULL]])
def test_metadata_comes_back_as_it_was(names):
    """What is written into headers is read from them unchanged, all together and each alone."""
    message = fresh(**{name: FULL[name] for name in names})
    found = metadata(message)
    other = fresh()
    apply_metadata(other, found)

    assert message == other
    assert all(name.startswith(PREFIX) and isinstance(value, str) for name, value in found.items())


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "handrail-sent-at",
                "handrail-due",
                "handrail-attempts",
                "handrail-starts",
                "handrail-crashes",
                "handrail-send",
                "handrail-options",
                "handrail-reason",
                "handrail-traceback",
                "handrail-dead-at",
                "handrail-dead-queue",
            ]
        ),
        st.one_of(
            st.text(max_size=20),
            st.sampled_from(
                ["nan", "inf", "-1", "1e400", "999999999999", "٣", "²", "{}", "null", '{"attempts":"x"}', "[" * 50]
            ),
        ),
    )
)
def test_headers_from_anywhere_never_stop_a_queue(found):
    """Whatever a foreign sender writes into our headers, reading them raises nothing and counts stay counts."""
    message = fresh()
    apply_metadata(message, found)

    assert message.attempts >= 0
    assert message.starts >= 0
    assert message.crashes >= 0
    assert 0 <= message.sent_at < 1e11
    assert message.due is None or 0 <= message.due < 1e11
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message
