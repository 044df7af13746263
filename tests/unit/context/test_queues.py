"""What context.queues accepts, refuses, and makes of a send."""

from __future__ import annotations

import queue as stdlib_queue
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handrail import context, transport
from handrail.errors import (
    BulkSendError,
    HandrailError,
    InvalidOptionError,
    NoProjectError,
    SendError,
    SerialisationError,
    TooLargeError,
    UnknownQueueError,
)
from handrail.message import Message, Options, valid_id
from handrail.outcome import Backoff

send = context.queues.send_to_queue
send_bulk = context.queues.send_bulk


def test_a_send_reaches_the_broker(broker):
    """A receipt is done once the broker has the message, which is the payload as JSON and nothing else."""
    before = time.time()
    receipt = send("email", {"n": 1})
    receipt.wait(30)

    (message,) = broker.stored
    assert receipt.done
    assert receipt.error is None
    assert (receipt.queue, receipt.id) == ("email", message.id)
    assert (message.queue, message.body, message.content_type) == ("email", b'{"n":1}', "application/json")
    assert (message.priority, message.due, message.options, message.headers, message.send) == (4, None, None, None, "")
    assert before <= message.sent_at <= time.time()
    assert valid_id(message.id)
    assert broker.declared == ["email", "Reports"]


@pytest.mark.parametrize(("payload", "body"), [(None, b"null"), (0, b"0"), ("", b'""'), (False, b"false"), ([], b"[]")])
def test_empty_payloads_are_payloads(broker, payload, body):
    """None, 0 and the empty string are sent like any other payload."""
    send("email", payload).wait(30)

    assert [message.body for message in broker.stored] == [body]


def test_bytes_pass_through(broker):
    """Bytes are sent as they are, and say so in their content type."""
    send("email", b"\x00\xff").wait(30)

    assert [(m.body, m.content_type) for m in broker.stored] == [(b"\x00\xff", "application/octet-stream")]


def test_the_queue_sets_the_priority(broker):
    """A queue's own priority is the default of its messages; the send may say another."""
    send("Reports", 1).wait(30)
    send("Reports", 1, priority=0).wait(30)
    send_bulk("Reports", [1]).wait(30)

    assert [message.priority for message in broker.stored] == [7, 0, 7]


def test_options_travel_with_the_message(broker):
    """Every option arrives in the message in seconds, whatever form it was written in."""
    send(
        "email",
        1,
        priority=9,
        attempts=5,
        backoff={"type": "fixed", "delay": "3s"},
        timeout="1m30s",
        expires=timedelta(hours=1),
        id="order/7",
        headers={"traceparent": "00-ab", "n": 1, "ok": True, "raw": b"\x00", "share": 0.5},
        key="customer-7",
    ).wait(30)

    (message,) = broker.stored
    assert message.options == Options(
        attempts=5, backoff=Backoff(type="fixed", delay=3.0), timeout=90.0, expires=3600.0
    )
    assert message.headers == {"traceparent": "00-ab", "n": 1, "ok": True, "raw": b"\x00", "share": 0.5}
    assert (message.id, message.key, message.priority) == ("order/7", "customer-7", 9)


def test_a_chosen_id_names_the_act_of_sending(broker):
    """Two sends of one id are told apart, so that workers can drop the second; an empty id means: make one."""
    receipts = [send("email", 1, id="a"), send("email", 1, id="a"), send("email", 1, id="")]
    for receipt in receipts:
        receipt.wait(30)

    first, second, third = broker.stored
    assert first.id == second.id == "a"
    assert first.send
    assert second.send
    assert first.send != second.send
    assert (bool(third.id), third.send) == (True, "")


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({"delay": "24h"}, 86400), ({"delay": 1.5}, 1.5), ({"delay": timedelta(minutes=2)}, 120), ({"delay": "PT1M"}, 60)],
)
def test_a_delay_counts_from_the_send(broker, options, seconds):
    """delay= takes a duration in words, in seconds or as a timedelta, and counts from the send."""
    send("email", 1, **options).wait(30)

    (message,) = broker.stored
    assert message.due == pytest.approx(message.sent_at + seconds)


def test_at_names_the_moment(broker):
    """at= takes an aware datetime, a naive one in local time, or Unix time."""
    moment = time.time() + 3600
    naive = datetime.fromtimestamp(moment)  # noqa: DTZ006 - without a zone is what is meant
    for at in (datetime.fromtimestamp(moment, UTC), naive, moment):
        send("email", 1, at=at).wait(30)

    assert [message.due for message in broker.stored] == [pytest.approx(moment, abs=1e-3)] * 3


@pytest.mark.parametrize(
    "options", [{"at": 5}, {"at": datetime(2001, 1, 1, tzinfo=UTC)}, {"delay": 0}, {"delay": "0s"}]
)
def test_a_moment_that_has_passed_means_now(broker, options):
    """A time in the past and a delay of nothing are delivered at once."""
    send("email", 1, **options).wait(30)

    assert [message.due for message in broker.stored] == [None]


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"delay": "soon"}, "delay=: 'soon' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
    ({"delay": "5"}, "delay=: '5' has no unit; write 5s for seconds (or ms, m, h, d)"),
    ({"delay": -1}, "delay=: -1 is not a duration; it must be 0 or more, like 30s, 5m or 1h30m"),
    ({"delay": float("nan")}, "delay=: nan is not a duration"),
    ({"delay": [1]}, "delay=[1] is not a duration"),
    ({"delay": "11000d"}, "delay=: '11000d' is longer than ten years"),
    ({"delay": 1, "at": 2e9}, "delay= and at= both say when; give one of them"),
    ({"at": "tomorrow"}, "at='tomorrow' is no time; give a datetime, or Unix time in seconds"),
    ({"at": True}, "at=True is no time"),
    ({"at": float("inf")}, "at=inf is no time"),
    ({"at": 10**400}, "is no time"),
    ({"at": 1_800_000_000_000}, "more than ten years ahead; it looks like milliseconds: divide by 1000"),
    ({"at": datetime.max.replace(tzinfo=UTC)}, "more than ten years ahead"),
    ({"priority": 10}, "priority=10 is no whole number from 0 to 9 (9 goes first)"),
    ({"priority": "high"}, "priority='high' is no whole number"),
    ({"priority": True}, "priority=True is no whole number"),
    ({"attempts": 0}, "attempts=0 is no whole number from 1; it counts the runs in all, the first included"),
    ({"attempts": 1.5}, "attempts=1.5 is no whole number"),
    ({"timeout": 0}, "timeout=0 leaves no time at all"),
    ({"timeout": "none"}, "timeout=: 'none' is not a duration"),
    ({"expires": "0s"}, "expires='0s' leaves no time at all"),
    ({"backoff": {"kind": "fixed"}}, "backoff=: unknown setting 'kind'; did you mean 'type'?"),
    ({"backoff": []}, "backoff=: an empty list gives no delay"),
    ({"id": "a b"}, "id='a b' cannot be an id on every broker; use 1 to 128 letters, digits and -_.:@/"),
    ({"id": "x" * 129}, "cannot be an id on every broker"),
    ({"id": "ä"}, "cannot be an id on every broker"),
    ({"id": 7}, "id=7 is int, not str"),
    ({"key": ""}, "key= has 0 bytes of UTF-8; it may have 1 to 256"),
    ({"key": "ä" * 129}, "key= has 258 bytes of UTF-8"),
    ({"key": 5}, "key=5 is int, not str"),
    ({"headers": [("a", 1)]}, "headers=[('a', 1)] is list, not a mapping of names to values"),
    ({"headers": {"Handrail-x": 1}}, "names that begin with 'handrail-' are handrail's own"),
    ({"headers": {"": 1}}, "headers= has the name ''; a name is a non-empty str"),
    ({"headers": {1: 1}}, "headers= has the name 1"),
    ({"headers": {"a\n": 1}}, "a name holds printable characters only"),
    ({"headers": {"n" * 256: 1}}, "headers= has a name of 256 bytes, more than 255"),
    ({"headers": {"a": None}}, "headers['a'] is NoneType; a value is str, int, float, bool or bytes"),
    ({"headers": {"a": {"b": 1}}}, "headers['a'] is dict"),
    ({"headers": {"a": 2**63}}, "headers['a'] is an integer beyond 64 bits; send it as a string"),
    ({"headers": {"a": float("nan")}}, "headers['a'] is nan, which not every broker can carry"),
    ({"headers": {"a": "\ud800"}}, r"headers['a'] holds the lone surrogate '\ud800'"),
    ({"headers": {"a": "x" * 65_600}}, "headers= take 65,601 bytes, more than 65,536"),
]


@pytest.mark.parametrize(("options", "text"), INVALID, ids=[text[:40] for _, text in INVALID])
def test_a_wrong_option_is_refused_in_words(broker, options, text):
    """A wrong option raises at once, in one line that names the option and what it takes."""
    with pytest.raises(InvalidOptionError) as raised:
        send("email", 1, **options)

    assert text in str(raised.value)
    assert "\n" not in str(raised.value)
    assert broker.stored == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("emial", "no queue 'emial' in /project/queues.yaml; did you mean 'email'?"),
        ("reports", "did you mean 'Reports'?"),
        ("zzz", "no queue 'zzz' in /project/queues.yaml; it has Reports, email"),
        (None, "a queue is named by a str, not NoneType"),
    ],
)
def test_an_unknown_queue_names_the_nearest(broker, name, text):
    """A queue that is not in queues.yaml is refused with the one that was probably meant."""
    with pytest.raises(UnknownQueueError, match="queue") as raised:
        send(name, 1)

    assert text in str(raised.value)


def test_an_unserialisable_payload_names_the_path(broker):
    """What cannot be written as JSON is refused with the path to it."""
    with pytest.raises(SerialisationError) as raised:
        send("email", {"items": [0, 1, 2, {"when": object()}]})

    assert str(raised.value).startswith("message.items[3].when: an object cannot be written as JSON")


def test_the_limit_counts_bytes(broker):
    """max_message_bytes counts the bytes of UTF-8, to the byte."""
    send("email", "x" * 9_998).wait(30)
    with pytest.raises(TooLargeError, match="is 10,001 bytes as JSON, more than max_message_bytes"):
        send("email", "x" * 9_999)
    with pytest.raises(TooLargeError):
        send("email", "ä" * 5_000)
    with pytest.raises(TooLargeError, match="10,001 bytes long"):
        send("email", b"x" * 10_001)


def test_with_a_callback_every_error_goes_to_the_callback(broker):
    """With a callback nothing is raised: the callback and the receipt get the error."""
    told: stdlib_queue.Queue[object] = stdlib_queue.Queue()
    calls = [
        lambda: send("emial", 1, told.put),
        lambda: send("email", object(), told.put),
        lambda: send("email", 1, told.put, priority=11, id="mine"),
        lambda: send("email", "x" * 10_001, told.put),
        lambda: send_bulk("emial", [1], told.put),
        lambda: send_bulk("email", "text", told.put),
        lambda: send_bulk("email", [1, object()], told.put),
    ]
    for call in calls:
        receipt = call()

        error = told.get(timeout=30)
        assert isinstance(error, SendError)
        assert receipt.done
        assert receipt.error is error
        with pytest.raises(type(error)):
            receipt.wait(0)
    assert told.empty()


def test_a_callback_that_cannot_be_called_is_refused(broker):
    """Options given by position are caught, since they would otherwise pass as a callback."""
    with pytest.raises(TypeError, match="callback='24h' cannot be called; options such as delay= are given by name"):
        send("email", 1, "24h")


def test_no_project_is_said_at_once(monkeypatch, tmp_path):
    """Without a queues.yaml a send raises, or tells its callback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HANDRAIL_CONFIG", raising=False)
    context.configure()
    told: stdlib_queue.Queue[object] = stdlib_queue.Queue()

    with pytest.raises(NoProjectError):
        send("email", 1)
    send("email", 1, told.put)
    assert isinstance(told.get(timeout=30), NoProjectError)


def test_a_bulk_keeps_its_order(broker):
    """Messages of a bulk arrive in their order, with ids that sort in it."""
    receipt = send_bulk("email", range(500))
    receipt.wait(30)

    assert [message.body for message in broker.stored] == [str(n).encode() for n in range(500)]
    assert [message.id for message in broker.stored] == receipt.ids == sorted(set(receipt.ids))
    assert all(valid_id(found) and len(found) == 32 for found in receipt.ids)
    assert len(receipt) == 500
    assert receipt.errors == {}


def test_bulk_options_hold_for_all_and_items_go_before(broker):
    """An item's own options go before those of the bulk; headers and retry options merge one by one."""
    item = context.queues.item
    at = time.time() + 60
    send_bulk(
        "email",
        [
            1,
            item(2, delay="1h", headers={"b": 2}, timeout="5s", id="mine", key="own"),
            item(item(3).message, priority=1, at=at),
        ],
        delay="1m",
        priority=8,
        attempts=2,
        headers={"a": 1},
        key="all",
    ).wait(30)

    first, second, third = broker.stored
    assert [m.priority for m in broker.stored] == [8, 8, 1]
    assert [round(m.due - m.sent_at) for m in broker.stored[:2]] == [60, 3600]
    assert third.due == pytest.approx(at)
    assert (first.headers, second.headers, third.headers) == ({"a": 1}, {"a": 1, "b": 2}, {"a": 1})
    assert second.options == Options(attempts=2, timeout=5.0)
    assert (first.key, second.key) == ("all", "own")
    assert (second.id, bool(second.send), first.send) == ("mine", True, "")


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"a": object()}, SerialisationError, "item 2 of the bulk: message.a: an object cannot"),
        ("x" * 10_001, TooLargeError, "item 2 of the bulk: the message for queue 'email' is 10,003 bytes"),
        (context.Item(1, delay="x"), InvalidOptionError, "item 2 of the bulk: delay=: 'x' is not a duration"),
        (context.Item(float("inf"), delay="1s"), SerialisationError, "item 2 of the bulk: message: inf"),
    ],
)
def test_an_invalid_item_refuses_the_whole_bulk(broker, bad, error, text):
    """Nothing of a bulk is sent when one of its items cannot be; the error names the item's place."""
    with pytest.raises(error) as raised:
        send_bulk("email", [0, 1, bad, 3])

    assert str(raised.value).startswith(text)
    assert context.queues.flush(30)
    assert broker.stored == []


@pytest.mark.parametrize("wrong", ["text", b"bytes", {"a": 1}, 5])
def test_a_bulk_takes_a_list(broker, wrong):
    """One message in place of a list is refused rather than taken apart."""
    with pytest.raises(InvalidOptionError, match="send_bulk takes a list of messages"):
        send_bulk("email", wrong)


def test_an_empty_bulk_is_done(broker):
    """A bulk of nothing succeeds at once, and tells its callback so."""
    told: stdlib_queue.Queue[object] = stdlib_queue.Queue()
    receipt = send_bulk("email", iter(()), told.put)

    assert told.get(timeout=30) is None
    assert receipt.done
    assert bool(receipt)
    assert receipt.ids == []


def test_a_bulk_names_what_failed(broker):
    """When the broker refuses some messages, the receipt names them by place and the others stand."""
    broker.refuse = lambda message: SendError("no room") if message.body in {b"3", b"7"} else None
    receipt = send_bulk("email", range(10))
    with pytest.raises(BulkSendError, match="2 of 10 messages were not sent; the first is number 3: no room") as raised:
        receipt.wait(30)

    assert sorted(raised.value.errors) == sorted(receipt.errors) == [3, 7]
    assert len(broker.stored) == 8


class _Slot:
    """A transport that keeps what it is given, as a host's does until its dispatcher answers."""

    def __init__(self, settings):
        self.settings = settings
        self.taken: list[tuple[list[Message], Any]] = []
        self.error: HandrailError | None = None

    def submit(self, messages, done):
        if self.error:
            raise self.error
        self.taken.append((messages, done))

    def flush(self, timeout):
        return not self.taken


def test_an_installed_transport_takes_the_sends(broker, settings):
    """Where a transport is installed, as in a host, messages go through it and none to a broker of our own."""
    slot = _Slot(settings)
    transport.install(slot)
    try:
        one, many = send("email", 1), send_bulk("email", [1, 2])

        assert not one.done
        assert not context.queues.flush(0.01)
        (first, done_one), (rest, done_many) = slot.taken
        assert ([m.id for m in first], [m.id for m in rest]) == ([one.id], many.ids)
        done_one({})
        done_many({1: SendError("refused")})
        one.wait(0)
        assert list(many.errors) == [1]
        slot.error = SendError("the pipe is closed")
        with pytest.raises(SendError, match="the pipe is closed"):
            send("email", 1).wait(0)
    finally:
        transport.install(None)
    assert broker.opened == 0
