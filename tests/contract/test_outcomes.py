"""The outcome table, line by line: what a handler does, and what becomes of its message."""

from __future__ import annotations

import os
import time

import pytest
from contract_harness import Project

from handrail.adapter import Capability
from handrail.ledger import open_ledger
from handrail.message import Message, Options, new_id
from handrail.outcome import Backoff, Outcome

needs = pytest.mark.needs

AT_ONCE = {"backoff": ["0s"]}


def test_calling_the_callback_completes(project: Project) -> None:
    """`callback()` acknowledges: the message is completed and in no place any more."""
    project.handler("def handler(message, callback): note('ran', message); callback()")
    project.start()

    sent = project.send("work", {"n": 1})

    assert project.one().outcome is Outcome.COMPLETED
    assert project.one().id == sent
    assert project.notes("ran")[0].facts == ({"n": 1},)
    assert project.peek() == []


def test_callback_keeps_the_result(project: Project) -> None:
    """`callback(None, result)` completes and keeps the result."""
    project.handler("def handler(message, callback): callback(None, {'sum': message['a'] + message['b']})")
    project.start()

    project.send("work", {"a": 1, "b": 2})

    assert project.one(Outcome.COMPLETED).result == {"sum": 3}


def test_callback_with_an_error_fails_the_attempt(project: Project) -> None:
    """`callback(error)` is a failed attempt; after the last one the message is dead with the error as its reason."""
    project.handler("def handler(message, callback): callback(ValueError('no such user'))")
    project.queues({"work": {"handler": "work", "attempts": 2, **AT_ONCE}})
    project.start()

    project.send("work", 1)

    failed, dead = project.wait(count=2)
    assert (failed.outcome, dead.outcome) == (Outcome.FAILED, Outcome.DEAD)
    assert failed.verdict.reason == "ValueError: no such user"
    assert dead.verdict.reason == "ValueError: no such user"


def test_callback_takes_a_text_as_its_error(project: Project) -> None:
    """`callback("why")` fails the attempt with that text as its reason."""
    project.handler("def handler(message, callback): callback('the printer is on fire')")
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert "the printer is on fire" in project.one(Outcome.DEAD).verdict.reason


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("raised", "name"),
    [
        ("ValueError('no')", "ValueError"),
        ("SystemExit(3)", "SystemExit"),
        ("KeyboardInterrupt()", "KeyboardInterrupt"),
        ("asyncio.CancelledError()", "CancelledError"),
        ("ExceptionGroup('several', [ValueError('a'), KeyError('b')])", "ExceptionGroup"),
        ("BaseExceptionGroup('worse', [SystemExit(1)])", "BaseExceptionGroup"),
        ("GeneratorExit()", "GeneratorExit"),
    ],
)
def test_raising_anything_fails_the_attempt(project: Project, kind: str, raised: str, name: str) -> None:
    """Whatever is raised, were it SystemExit or a stray CancelledError, is a failed attempt and ends no host."""
    project.handler(f"""
        import asyncio
        {kind} handler(message, callback):
            note('ran')
            if message == 'raise':
                raise {raised}
            callback()
    """)
    project.queues({"work": {"handler": "work", "attempts": 2, **AT_ONCE}})
    running = project.start()
    before = running.host_pids()

    project.send("work", "raise")

    assert project.one(Outcome.DEAD).verdict.reason.startswith(name)
    project.send("work", "go on")
    project.wait(Outcome.COMPLETED)
    assert len({one.pid for one in project.notes("ran")}) == 1
    assert running.host_pids() == before


def test_an_exception_whose_text_cannot_be_made_is_a_failed_attempt(project: Project) -> None:
    """An exception that raises when it is printed fails the attempt like any other."""
    project.handler("""
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError('not even this')

        def handler(message):
            raise Odd
    """)
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert "Odd" in project.one(Outcome.DEAD).verdict.reason


@pytest.mark.parametrize("call", ["callback(None, {'items': [1, object()]})", "return {'items': [1, object()]}"])
def test_a_result_that_cannot_be_serialised_names_its_path(project: Project, call: str) -> None:
    """A result that is no JSON is a failed attempt whose reason names the path inside it."""
    head = "def handler(message, callback):" if call.startswith("callback") else "def handler(message):"
    project.handler(f"{head} {call}")
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert "result.items[1]" in project.one(Outcome.DEAD).verdict.reason


@pytest.mark.parametrize("how", ["callback(Reject('no such account'))", "raise Reject('no such account')"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_reject_is_dead_at_once(project: Project, kind: str, how: str) -> None:
    """`Reject` dead-letters at the first attempt, with its reason, whatever attempts are left."""
    project.handler(f"""
        from handrail import Reject
        {kind} handler(message, callback): {how}
    """)
    project.queues({"work": {"handler": "work", "attempts": 5}})
    project.start()

    project.send("work", 1)

    only = project.one()
    assert only.outcome is Outcome.DEAD
    assert only.verdict.reason == "no such account"


@pytest.mark.parametrize("how", ["callback(RetryLater(0.2))", "raise RetryLater('200ms')"])
@needs(Capability.DELAY)
def test_retry_later_comes_back_and_counts_no_attempt(project: Project, how: str) -> None:
    """`RetryLater` brings the message back after its delay as another start of the same attempt."""
    project.handler(f"""
        from handrail import RetryLater, context
        def handler(message, callback):
            note('ran', context.job.attempt)
            if is_open("again"):
                callback()
            else:
                {how}
    """)
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    first, second, *_ = project.wait(Outcome.LATER, count=2)
    project.open("again")
    last = project.one(Outcome.COMPLETED)
    assert second.message.starts == first.message.starts + 1
    assert {one.facts for one in project.notes("ran")} == {(1,)}
    assert last.message.attempts == 0
    ran = project.notes("ran")
    assert ran[1].at - ran[0].at >= 0.2


@needs(Capability.DELAY)
def test_max_starts_bounds_retry_later(project: Project) -> None:
    """A handler that always asks for later is dead after `max_starts` starts."""
    project.handler("""
        from handrail import RetryLater
        def handler(message): note('ran'); raise RetryLater(0.01)
    """)
    project.queues({"work": {"handler": "work", "max_starts": 3}})
    project.start()

    project.send("work", 1)

    assert "max_starts: 3" in project.one(Outcome.DEAD).verdict.reason
    assert len(project.notes("ran")) == 3


TIMEOUTS = {
    "async": """
        import asyncio
        async def handler(message, callback):
            note('ran')
            try:
                await agate("late")
            except asyncio.CancelledError:
                note('stopped')
                raise
    """,
    "thread": """
        def handler(message, callback):
            note('ran')
            gate("late")
            callback()
            note('went on')
    """,
}


def test_a_timeout_stops_an_async_handler(project: Project) -> None:
    """A callback that is not called within `timeout` fails the attempt, and an async handler is really stopped."""
    project.handler(TIMEOUTS["async"])
    project.queues({"work": {"handler": "work", "timeout": "200ms", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.DEAD).verdict.reason == "callback not called within 200ms"
    project.noted("stopped")


def test_a_timeout_abandons_a_thread_and_ignores_its_late_callback(project: Project) -> None:
    """A thread cannot be stopped: its attempt fails, its slot is free again, and what it says later is ignored and logged."""
    project.handler(TIMEOUTS["thread"])
    project.queues({"work": {"handler": "work", "timeout": "200ms", "attempts": 1, "concurrency": 2}})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.DEAD).verdict.reason == "callback not called within 200ms"
    project.open("late")
    project.noted("went on")
    project.logged("late", "ignored")
    assert [one.outcome for one in project.seen] == [Outcome.DEAD]


def test_abandoned_threads_do_not_keep_a_queue_from_its_work(project: Project) -> None:
    """When as many threads are abandoned as may run, the host is replaced, and the queue goes on in a new process."""
    project.handler("""
        def handler(message):
            note('ran', message)
            if message == 'hang':
                gate("never")
    """)
    project.queues({"work": {"handler": "work", "attempts": 1, "concurrency": 1}})
    project.start()

    project.send("work", "hang", timeout="200ms")
    project.one(Outcome.DEAD)
    project.send("work", "hang", timeout="200ms")
    project.wait(Outcome.DEAD, count=2)
    project.send("work", "go on")

    project.one(Outcome.COMPLETED)


def test_a_timeout_kills_an_isolated_process(project: Project) -> None:
    """With `isolation: process` a timeout kills the process that runs the handler, and only that."""
    project.handler("""
        import os, time
        def handler(message):
            note('ran', message)
            if message == 'hang':
                while True:
                    time.sleep(0.01)
                    if not is_open("watched"): continue
                    note('still alive')
    """)
    project.queues({"work": {"handler": "work", "isolation": "process", "attempts": 1, "concurrency": 1}})
    running = project.start()
    (pid,) = running.host_pids()

    project.send("work", "hang", timeout="300ms")

    assert project.one(Outcome.DEAD).verdict.reason == "callback not called within 300ms"
    project.until(lambda: not _alive(pid), f"the end of process {pid}")
    project.send("work", "go on")
    project.one(Outcome.COMPLETED)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_handler_that_lets_go_of_its_callback_fails_at_once(project: Project) -> None:
    """A handler that returns without its callback being held by anyone fails its attempt at once, whatever the timeout."""
    project.handler("def handler(message, callback): note('ran')")
    project.queues({"work": {"handler": "work", "timeout": "1h", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.DEAD).verdict.reason == "handler returned without calling its callback"


def test_a_callback_may_be_called_after_the_handler_returned(project: Project) -> None:
    """A callback that somebody holds may fire later, from another thread: nothing is decided before."""
    project.handler("""
        import threading

        def later(callback):
            gate("later")
            callback(None, 'late but well')

        def handler(message, callback):
            threading.Thread(target=later, args=(callback,), daemon=True).start()
            note('returned')
    """)
    project.start()

    project.send("work", 1)
    project.noted("returned")
    assert project.seen == []
    project.open("later")

    assert project.one(Outcome.COMPLETED).result == "late but well"


def test_a_callback_may_be_called_from_a_task_of_an_async_handler(project: Project) -> None:
    """An async handler may return and leave the callback to a task of its own."""
    project.handler("""
        import asyncio
        kept = set()

        async def later(callback):
            await agate("later")
            callback(None, 'from a task')

        async def handler(message, callback):
            task = asyncio.create_task(later(callback))
            kept.add(task)
            note('returned')
    """)
    project.start()

    project.send("work", 1)
    project.noted("returned")
    project.open("later")

    assert project.one(Outcome.COMPLETED).result == "from a task"


@pytest.mark.parametrize(
    ("calls", "outcome"),
    [
        ("callback(None, 1); callback(ValueError('no'))", Outcome.COMPLETED),
        ("callback(ValueError('no')); callback(None, 1)", Outcome.DEAD),
        ("callback(None, 1); raise ValueError('no')", Outcome.COMPLETED),
    ],
)
def test_the_first_callback_counts(project: Project, calls: str, outcome: Outcome) -> None:
    """Of two outcomes of one run the first counts and the second is logged."""
    project.handler(f"def handler(message, callback): {calls}")
    project.queues({"work": {"handler": "work", "attempts": 1}, "after": "after"})
    project.handler("def handler(message): pass", "after")
    project.start()

    sent = project.send("work", 1)

    assert project.one(queue="work").outcome is outcome
    project.logged(sent)
    project.send("after", 1)
    project.one(queue="after")
    assert len([one for one in project.seen if one.message.queue == "work"]) == 1


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_with_one_parameter_returning_acknowledges(project: Project, kind: str) -> None:
    """A handler of one parameter is done when it returns; what it returns is the result."""
    project.handler(f"{kind} handler(message): return message * 2")
    project.start()

    project.send("work", 21)

    assert project.one(Outcome.COMPLETED).result == 42


def test_a_plain_function_that_returns_a_coroutine_is_an_error(project: Project) -> None:
    """A coroutine that nobody awaits is no success: the attempt fails and the reason says so."""
    project.handler("""
        async def really(message): pass
        def handler(message): return really(message)
    """)
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    assert "coroutine" in project.one(Outcome.DEAD).verdict.reason


def test_a_message_past_its_expiry_is_dropped(project: Project) -> None:
    """A message that could not start within `expires` of becoming due is expired: dropped without running, and counted."""
    project.handler("def handler(message): note('ran', message); message == 'first' and gate(\"go\")")
    project.queues({"work": {"handler": "work", "concurrency": 1, "expires": "10m"}})
    project.start()

    project.send("work", "first")
    project.noted("ran")
    late = project.send("work", "late", expires="50ms")
    in_time = project.send("work", "in time")
    past = time.time() + 0.1
    project.until(lambda: time.time() > past, "the message to be past its expiry")
    project.open("go")

    project.one(Outcome.COMPLETED, id=in_time)
    expired = project.one(Outcome.EXPIRED)
    assert expired.id == late
    assert "50ms" in expired.verdict.reason
    assert [one.facts[0] for one in project.notes("ran")] == ["first", "in time"]


@needs(Capability.DELAY)
def test_expiry_counts_from_when_a_message_falls_due(project: Project) -> None:
    """A delay longer than `expires` does not expire a message: the time counts from when it became due."""
    project.handler("def handler(message): note('ran')")
    project.start()

    now = time.time()
    late = Options(expires=60.0)
    project.publish(Message(queue="work", id=new_id(), body=b"1", sent_at=now - 3600, due=now + 1, options=late))

    assert project.one().outcome is Outcome.COMPLETED


def test_a_retry_of_a_message_that_started_in_time_does_not_expire(project: Project) -> None:
    """`expires` bounds the first start alone: a retry after it still runs."""
    project.handler("""
        from handrail import context
        def handler(message):
            if context.job.attempt == 1:
                raise ValueError
    """)
    project.queues({"work": {"handler": "work", "expires": "6s", "attempts": 2, "backoff": ["6100ms"]}})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.COMPLETED).message.attempts == 1


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{not json", "application/json"),
        (b"\xff\xfe\x00", "application/json"),
        (b"", "application/json"),
        (b"[" * 100_000, "application/json"),
    ],
)
def test_a_body_that_cannot_be_decoded_is_dead_at_once(project: Project, body: bytes, content_type: str) -> None:
    """A body that is no JSON is dead with the reason, at once and without running, and stops nothing behind it."""
    project.handler("def handler(message): note('ran', message)")
    project.queues({"work": {"handler": "work", "attempts": 5}})
    project.start()

    bad = Message(queue="work", id=new_id(), body=body, content_type=content_type)
    project.publish(bad)
    project.send("work", "next")

    assert project.one(Outcome.DEAD).id == bad.id
    assert project.one(Outcome.DEAD).verdict.reason
    project.one(Outcome.COMPLETED)
    assert [one.facts for one in project.notes("ran")] == [("next",)]


def test_a_message_that_does_not_fit_its_type_is_dead_at_once(project: Project) -> None:
    """A payload that does not fit the annotated type is dead with the place in it that does not fit, and never runs."""
    project.handler("""
        from dataclasses import dataclass

        @dataclass
        class User:
            name: str
            age: int

        def handler(user: User): note('ran', user.name, user.age)
    """)
    project.queues({"work": {"handler": "work", "attempts": 5}})
    project.start()

    project.send("work", {"name": "Ada", "age": "old"})
    project.send("work", {"name": "Grace", "age": 36})

    assert "age" in project.one(Outcome.DEAD).verdict.reason
    project.one(Outcome.COMPLETED)
    assert [one.facts for one in project.notes("ran")] == [("Grace", 36)]


def test_a_second_sending_of_a_chosen_id_is_a_duplicate(project: Project) -> None:
    """Of two messages sent with the same id the second is acknowledged without running, whether the first is done or not."""
    project.handler("def handler(message): note('ran', message); message == 'first' and gate(\"go\")")
    project.start()

    project.send("work", "first", id="order-17")
    project.noted("ran")
    project.send("work", "while it runs", id="order-17")
    project.one(Outcome.DUPLICATE)
    project.open("go")
    project.one(Outcome.COMPLETED)
    project.send("work", "when it is done", id="order-17")
    project.wait(Outcome.DUPLICATE, count=2)

    project.send("work", "another", id="order-18")
    project.one(Outcome.COMPLETED, id="order-18")
    assert [one.facts[0] for one in project.notes("ran")] == ["first", "another"]


def test_a_retry_is_no_duplicate_of_itself(project: Project) -> None:
    """A message with a chosen id may be retried: only another sending of its id is a duplicate."""
    project.handler("""
        from handrail import context
        def handler(message):
            if context.job.attempt == 1: raise ValueError
    """)
    project.queues({"work": {"handler": "work", "attempts": 2, **AT_ONCE}})
    project.start()

    project.send("work", 1, id="once")

    assert [one.outcome for one in project.wait(count=2)] == [Outcome.FAILED, Outcome.COMPLETED]


def test_a_cancelled_message_is_not_run_and_not_retried(project: Project) -> None:
    """A job cancelled while it waits is dropped unrun; cancelled while it runs, it is stopped and not retried."""
    project.handler("""
        import asyncio
        async def handler(message):
            note('ran', message)
            try:
                await agate("go")
            except asyncio.CancelledError:
                note('stopped', message)
                raise
    """)
    project.queues({"work": {"handler": "work", "concurrency": 1, "attempts": 5}})
    project.start()
    project.send("work", "runs", id="runs")
    project.noted("ran")
    project.send("work", "waits", id="waits")

    async def cancel() -> None:
        ledger = open_ledger(project.settings)
        assert ledger is not None
        await ledger.open()
        await ledger.cancel("work", "waits")
        await ledger.cancel("work", "runs")
        await ledger.close()

    project.run(cancel())

    assert {one.id for one in project.wait(Outcome.CANCELLED, count=2)} == {"runs", "waits"}
    project.noted("stopped")
    assert [one.facts[0] for one in project.notes("ran")] == ["runs"]


def test_options_of_a_message_go_before_those_of_its_queue(project: Project) -> None:
    """`attempts`, `backoff` and `timeout` given with a message hold for it instead of the queue's."""
    project.handler("def handler(message, callback): note('ran', message); message == 'hang' and gate(\"x\")")
    project.queues({"work": {"handler": "work", "attempts": 9, "backoff": ["1h"], "timeout": "1h"}})
    project.start()

    project.send("work", "twice", attempts=2, backoff=["0s"])
    project.send("work", "hang", attempts=1, timeout="100ms")

    reasons = {one.payload: one.verdict.reason for one in project.wait(Outcome.DEAD, count=2)}
    assert reasons == {
        "twice": "handler returned without calling its callback",
        "hang": "callback not called within 100ms",
    }
    assert [one.facts[0] for one in project.notes("ran")].count("twice") == 2
    sent = project.peek(state="dead")
    assert Options(attempts=2, backoff=Backoff(type="list", delays=(0.0,))) in [one.options for one in sent]
