"""A project in the test's own process: what is sent, handled, and told."""

from __future__ import annotations

import asyncio
import os
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handrail import context, testing, transport
from handrail.errors import ConfigError, HandrailError, NoProjectError, StartError, UnknownQueueError
from handrail.ledger import sqlite
from handrail.outcome import Outcome
from handrail.testing import Project

Make = Callable[..., Project]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Writes a project and opens it: handlers by name, and the text of queues.yaml."""
    monkeypatch.setattr(sqlite, "CLAIM_TIMEOUT", 50.0)
    opened: list[Project] = []

    def write(queues: str, **handlers: str) -> Project:
        (tmp_path / "handlers").mkdir(exist_ok=True)
        for name, source in handlers.items():
            (tmp_path / "handlers" / f"{name}.py").write_text(textwrap.dedent(source))
        (tmp_path / "queues.yaml").write_text(textwrap.dedent(queues))
        project = testing.project(tmp_path)
        opened.append(project)
        return project

    yield write
    for project in opened:
        project.close()


WORK = "queues: {work: work}"


def test_a_message_is_handled(make: Make) -> None:
    """What is sent is handled by `run_until_idle`, and its result is told."""
    project = make(WORK, work="def handler(message, callback): callback(None, message['n'] + 1)")

    sent = project.send("work", {"n": 1})
    project.run_until_idle()

    (one,) = project.completed
    assert (one.queue, one.id, one.message, one.outcome, one.attempt) == ("work", sent, {"n": 1}, Outcome.COMPLETED, 1)
    assert project.results == [2]


def test_nothing_is_handled_before_it_is_run(make: Make) -> None:
    """What is sent waits until the test runs the project, so that a test sees what waited."""
    project = make(WORK, work="def handler(message): pass")
    project.send("work", "a", priority=1)
    project.send("work", "b", priority=9)
    assert [one.message for one in project.waiting] == ["b", "a"]
    assert project.outcomes == []

    project.run_until_idle()

    assert {one.message for one in project.completed} == {"a", "b"}
    assert project.waiting == []
    project.send("work", "c")
    assert [one.message for one in project.waiting] == ["c"]


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.parametrize("word", ["def", "async def"])
def test_every_kind_of_handler_runs_in_the_tests_own_process(make: Make, word: str, isolation: str) -> None:
    """Plain, async and isolated handlers run in this process, so that a test can put its own parts into them."""
    project = make(
        f"queues: {{work: {{handler: work, isolation: {isolation}}}}}",
        work=f"import os\n{word} handler(message): return os.getpid()",
    )
    project.send("work", 1)
    project.run_until_idle()

    assert project.results == [os.getpid()]


def test_a_retry_takes_no_time(make: Make) -> None:
    """Retries are handled at once, whatever their backoff, and each attempt is told."""
    project = make(
        "queues: {work: {handler: work, attempts: 3, backoff: {type: fixed, delay: 1h}}}",
        work="""
            from handrail import context
            def handler(message):
                if context.job.attempt < 3: raise ValueError('no')
                return context.job.attempt
        """,
    )
    project.send("work", 1)

    project.run_until_idle()

    assert [one.reason for one in project.failed] == ["ValueError: no"] * 2
    assert [one.next_in for one in project.failed] == [3600] * 2
    assert project.results == [3]


def test_delays_are_skipped_in_the_order_of_their_ends(make: Make) -> None:
    """With delays skipped, messages run in the order in which they would have fallen due."""
    project = make(WORK, work="def handler(message): pass")
    project.send("work", "tomorrow", delay="24h")
    project.send("work", "soon", delay="1m")
    project.send("work", "now")

    project.run_until_idle()

    assert [one.message for one in project.completed] == ["now", "soon", "tomorrow"]


def test_delays_may_be_left(make: Make) -> None:
    """With `skip_delays=False` what is not due stays, and `waiting` tells it with its delay."""
    project = make(WORK, work="def handler(message): pass")
    project.send("work", "tomorrow", delay="24h")
    project.send("work", "now")

    project.run_until_idle(skip_delays=False)

    assert [one.message for one in project.completed] == ["now"]
    (left,) = project.waiting
    assert left.message == "tomorrow"
    assert left.delay == pytest.approx(86400, abs=1)


def test_a_dead_message_tells_why(make: Make) -> None:
    """What is dead-lettered has its reason and a traceback."""
    project = make(
        "queues: {work: {handler: work, attempts: 1}}", work="def handler(message): raise LookupError('no such user')"
    )
    project.send("work", 1)
    project.run_until_idle()

    (dead,) = project.dead
    assert dead.reason == "LookupError: no such user"
    assert "handlers/work.py" in dead.traceback
    assert "no such user" in project.story()


def test_what_handlers_send_is_told_and_handled(make: Make) -> None:
    """What a handler sends is in `sent`, by queue and with its options; if that queue has a handler, it is handled."""
    project = make(
        "queues: {work: work, next: after, other: {}}",
        work="""
            from handrail import context
            def handler(message):
                context.queues.send_to_queue("next", {"from": message}, priority=7, headers={"a": 1})
                context.queues.send_bulk("other", [1, 2], delay="1h")
        """,
        after="def handler(message): return message['from']",
    )
    project.send("work", "x")

    project.run_until_idle()

    assert project.results == [None, "x"]
    assert project.sent["next"] == [{"from": "x"}]
    assert project.sent["other"] == [1, 2]
    assert project.sent["work"] == []
    first, second, _third = project.sent
    assert (first.queue, first.priority, first.headers, first.delay) == ("next", 7, {"a": 1}, None)
    assert second.delay == pytest.approx(3600, abs=1)
    assert [one.message for one in project.waiting] == [1, 2]


def test_what_the_application_sends_stays_in_the_test(make: Make) -> None:
    """While a project is open, `context.queues` sends into it from any code of this process, and `sent` tells it."""
    project = make(WORK, work="def handler(message): return message")

    def on_sent(error: object) -> None:
        answers.append(error)
        answered.set()

    answers: list[object] = []
    answered = threading.Event()
    context.queues.send_to_queue("work", "from the app", on_sent)
    assert answered.wait(20)
    project.run_until_idle()

    assert answers == [None]
    assert project.sent["work"] == ["from the app"]
    assert project.results == ["from the app"]


def test_a_project_without_handlers_tells_what_is_sent(make: Make) -> None:
    """A project that only sends can be tested as well."""
    project = make("queues: {work: {}}")

    context.queues.send_to_queue("work", 1).wait(20)
    project.run_until_idle()

    assert project.sent["work"] == [1]


def test_an_async_test_may_run_a_project(make: Make) -> None:
    """`run_until_idle_async` leaves the test's own event loop free meanwhile."""
    project = make(WORK, work="async def handler(message): return message")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def run() -> None:
        ticking = asyncio.create_task(tick())
        await context.queues.send_to_queue("work", 1)
        await project.run_until_idle_async()
        ticking.cancel()

    asyncio.run(run())

    assert project.results == [1]
    assert ticks


def test_what_never_ends_is_named(make: Make) -> None:
    """When the project is not idle in time, the error says what runs and what waits."""
    project = make(
        "queues: {work: {handler: work, concurrency: 1}}",
        work="""
            import threading
            go = threading.Event()
            def handler(message): go.wait()
        """,
    )
    project.send("work", "a")
    project.send("work", "b")

    for _ in range(20):  # on a machine that stood still nothing may run yet
        with pytest.raises(TimeoutError) as raised:
            project.run_until_idle(timeout=0.3)
        if "running" in str(raised.value):
            break
    assert "1 running in 'work', 1 waiting in 'work'" in str(raised.value)

    import handlers.work  # type: ignore[import-not-found]

    handlers.work.go.set()
    project.run_until_idle()
    assert len(project.completed) == 2


def test_a_message_that_always_comes_back_is_named(make: Make) -> None:
    """A handler that asks for later for ever is no endless test: with delays skipped the time ends, without them it is idle."""
    project = make(WORK, work="from handrail import RetryLater\ndef handler(message): raise RetryLater(60)")
    project.send("work", 1)

    project.run_until_idle(skip_delays=False)
    assert [one.outcome for one in project.outcomes] == [Outcome.LATER]

    with pytest.raises(TimeoutError, match="later of 'work'"):
        project.run_until_idle(timeout=0.3)


def test_ids_are_known_and_duplicates_dropped(make: Make) -> None:
    """A second sending of a chosen id is a duplicate here too; nothing of it is left for the next test."""
    project = make(WORK, work="def handler(message): return message")
    project.send("work", 1, id="order-1")
    project.send("work", 2, id="order-1")
    project.run_until_idle()

    assert project.results == [1]
    assert {one.outcome for one in project.outcomes} == {Outcome.COMPLETED, Outcome.DUPLICATE}
    project.close()
    again = make(WORK)
    again.send("work", 3, id="order-1")
    again.run_until_idle()
    assert again.results == [3]


def test_nothing_is_written_into_the_project(make: Make, tmp_path: Path) -> None:
    """Brokers, ledger and boards are in memory: the project's folder stays as it was, whatever queues.yaml names."""
    project = make(
        "broker: amqp://nobody@localhost:1/\nqueues: {work: work}"
        if "amqp" in _schemes()
        else "broker: sqlite:queues.db\nqueues: {work: work}",
        work="def handler(message): pass",
    )
    project.send("work", 1, id="x")
    project.run_until_idle()
    project.close()

    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    assert left == {"handlers", "handlers/work.py", "queues.yaml"}


def _schemes() -> list[str]:
    from handrail.adapter import schemes

    return schemes()


def test_the_lifespan_is_entered_and_left(make: Make) -> None:
    """What `_lifespan.py` opens is open while the project is, and closed with it."""
    project = make(
        WORK,
        work="from handrail import context\ndef handler(message): return context.state['db']",
        _lifespan="""
            events = []
            async def lifespan():
                events.append("open")
                yield {"db": "here"}
                events.append("closed")
        """,
    )
    project.send("work", 1)
    project.run_until_idle()

    import handlers._lifespan as module  # type: ignore[import-not-found]

    assert project.results == ["here"]
    assert module.events == ["open"]
    project.close()
    assert module.events == ["open", "closed"]


def test_wrong_settings_and_handlers_are_the_tests_error(make: Make, tmp_path: Path) -> None:
    """A wrong queues.yaml, a handler that does not load, and an unknown queue raise, each with its one line."""
    with pytest.raises(NoProjectError):
        testing.project(tmp_path)
    with pytest.raises(ConfigError, match="attemps"):
        make("queues: {work: {handler: work, attemps: 3}}", work="def handler(message): pass")
    with pytest.raises(StartError, match="boom"):
        make(WORK, work="def handler(message): pass\nraise RuntimeError('boom')")
    with pytest.raises(UnknownQueueError):
        make(WORK, work="def handler(message): pass").send("wrok", 1)


def test_a_closed_project_leaves_the_process_as_it_was(make: Make) -> None:
    """After `close` the process sends as it did before, no loop runs on, and the project says that it is closed."""
    before = transport.current()
    project = make(WORK, work="def handler(message): pass")
    project.send("work", 1)
    project.run_until_idle()

    project.close()
    project.close()

    assert transport.current() is before
    assert "handrail-testing" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(HandrailError, match="closed"):
        project.run_until_idle()


def test_one_test_after_another_has_its_own_project(make: Make) -> None:
    """A second project in the same process runs its own code, even where files have the same names."""
    first = make(WORK, work="def handler(message): return 'first'")
    first.send("work", 1)
    first.run_until_idle()
    first.close()

    second = make(WORK, work="def handler(message): return 'second'")
    assert second.waiting == []
    second.send("work", 1)
    second.run_until_idle()

    assert (first.results, second.results) == (["first"], ["second"])
