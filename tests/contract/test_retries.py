"""Attempts, backoff, rules for errors, and the counts that travel with a message."""

from __future__ import annotations

import pytest
from contract_harness import Project

from handrail.adapter import Capability
from handrail.outcome import Outcome

needs = pytest.mark.needs

FAIL = """
    from handrail import context
    def handler(message):
        note('ran', message, context.job.attempt)
        raise ValueError('no')
"""


def test_attempts_counts_runs_in_all(project: Project) -> None:
    """`attempts: 3` is three runs, the first included: two failed and the third dead."""
    project.handler(FAIL)
    project.queues({"work": {"handler": "work", "attempts": 3, "backoff": ["0s"]}})
    project.start()

    project.send("work", "m")

    outcomes = [one.outcome for one in project.wait(count=3)]
    assert outcomes == [Outcome.FAILED, Outcome.FAILED, Outcome.DEAD]
    assert [one.facts[1] for one in project.notes("ran")] == [1, 2, 3]


def test_counts_travel_with_the_message(project: Project) -> None:
    """Failed attempts and starts stand in the message itself, and so in its dead letter."""
    project.handler("""
        from handrail import RetryLater
        def handler(message):
            note('ran')
            if count('ran') == 2:
                raise RetryLater(0)
            raise ValueError
    """)
    project.queues({"work": {"handler": "work", "attempts": 2, "backoff": ["0s"]}})
    project.start()

    project.send("work", "m")

    assert [one.outcome for one in project.wait(count=3)] == [Outcome.FAILED, Outcome.LATER, Outcome.DEAD]
    delivered = [(one.message.attempts, one.message.starts) for one in project.seen]
    assert delivered == [(0, 0), (1, 1), (1, 2)]
    letter = project.peek(state="dead")[0]
    assert (letter.attempts, letter.starts, letter.crashes) == (2, 3, 0)


@needs(Capability.DELAY)
def test_backoff_is_a_list_of_waits(project: Project) -> None:
    """A list of durations is waited one after the other, and its last one repeats; never is a retry early."""
    project.handler(FAIL)
    project.queues({"work": {"handler": "work", "attempts": 4, "backoff": ["0s", "100ms", "200ms"]}})
    project.start()

    project.send("work", "m")

    project.wait(Outcome.DEAD)
    at = [one.at for one in project.notes("ran")]
    assert at[2] - at[1] >= 0.1
    assert at[3] - at[2] >= 0.2
    assert [one.verdict.next_in for one in project.wait(Outcome.FAILED)] == [0, 0.1, 0.2]


@needs(Capability.DELAY)
def test_backoff_is_a_mapping(project: Project) -> None:
    """`{type: exponential, delay, factor, max}` grows by its factor up to its max."""
    project.handler(FAIL)
    backoff = {"type": "exponential", "delay": "20ms", "factor": 3, "max": "100ms"}
    project.queues({"work": {"handler": "work", "attempts": 4, "backoff": backoff}})
    project.start()

    project.send("work", "m")

    project.wait(Outcome.DEAD)
    assert [one.verdict.next_in for one in project.wait(Outcome.FAILED)] == pytest.approx([0.02, 0.06, 0.1])


@needs(Capability.DELAY)
def test_jitter_only_shortens(project: Project) -> None:
    """With `jitter: 0.5` each wait lies between half of its delay and all of it."""
    project.handler(FAIL)
    backoff = {"type": "fixed", "delay": "40ms", "jitter": 0.5}
    project.queues({"work": {"handler": "work", "attempts": 2, "backoff": backoff}})
    project.start()

    project.send_bulk("work", list(range(40)))

    waits = [one.verdict.next_in for one in project.wait(Outcome.FAILED, count=40)]
    assert all(0.02 <= wait <= 0.04 for wait in waits if wait is not None)
    assert len(set(waits)) > 1
    project.wait(Outcome.DEAD, count=40)


def test_an_error_rule_rejects(project: Project) -> None:
    """`errors: {when: LookupError, then: reject}` makes a KeyError, which is one, dead at once; other errors are retried."""
    project.handler("""
        def handler(message):
            raise {"key": KeyError, "value": ValueError}[message]("no")
    """)
    rules = [{"when": "LookupError", "then": "reject"}]
    project.queues({"work": {"handler": "work", "attempts": 2, "backoff": ["0s"], "errors": rules}})
    project.start()

    project.send("work", "key")
    project.one(Outcome.DEAD)
    project.send("work", "value")

    project.wait(Outcome.DEAD, count=2)
    assert [(one.payload, one.outcome) for one in project.seen] == [
        ("key", Outcome.DEAD),
        ("value", Outcome.FAILED),
        ("value", Outcome.DEAD),
    ]


@needs(Capability.DELAY)
def test_an_error_rule_has_its_own_backoff(project: Project) -> None:
    """The first rule that fits an error sets its backoff, also for a class of the project's own modules."""
    (project.root / "shop.py").write_text("class BusyError(Exception): pass\nclass VeryBusyError(BusyError): pass\n")
    project.handler("""
        import shop
        def handler(message): raise shop.VeryBusyError
    """)
    rules = [
        {"when": "ValueError", "backoff": ["1h"]},
        {"when": "shop.BusyError", "backoff": ["10ms"]},
        {"when": "Exception", "backoff": ["1h"]},
    ]
    project.queues({"work": {"handler": "work", "attempts": 2, "backoff": ["1h"], "errors": rules}})
    project.start()

    project.send("work", 1)

    project.one(Outcome.DEAD)
    assert project.one(Outcome.FAILED).verdict.next_in == 0.01


def test_an_error_rule_holds_for_errors_given_to_the_callback(project: Project) -> None:
    """A rule looks at the error that the callback was given just as at one that was raised."""
    project.handler("def handler(message, callback): callback(PermissionError('no'))")
    rules = [{"when": "OSError", "then": "reject"}]
    project.queues({"work": {"handler": "work", "attempts": 5, "errors": rules}})
    project.start()

    project.send("work", 1)

    assert project.one().outcome is Outcome.DEAD


@needs(Capability.DELAY)
def test_a_waiting_retry_keeps_nothing_back(project: Project) -> None:
    """While one message waits for its retry, those behind it run: a retry is no obstacle."""
    project.handler("def handler(message):\n    if message == 'bad': raise ValueError")
    project.queues({"work": {"handler": "work", "concurrency": 1, "attempts": 2, "backoff": ["1h"]}})
    project.start()

    project.send("work", "bad")
    project.send_bulk("work", ["good", "better"])

    project.wait(Outcome.COMPLETED, count=2)
    assert project.one(Outcome.FAILED).payload == "bad"
    assert project.depth().delayed == 1


def test_the_first_fails_and_the_second_succeeds_and_after_a_restart_the_first_comes_back(project: Project) -> None:
    """A failed message is not lost behind one that succeeded after it, even when the worker stops in between."""
    project.handler("""
        def handler(message):
            note('ran', message)
            if message == 'first' and not is_open("mended"): raise ValueError
    """)
    project.queues({"work": {"handler": "work", "concurrency": 1, "attempts": 1000, "backoff": ["200ms"]}})
    running = project.start()
    project.send_bulk("work", ["first", "second"])
    project.wait(Outcome.FAILED)
    project.wait(Outcome.COMPLETED)
    running.stop()
    project.open("mended")

    project.start()

    assert [one.payload for one in project.wait(Outcome.COMPLETED, count=2)] == ["second", "first"]


def test_a_failure_report_of_any_size_and_text_can_be_dead_lettered(project: Project) -> None:
    """A reason of a megabyte, with lone surrogates and NULs in it, is cut and made valid, and the message is dead."""
    project.handler("def handler(message): raise ValueError('\\ud800\\x00ä' * 400_000)")
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    project.one(Outcome.DEAD)
    fault = project.peek(state="dead")[0].fault
    assert fault is not None
    assert fault.reason.startswith("ValueError: ")
    assert len(fault.reason.encode()) <= 8192
    assert len(fault.traceback.encode()) <= 8192
