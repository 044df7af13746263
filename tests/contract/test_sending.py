"""Sending: what options mean, what a receipt says, what is refused, and sends inside handlers."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contract_harness import GENEROUS, Project

from handrail import context
from handrail.adapter import Capability
from handrail.errors import (
    InvalidOptionError,
    SendError,
    SerialisationError,
    TooLargeError,
    UnknownQueueError,
)
from handrail.outcome import Outcome

needs = pytest.mark.needs

ECHO = "def handler(message): return message"


def test_a_receipt_is_done_when_the_broker_has_the_message(project: Project) -> None:
    """`receipt.wait()` returns once the message is in the broker, where anybody finds it under the receipt's id."""
    project.handler(ECHO)
    project.queues()

    receipt = context.queues.send_to_queue("work", {"n": 1})
    receipt.wait(GENEROUS)

    assert receipt.done
    assert [one.id for one in project.peek()] == [receipt.id]


def test_a_receipt_can_be_awaited(project: Project) -> None:
    """In a coroutine a receipt is awaited, on any event loop."""
    project.handler(ECHO)
    project.queues()

    async def send() -> str:
        receipt = context.queues.send_to_queue("work", 1)
        await receipt
        return receipt.id

    assert asyncio.run(send()) == project.peek()[0].id


def test_the_callback_gets_none_exactly_once(project: Project) -> None:
    """The callback of a send gets None when the broker has the message, once; an exception in it harms nothing."""
    project.handler(ECHO)
    project.queues()
    calls: list[object] = []
    called = threading.Event()

    def on_sent(error: object) -> None:
        calls.append(error)
        called.set()
        raise RuntimeError("a bug of the user")

    context.queues.send_to_queue("work", 1, on_sent)

    assert called.wait(GENEROUS)
    project.send("work", 2)
    assert calls == [None]
    assert len(project.peek()) == 2


@pytest.mark.parametrize("message_id", ["a", "a-b_c.d:e@f/g", "x" * 128, "0"])
def test_ids_have_one_alphabet(project: Project, message_id: str) -> None:
    """1 to 128 letters, digits and `-_.:@/` are an id on every broker."""
    project.handler("from handrail import context\ndef handler(message): return context.job.id")
    project.start()

    assert project.send("work", 1, id=message_id) == message_id

    assert project.one(Outcome.COMPLETED).result == message_id


def test_an_empty_id_means_make_one(project: Project) -> None:
    """`id=""` is no id: one is made, and two such messages are no duplicates."""
    project.handler(ECHO)
    project.start()

    first, second = project.send("work", 1, id=""), project.send("work", 2, id="")

    assert first
    assert first != second
    project.wait(Outcome.COMPLETED, count=2)


@pytest.mark.parametrize(
    "options",
    [
        {"id": "with space"},
        {"id": "ä"},
        {"id": "x" * 129},
        {"priority": 10},
        {"priority": -1},
        {"priority": True},
        {"attempts": 0},
        {"delay": "5 parsecs"},
        {"delay": -1},
        {"delay": 1, "at": 2},
        {"timeout": 0},
        {"headers": {"handrail-attempts": "1"}},
        {"headers": {"x": ValueError("not a header")}},
        {"key": ""},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_used_is_refused_in_words(project: Project, options: dict[str, object]) -> None:
    """A wrong option is refused at the call, in words that name it, and nothing is sent."""
    project.handler(ECHO)
    project.queues()

    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        context.queues.send_to_queue("work", 1, **options)  # type: ignore[arg-type]

    assert project.peek() == []


def test_an_unknown_queue_is_refused_with_the_nearest_name(project: Project) -> None:
    """Sending to a queue that queues.yaml does not have names the nearest that it has."""
    project.handler(ECHO)
    project.queues({"welcome-email": "work"})

    with pytest.raises(UnknownQueueError, match="welcome-email"):
        context.queues.send_to_queue("welcom-email", 1)


def test_a_payload_that_cannot_be_serialised_names_its_path(project: Project) -> None:
    """The error names where in the payload the thing lies that is no JSON."""
    project.handler(ECHO)
    project.queues()

    with pytest.raises(SerialisationError, match=r"message\.items\[1\]\.when"):
        context.queues.send_to_queue("work", {"items": [{}, {"when": object()}]})


def test_a_message_over_the_limit_is_refused_and_one_at_it_is_not(project: Project) -> None:
    """`max_message_bytes` counts bytes of the body; what is accepted can be retried and dead-lettered, too."""
    project.handler("def handler(message): raise ValueError('x' * 100_000)")
    project.queues({"work": {"handler": "work", "attempts": 2, "backoff": ["0s"]}}, max_message_bytes=10_000)
    project.start()

    with pytest.raises(TooLargeError):
        context.queues.send_to_queue("work", "ä" * 5_000)
    project.send("work", "ä" * 4_999)

    assert project.one(Outcome.DEAD).payload == "ä" * 4_999


def test_a_bulk_with_an_invalid_item_is_refused_as_a_whole(project: Project) -> None:
    """One item of a bulk that cannot be sent refuses the whole call, names its place, and sends nothing."""
    project.handler(ECHO)
    project.queues()

    with pytest.raises(SendError, match="item 2"):
        context.queues.send_bulk("work", [1, 2, object(), 4])

    assert project.peek() == []


@needs(Capability.PRIORITY)
def test_an_item_of_a_bulk_has_options_of_its_own(project: Project) -> None:
    """Options given for one item go before those given for the bulk."""
    project.handler(ECHO)
    project.queues()

    item = context.queues.item("special", priority=9, id="special")
    context.queues.send_bulk("work", ["a", item, "b"], priority=2).wait(GENEROUS)

    assert [(one.body, one.priority) for one in project.peek()] == [(b'"special"', 9), (b'"a"', 2), (b'"b"', 2)]


@needs(Capability.DELAY)
@pytest.mark.parametrize("how", ["delay", "timedelta", "at", "datetime"])
def test_a_message_may_be_sent_for_later(project: Project, how: str) -> None:
    """`delay=` and `at=` keep a message in the broker until then, and never is it early."""
    project.handler("import time\ndef handler(message): return time.time()")
    project.start()
    now = datetime.now(UTC)
    options: dict[str, dict[str, Any]] = {
        "delay": {"delay": "400ms"},
        "timedelta": {"delay": timedelta(milliseconds=400)},
        "at": {"at": now.timestamp() + 0.4},
        "datetime": {"at": now + timedelta(milliseconds=400)},
    }

    project.send("work", 1, **options[how])

    assert project.one(Outcome.COMPLETED).result >= now.timestamp() + 0.4


def test_a_time_that_has_passed_means_at_once(project: Project) -> None:
    """`at=` in the past is no error: the message is due now."""
    project.handler(ECHO)
    project.queues()

    project.send("work", 1, at=datetime(2001, 1, 1, tzinfo=UTC))

    assert len(project.peek()) == 1


HEADERS = {"text": "ä \U0001f600", "number": 7, "big": -(2**62), "share": 0.5, "flag": True, "raw": b"\x00\xff"}


def test_headers_reach_the_handler_as_they_were_given(project: Project) -> None:
    """`headers=` travel beside the message: text, integers, floats, booleans and bytes."""
    project.handler("""
        from handrail import context
        def handler(message): return {name: repr(value) for name, value in context.job.headers.items()}
    """)
    project.start()

    project.send("work", 1, headers=HEADERS)

    assert project.one(Outcome.COMPLETED).result == {name: repr(value) for name, value in HEADERS.items()}


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
def test_handlers_send_as_everybody_does(project: Project, kind: str) -> None:
    """A send inside a handler is the same call, and its receipt tells when the broker has the message."""
    word, wait = ("async def", "await receipt") if kind == "async" else ("def", "receipt.wait(20)")
    project.handler(f"""
        from handrail import context
        {word} handler(message):
            receipt = context.queues.send_to_queue("next", {{"from": message}}, priority=7, headers={{"a": 1}})
            {wait}
            return receipt.id
    """)
    project.handler(
        "from handrail import context\ndef handler(m): return [m, context.job.priority, context.job.headers]", "after"
    )
    isolation = {"isolation": "process"} if kind == "process" else {}
    project.queues({"work": {"handler": "work", **isolation}, "next": "after"})
    project.start()

    project.send("work", "ping")

    sent = project.one(Outcome.COMPLETED, queue="work").result
    got = project.one(Outcome.COMPLETED, queue="next")
    assert got.id == sent
    assert got.result == [{"from": "ping"}, 7, {"a": 1}]


def test_what_a_handler_sends_keeps_its_order(project: Project) -> None:
    """Messages that one handler sends one after the other stand in that order."""
    project.handler("""
        from handrail import context
        def handler(message):
            for n in range(200): receipt = context.queues.send_to_queue("next", n, key="k")
            context.queues.send_bulk("next", range(200, 400), key="k").wait(20)
    """)
    project.queues({"work": "work", "next": {}})
    project.start()

    project.send("work", 1)

    project.one(Outcome.COMPLETED)
    assert [one.body for one in project.peek("next", limit=1000)] == [str(n).encode() for n in range(400)]


def test_a_handler_whose_send_is_refused_learns_why(project: Project) -> None:
    """An unknown queue inside a handler is the same error as elsewhere, and an ordinary failure when nobody catches it."""
    project.handler('from handrail import context\ndef handler(m): context.queues.send_to_queue("wrok", m)')
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.DEAD).verdict.reason.startswith("UnknownQueueError")
    assert "'work'" in project.one(Outcome.DEAD).verdict.reason


def test_many_threads_may_send_at_once(project: Project) -> None:
    """Sends from many threads all arrive, each thread's in its own order."""
    project.handler(ECHO)
    project.queues()

    def send(thread: int) -> None:
        receipts = [context.queues.send_to_queue("work", [thread, n]) for n in range(50)]
        for receipt in receipts:
            receipt.wait(GENEROUS)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    project.start()
    payloads = [one.payload for one in project.wait(Outcome.COMPLETED, count=400)]
    assert sorted(payloads) == [[thread, n] for thread in range(8) for n in range(50)]
