"""In which order messages run, where they come back, and who gets them."""

from __future__ import annotations

import time

import pytest
from contract_harness import Project

from handrail.adapter import Capability, Depth
from handrail.outcome import Outcome

needs = pytest.mark.needs

ONE_AT_A_TIME = {"work": {"handler": "work", "concurrency": 1, "attempts": 3, "backoff": ["0s"]}}
RECORD = "def handler(message): note('ran', message)"


def ran(project: Project, count: int) -> list[object]:
    return [one.facts[0] for one in project.noted("ran", count)]


@needs(Capability.FIFO)
def test_equal_priorities_run_first_in_first_out(project: Project) -> None:
    """Messages of one priority run in the order in which they were sent, one by one or in bulk."""
    project.handler(RECORD)
    project.queues(ONE_AT_A_TIME)
    project.send("work", 0)
    project.send_bulk("work", list(range(1, 60)))
    project.send("work", 60)

    project.start()

    assert ran(project, 61) == list(range(61))


@pytest.mark.timeout(300)
@needs(Capability.FIFO)
def test_the_order_is_kept_while_handlers_turn_slow_and_fast_again(project: Project) -> None:
    """What was fetched ahead for fast handlers is given back when they turn slow, to its place: one worker runs all in order."""
    project.handler("""
        import time
        def handler(message):
            note('ran', message)
            if message % 1000 >= 970: time.sleep(0.05 if message % 10 else 0.7)
    """)
    project.queues(ONE_AT_A_TIME)
    project.send_bulk("work", list(range(3000)))

    project.start()

    project.until(lambda: len(project.seen) >= 3000, "all of them", 200.0)
    assert ran(project, 3000) == list(range(3000))


@needs(Capability.PRIORITY)
def test_priorities_run_from_nine_to_zero(project: Project) -> None:
    """9 runs first, 0 last, and a message without a priority stands at 4, so that something can stand below it."""
    project.handler(RECORD)
    project.queues(ONE_AT_A_TIME)
    project.send("work", "default", key="k")
    for priority in (0, 9, 3, 5, 4, 7):
        project.send("work", priority, priority=priority, key="k")

    project.start()

    assert ran(project, 7) == [9, 7, 5, "default", 4, 3, 0]


@needs(Capability.PRIORITY)
def test_a_queue_may_have_another_default_priority(project: Project) -> None:
    """`priority:` of a queue is that of its messages which were sent without one."""
    project.handler(RECORD)
    project.queues({"work": {"handler": "work", "priority": 8}})

    project.send("work", 1)
    project.send("work", 1, priority=2)

    assert [one.priority for one in project.peek()] == [8, 2]


@needs(Capability.LIFO)
def test_lifo_runs_the_newest_first(project: Project) -> None:
    """`order: lifo` runs the newest of a priority first."""
    project.handler(RECORD)
    project.queues({"work": {"handler": "work", "concurrency": 1, "order": "lifo"}})
    project.send("work", "a", key="k")
    project.send_bulk("work", ["b", "c"], key="k")
    project.send("work", "urgent", priority=9)

    project.start()

    assert ran(project, 4) == ["urgent", "c", "b", "a"]


@needs(Capability.FIFO)
def test_a_retry_without_delay_goes_to_the_tail(project: Project) -> None:
    """A message that failed and waits for nothing stands behind those that were there before."""
    project.handler("""
        from handrail import context
        def handler(message):
            note('ran', message)
            if message == 'bad' and context.job.attempt == 1: raise ValueError
    """)
    project.queues(ONE_AT_A_TIME)
    project.send_bulk("work", ["bad", "b", "c"])

    project.start()

    assert ran(project, 4) == ["bad", "b", "c", "bad"]


def _waiting(depth: Depth, count: int) -> bool:
    """Whether so many are ready, where the broker can tell, and none is delayed: on its way from there it is in no count."""
    return depth.delayed == 0 and depth.ready in (count, None)


@needs(Capability.FIFO, Capability.DELAY)
def test_what_falls_due_goes_to_the_tail(project: Project) -> None:
    """A delayed message that falls due stands behind the messages of its priority that were ready before."""
    project.handler("def handler(message): note('ran', message); message == 'first' and gate(\"go\")")
    project.queues(ONE_AT_A_TIME)
    project.start()
    project.send("work", "first")
    project.noted("ran")
    project.send("work", "delayed", delay="8s")
    project.send_bulk("work", ["b", "c"])
    project.until(lambda: _waiting(project.depth(), 3), "the delayed message to fall due")
    project.open("go")

    assert ran(project, 4) == ["first", "b", "c", "delayed"]


@needs(Capability.PRIORITY, Capability.DELAY)
def test_what_falls_due_keeps_its_priority(project: Project) -> None:
    """A delayed message and a retry come back with their own priority."""
    project.handler("""
        from handrail import context
        def handler(message):
            note('ran', message)
            if message == 'first': gate("go")
            if message == 'retried' and context.job.attempt == 1: raise ValueError
    """)
    project.queues({"work": {"handler": "work", "concurrency": 1, "attempts": 2, "backoff": ["8s"]}})
    project.start()
    project.send("work", "retried", priority=9)
    project.wait(Outcome.FAILED)
    project.send("work", "first", priority=9)
    project.noted("ran", 2)
    project.send("work", "delayed", delay="4s", priority=8)
    project.send_bulk("work", ["b", "c"], key="k")
    project.until(lambda: _waiting(project.depth(), 4), "both to fall due")
    project.open("go")

    assert ran(project, 6) == ["retried", "first", "retried", "delayed", "b", "c"]


@needs(Capability.HEAD, Capability.FIFO)
def test_interrupted_work_goes_back_to_the_head(project: Project) -> None:
    """What ran when the worker stopped comes back before what was behind it, and no attempt is counted."""
    project.handler("""
        from handrail import context
        def handler(message):
            note('ran', message, context.job.attempt)
            if not is_open("go"): gate("go")
    """)
    project.queues(ONE_AT_A_TIME)
    running = project.start()
    project.send_bulk("work", ["a", "b", "c"])
    project.noted("ran")

    assert running.stop(drain=0.05) == 1

    assert project.one(Outcome.INTERRUPTED).payload == "a"
    waiting = project.peek()
    assert [one.body for one in waiting] == [b'"a"', b'"b"', b'"c"']
    assert [(one.attempts, one.starts) for one in waiting] == [(0, 1), (0, 0), (0, 0)]
    project.open("go")
    project.start()
    project.wait(Outcome.COMPLETED, count=3)
    assert [one.facts for one in project.notes("ran")] == [("a", 1), ("a", 1), ("b", 1), ("c", 1)]


@needs(Capability.FIFO)
def test_what_was_fetched_and_never_started_goes_back_uncounted(project: Project) -> None:
    """A stop gives back what was only fetched: nothing is counted and no order lost."""
    project.handler("def handler(message): note('ran', message); gate(\"go\")")
    project.queues(ONE_AT_A_TIME)
    running = project.start()
    project.send_bulk("work", list(range(20)))
    project.noted("ran")
    project.open("go")
    running.stop()

    handled = {one.facts[0] for one in project.notes("ran")}
    left = [str(n).encode() for n in range(20) if n not in handled]
    # counted first, for who looks while it comes back may have that stand behind what he looked at
    project.until(lambda: project.depth().ready in (len(left), None), "what was fetched to be back")
    waiting = project.peek()
    assert [one.body for one in waiting] == left
    assert {(one.starts, one.attempts) for one in waiting} <= {(0, 0)}


def test_send_bulk_keeps_order_between_queues_and_options(project: Project) -> None:
    """`send_bulk` stores messages in the order of its list, each with its own options."""
    project.handler(RECORD)
    project.queues(ONE_AT_A_TIME)

    project.send_bulk("work", list(range(500)), key="k")

    assert [one.body for one in project.peek(limit=1000)] == [str(n).encode() for n in range(500)]


@needs(Capability.PROCESSES, Capability.FAIR)
def test_a_slow_handler_hoards_nothing(project: Project) -> None:
    """A worker whose handlers are busy holds no message that another worker could run."""
    project.handler("""
        def handler(message):
            note('ran', message)
            if message == 'slow': gate("slow")
    """)
    project.queues(ONE_AT_A_TIME)
    project.start()
    project.send("work", "slow")
    project.noted("ran")
    project.send_bulk("work", list(range(10)))
    project.start()

    project.wait(Outcome.COMPLETED, count=10)

    assert sorted(one.payload for one in project.seen) == list(range(10))
    project.open("slow")
    project.wait(Outcome.COMPLETED, count=11)


@needs(Capability.PROCESSES)
def test_two_workers_share_a_queue_and_run_nothing_twice(project: Project) -> None:
    """Each message runs once, whichever worker gets it, and both workers get some."""
    project.handler("""
        def handler(message):
            note('ran', message)
            if count('ran') <= 2: gate("both")
    """)
    project.queues(ONE_AT_A_TIME)
    project.start()
    project.start()

    project.send_bulk("work", list(range(200)))

    project.noted("ran", 2)
    project.open("both")
    project.wait(Outcome.COMPLETED, count=200)
    assert sorted(one.facts[0] for one in project.notes("ran")) == list(range(200))
    assert len({one.pid for one in project.notes("ran")}) == 2


def test_queues_of_one_worker_do_not_starve_one_another(project: Project) -> None:
    """A queue with a long backlog, or whose handlers hang, does not keep another queue's messages waiting."""
    project.handler("def handler(message): note('hung', message); gate(\"go\")", "hangs")
    project.handler("def handler(message): pass", "busy")
    project.handler("def handler(message): pass", "quiet")
    project.queues({"hangs": {"handler": "hangs", "concurrency": 4}, "busy": "busy", "quiet": "quiet"})
    project.send_bulk("hangs", list(range(50)))
    project.send_bulk("busy", list(range(2000)))
    project.start()
    project.noted("hung", 4)

    project.send("quiet", 1)

    project.one(Outcome.COMPLETED, queue="quiet")
    assert not project.peek("quiet")
    project.wait(Outcome.COMPLETED, queue="busy", count=2000)


def test_concurrency_bounds_what_runs_at_once(project: Project) -> None:
    """No more handlers of a queue run at once in one worker than its `concurrency`, across its processes."""
    project.handler("""
        import asyncio
        async def handler(message):
            note('in', message)
            await agate("go")
            note('out', message)
    """)
    project.queues({"work": {"handler": "work", "concurrency": 3}})
    project.start(processes=2)
    project.send_bulk("work", list(range(9)))
    project.noted("in", 3)
    project.open("go")

    project.wait(Outcome.COMPLETED, count=9)

    inside = most = 0
    for one in project.notes():
        inside += 1 if one.tag == "in" else -1
        most = max(most, inside)
    assert most == 3
    assert len({one.pid for one in project.notes()}) == 2


@needs(Capability.DELAY)
def test_nothing_undue_is_delivered(project: Project) -> None:
    """A delayed message is in no worker's hands before it is due, and not early when it comes."""
    project.handler(RECORD)
    project.start()
    due = time.time() + 3
    project.send("work", "later", at=due)
    project.send("work", "far", delay="1h")

    project.send("work", "now")

    assert sorted(ran(project, 2)) == ["later", "now"]
    assert next(one.at for one in project.notes("ran") if one.facts[0] == "later") >= due

    # what ran is settled a moment after it has said so
    def settled() -> bool:
        depth = project.depth()
        return (depth.active, depth.delayed) == (0, 1)

    project.until(settled, "what ran to be settled, and the other to wait")


@needs(Capability.DELAY, Capability.DEPTH)
def test_a_stopped_worker_loses_no_delay(project: Project) -> None:
    """Delays live in the broker: a worker that starts after one was sent still runs it at its time."""
    project.handler(RECORD)
    first = project.start()
    due = time.time() + 3
    project.send("work", "later", at=due)
    first.stop()
    # on its way from one delay to the next it is in no count
    project.until(lambda: project.depth().delayed == 1 or time.time() > due, "the message to be seen waiting")

    project.start()

    assert ran(project, 1) == ["later"]


def test_a_paused_worker_starts_nothing(project: Project) -> None:
    """After `pause` nothing starts; what runs goes on; `resume` goes on with what waits."""
    project.handler("def handler(message): note('ran', message); message == 'running' and gate(\"go\")")
    project.handler(RECORD, "other")
    project.queues({"work": "work", "other": "other"})
    running = project.start()
    project.send("work", "running")
    project.noted("ran")

    running.pause()
    project.send_bulk("work", ["a", "b"])
    project.open("go")
    project.one(Outcome.COMPLETED)

    assert [one.facts[0] for one in project.notes("ran")] == ["running"]
    project.until(lambda: project.depth().ready in (2, None), "both to wait")
    running.resume()
    assert ran(project, 3)[0] == "running"
    project.wait(Outcome.COMPLETED, count=3)


def test_a_worker_without_the_handler_leaves_the_messages(project: Project) -> None:
    """A worker that does not serve a queue does not take its messages: they wait for one that does."""
    project.handler(RECORD)
    project.handler(RECORD, "other")
    project.queues({"work": "work", "other": "other"})
    running = project.start(queues=["other"])
    project.send("work", "waits")
    project.send("other", "runs")

    project.one(Outcome.COMPLETED, queue="other")
    assert len(project.peek("work")) == 1
    running.stop()
    project.start()
    project.one(Outcome.COMPLETED, queue="work")
