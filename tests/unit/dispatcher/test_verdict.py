"""What follows from how a job ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.adapter import Verb
from handrail.config.model import ErrorRule, HandlerRef, QueueSettings
from handrail.dispatcher import verdict
from handrail.message import Message, Options
from handrail.outcome import Backoff, Outcome

NOW = 1_000_000.0


def queue(**settings) -> QueueSettings:
    return QueueSettings(
        name="email",
        handler=HandlerRef("mail", "mail.py", "handler"),
        backoff=Backoff(type="fixed", delay=2.0),
        **settings,
    )


def message(**facts) -> Message:
    return Message(queue="email", id="1", body=b"{}", sent_at=NOW, **facts)


def test_a_failed_attempt_comes_back_after_its_backoff():
    """A failed attempt that is not the last moves to the delays, counted as one attempt and one start."""
    ruling = verdict.failed(message(), queue(attempts=3), NOW, "boom")

    assert (Outcome.FAILED, Verb.MOVE, 2.0) == (ruling.outcome, ruling.verb, ruling.next_in)
    assert (1, 1, NOW + 2.0) == (ruling.message.attempts, ruling.message.starts, ruling.message.due)


def test_a_retry_without_delay_has_no_due_time():
    """A backoff of zero puts the message at the tail of its queue at once."""
    ruling = verdict.failed(
        message(due=5.0), queue(errors=()), NOW, "x", rule=ErrorRule("E", backoff=Backoff("fixed", 0.0))
    )

    assert None is ruling.message.due


def test_attempts_count_runs_in_all():
    """With attempts: 3 the third failure is the last: two retries, three runs."""
    outcomes = [
        verdict.failed(message(attempts=done, starts=done), queue(attempts=3), NOW, "x").outcome for done in range(3)
    ]

    assert [Outcome.FAILED, Outcome.FAILED, Outcome.DEAD] == outcomes


@pytest.mark.parametrize(
    ("options", "rule", "expected"),
    [
        (None, None, 2.0),
        (Options(backoff=Backoff("fixed", 7.0)), None, 7.0),
        (Options(backoff=Backoff("fixed", 7.0)), ErrorRule("E", backoff=Backoff("fixed", 9.0)), 9.0),
    ],
)
def test_the_nearest_backoff_wins(options, rule, expected):
    """An error rule's backoff goes before the message's own, and that before the queue's."""
    assert expected == verdict.failed(message(options=options), queue(), NOW, "x", rule=rule).next_in


def test_the_senders_attempts_go_before_the_queues():
    """A message sent with attempts=1 is dead after its first failure."""
    assert Outcome.DEAD is verdict.failed(message(options=Options(attempts=1)), queue(attempts=9), NOW, "x").outcome


def test_a_rule_can_reject():
    """`then: reject` dead-letters at the first failure, and the dead letter says why, when and where."""
    ruling = verdict.failed(message(), queue(), NOW, "ValueError: no", "trace", ErrorRule("ValueError", then="reject"))

    assert (Outcome.DEAD, Verb.DEAD) == (ruling.outcome, ruling.verb)
    fault = ruling.message.fault
    assert ("ValueError: no", "trace", NOW, "email") == (fault.reason, fault.traceback, fault.at, fault.queue)
    assert 1 == ruling.message.attempts


def test_retry_later_is_a_start_and_no_attempt():
    """RetryLater comes back without a failed attempt."""
    ruling = verdict.later(message(attempts=1, starts=4), queue(), NOW, 30.0)

    assert (Outcome.LATER, 1, 5, NOW + 30) == (
        ruling.outcome,
        ruling.message.attempts,
        ruling.message.starts,
        ruling.message.due,
    )


def test_max_starts_bounds_a_loop_of_retry_later():
    """After max_starts calls a message that keeps asking for later is dead, and the reason says so."""
    ruling = verdict.later(message(starts=4), queue(max_starts=5), NOW, 30.0)

    assert Outcome.DEAD is ruling.outcome
    assert "max_starts: 5" in ruling.reason


def test_crashes_are_counted_apart_and_bounded():
    """A crash is no attempt; the third one, by default, is a dead letter."""
    first = verdict.crashed(message(), queue(), NOW, "killed by SIGSEGV")
    third = verdict.crashed(message(crashes=2, starts=2), queue(), NOW, "killed by SIGSEGV")

    assert (Outcome.CRASHED, Verb.RELEASE, 1, 0) == (
        first.outcome,
        first.verb,
        first.message.crashes,
        first.message.attempts,
    )
    assert (Outcome.DEAD, 3) == (third.outcome, third.message.crashes)
    assert "3 times" in third.reason
    assert "SIGSEGV" in third.reason


def test_interrupted_goes_back_as_a_start_only():
    """What a stop interrupts goes back to the head, with no attempt and no crash counted."""
    ruling = verdict.interrupted(message(attempts=1, starts=1), "stopped")

    assert (Verb.RELEASE, 1, 2, 0) == (
        ruling.verb,
        ruling.message.attempts,
        ruling.message.starts,
        ruling.message.crashes,
    )


def test_expiry_counts_from_when_a_message_becomes_due():
    """A message sent long ago but due just now is in time; one due too long ago is dropped."""
    assert None is verdict.before_start(message(due=NOW + 50), queue(expires=60.0), NOW + 100)
    late = verdict.before_start(message(), queue(expires=60.0), NOW + 61)
    assert (Outcome.EXPIRED, Verb.ACK) == (late.outcome, late.verb)


def test_a_message_that_started_once_no_longer_expires():
    """`expires` bounds the first start; a retry is of a message that was in time."""
    assert None is verdict.before_start(message(starts=1), queue(expires=60.0), NOW + 1000)


def test_a_message_whose_crashes_are_spent_is_not_started():
    """A message that comes with max_crashes crashes is dead without another run."""
    assert Outcome.DEAD is verdict.before_start(message(crashes=3), queue(), NOW).outcome


@given(st.text(max_size=30_000))
def test_any_error_text_can_be_dead_lettered(text):
    """Whatever an error says, the dead letter's reason is valid UTF-8 of at most 8 KB."""
    ruling = verdict.rejected(message(), queue(), NOW, text, text)

    assert len(ruling.message.fault.reason.encode()) <= 8192
    assert len(ruling.message.fault.traceback.encode()) <= 8192
