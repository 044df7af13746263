"""Dead letters: why, with what, and back. And what of a message survives all of its ways."""

from __future__ import annotations

import time

import pytest
from contract_harness import Project

from handrail.adapter import Capability
from handrail.outcome import Outcome

needs = pytest.mark.needs

pytestmark = needs(Capability.DEAD_LETTERS)

HEADERS = {"text": "ä \U0001f600", "number": 7, "big": -(2**62), "share": 0.5, "flag": True, "raw": b"\x00\xff"}
FAILS = (
    "def handler(message):\n    note('ran', message)\n    if not is_open('mended'): raise ValueError(f'no {message}')"
)
ONE_ATTEMPT = {"work": {"handler": "work", "attempts": 1, "concurrency": 1}}


def test_a_dead_letter_says_why_when_and_after_how_much(project: Project) -> None:
    """A dead letter holds reason, traceback with the user's frames, counts, time and queue."""
    project.handler("def inner(m):\n    raise ValueError('no such user')\ndef handler(m):\n    inner(m)")
    project.queues({"work": {"handler": "work", "attempts": 2, "backoff": ["0s"]}})
    project.start()
    began = time.time()

    sent = project.send("work", {"n": 1}, priority=6)

    project.one(Outcome.DEAD)
    letter = project.peek(state="dead")[0]
    assert (letter.id, letter.body, letter.priority) == (sent, b'{"n":1}', 6)
    assert (letter.attempts, letter.starts, letter.crashes) == (2, 2, 0)
    assert letter.fault is not None
    assert letter.fault.reason == "ValueError: no such user"
    assert letter.fault.queue == "work"
    assert began <= letter.fault.at <= time.time()
    assert "handlers/work.py" in letter.fault.traceback
    assert "in inner" in letter.fault.traceback


@needs(Capability.FIFO)
def test_replay_puts_dead_letters_at_the_tail_with_counts_at_zero(project: Project) -> None:
    """Replayed letters go to the tail in the order of their deaths, with counts reset, and keep their ids."""
    project.handler(FAILS)
    project.queues(ONE_ATTEMPT)
    running = project.start()
    sent = [project.send("work", name) for name in ("a", "b", "c")]
    project.wait(Outcome.DEAD, count=3)
    running.stop()
    project.send("work", "waiting")

    assert project.replay() == 3

    assert project.peek(state="dead") == []
    waiting = project.peek()
    assert [one.body for one in waiting] == [b'"waiting"', b'"a"', b'"b"', b'"c"']
    assert [one.id for one in waiting][1:] == sent
    assert {(one.attempts, one.starts, one.crashes, one.fault) for one in waiting} == {(0, 0, 0, None)}
    project.open("mended")
    project.start()
    project.wait(Outcome.COMPLETED, count=4)


def test_single_dead_letters_are_replayed_by_id(project: Project) -> None:
    """`replay` with ids takes those alone, and an id that is not there is no error."""
    project.handler(FAILS)
    project.queues(ONE_ATTEMPT)
    running = project.start()
    ids = {name: project.send("work", name) for name in ("a", "b", "c")}
    project.wait(Outcome.DEAD, count=3)
    running.stop()

    assert project.replay("work", [ids["b"], "unknown"]) == 1

    assert [one.body for one in project.peek()] == [b'"b"']
    assert {one.body for one in project.peek(state="dead")} == {b'"a"', b'"c"'}


def test_a_replayed_message_with_a_chosen_id_is_no_duplicate_of_itself(project: Project) -> None:
    """A dead letter whose sender chose its id runs again when it is replayed."""
    project.handler(FAILS)
    project.queues(ONE_ATTEMPT)
    project.start()
    project.send("work", "a", id="order-17")
    project.wait(Outcome.DEAD)
    project.open("mended")

    project.replay()

    assert project.one(Outcome.COMPLETED).id == "order-17"


def test_dead_letters_are_listed_newest_first_and_purged(project: Project) -> None:
    """Dead letters are listed newest first; `purge` deletes them, all or by id, and says how many."""
    project.handler(FAILS)
    project.queues(ONE_ATTEMPT)
    project.start()
    ids = [project.send("work", name) for name in ("a", "b", "c")]
    project.wait(Outcome.DEAD, count=3)

    assert [one.id for one in project.peek(state="dead")] == list(reversed(ids))
    assert project.purge("work", "dead", [ids[1]]) == 1
    assert [one.id for one in project.peek(state="dead")] == [ids[2], ids[0]]
    assert project.purge("work", "dead") == 2
    assert project.peek(state="dead") == []
    assert project.replay() == 0


def test_dead_letter_false_drops_what_is_dead(project: Project) -> None:
    """With `dead_letter: false` a dead message is told of and kept nowhere."""
    project.handler(FAILS)
    project.queues({"work": {"handler": "work", "attempts": 1, "dead_letter": False}})
    project.start()

    project.send("work", "a")

    project.one(Outcome.DEAD)
    assert project.peek(state="dead") == []
    assert project.peek() == []


@needs(Capability.DELAY)
def test_what_a_sender_gave_survives_retry_death_and_replay(project: Project) -> None:
    """Headers, unknown ones too, key, priority, options and sending time are the same after every way a message goes."""
    project.handler("""
        from handrail import context
        def handler(message):
            job = context.job
            note('ran', {name: repr(value) for name, value in job.headers.items()}, job.key, job.priority, job.sent_at)
            if not is_open("mended"): raise ValueError
    """)
    project.queues({"work": {"handler": "work"}})
    project.start()
    project.send("work", 1, headers=HEADERS, key="user-1", priority=6, attempts=3, backoff=["0s", "50ms"], expires="1h")
    project.one(Outcome.DEAD)
    project.open("mended")

    project.replay()

    project.one(Outcome.COMPLETED)
    told = [one.facts for one in project.notes("ran")]
    assert len(told) == 4
    assert told == [told[0]] * 4
    assert told[0][:3] == ({name: repr(value) for name, value in HEADERS.items()}, "user-1", 6)


def _counts(project: Project) -> tuple[int | None, ...]:
    depth = project.depth()
    return depth.ready, depth.delayed, depth.active, depth.dead


@needs(Capability.DEPTH)
def test_depth_is_exact(project: Project) -> None:
    """`depth` counts what is ready, delayed, active and dead, through every change of state."""
    project.handler(
        "def handler(message):\n    note('in')\n    if message == 'bad': raise ValueError\n    gate(\"go\")"
    )
    project.queues({"work": {"handler": "work", "concurrency": 2, "attempts": 1}})
    project.send_bulk("work", list(range(5)))
    project.send("work", "later", delay="1h")
    project.send("work", "bad", priority=9)
    project.until(lambda: _counts(project) == (6, 1, 0, 0), "6 ready, 1 delayed")

    project.start()
    project.noted("in", 3)
    project.until(lambda: _counts(project) == (3, 1, 2, 1), "3 ready, 1 delayed, 2 active, 1 dead")
    project.open("go")
    project.wait(Outcome.COMPLETED, count=5)
    project.until(lambda: _counts(project) == (0, 1, 0, 1), "1 delayed, 1 dead")
    assert project.purge("work", "delayed") == 1
    assert project.purge("work", "dead") == 1
    project.until(lambda: _counts(project) == (0, 0, 0, 0), "nothing to be left")


@needs(Capability.PURGE, Capability.PEEK)
def test_purge_takes_nothing_that_is_being_worked_on(project: Project) -> None:
    """`purge` deletes what waits; what runs is left alone and gets its outcome."""
    project.handler("def handler(message): note('in'); gate(\"go\")")
    project.queues({"work": {"handler": "work", "concurrency": 1}})
    project.start()
    project.send("work", "runs")
    project.noted("in")
    project.send_bulk("work", [1, 2, 3])

    assert project.purge("work", "ready") == 3

    assert project.peek() == []
    project.open("go")
    project.one(Outcome.COMPLETED)
    assert [one.payload for one in project.seen] == ["runs"]
