"""What follows from how a job ended: pure functions from a message and its queue's settings to a verdict. No I/O."""

from __future__ import annotations

import msgspec

from handrail import duration
from handrail.adapter import Verb
from handrail.config.model import ErrorRule, QueueSettings
from handrail.message import Message
from handrail.outcome import Backoff, Fault, Outcome, clip

_replace = msgspec.structs.replace


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a delivery, and what of its message."""

    outcome: Outcome
    verb: Verb
    #: The message as it shall stand in the broker; None when it is acknowledged or goes back untouched.
    message: Message | None = None
    reason: str = ""
    traceback: str = ""
    #: Seconds until it comes back, where it does.
    next_in: float | None = None


COMPLETED = Verdict(Outcome.COMPLETED, Verb.ACK)
DUPLICATE = Verdict(Outcome.DUPLICATE, Verb.ACK, reason="a message with this id was there before")
CANCELLED = Verdict(Outcome.CANCELLED, Verb.ACK, reason="cancelled")
UNSTARTED = Verdict(Outcome.INTERRUPTED, Verb.RELEASE)


def failed(
    message: Message, queue: QueueSettings, now: float, reason: str, traceback: str = "", rule: ErrorRule | None = None
) -> Verdict:
    """An attempt failed: again after its backoff, or dead when it was the last or *rule* says so."""
    attempts = message.attempts + 1
    options = message.options
    limit = options.attempts if options is not None and options.attempts is not None else queue.attempts
    counted = _replace(message, attempts=attempts, starts=message.starts + 1)
    if rule is not None and rule.then == "reject":
        return dead(counted, queue, now, reason, traceback)
    if attempts >= limit:
        return dead(counted, queue, now, reason, traceback)
    if (over := _starts_spent(counted, queue)) is not None:
        return dead(counted, queue, now, f"{over}; the last failure: {reason}", traceback)
    if rule is not None and rule.backoff is not None:
        backoff = rule.backoff
    elif options is not None and options.backoff is not None:
        backoff = options.backoff
    else:
        backoff = queue.backoff
    wait = _wait(backoff, attempts)
    counted.due = now + wait if wait > 0 else None
    return Verdict(Outcome.FAILED, Verb.MOVE, counted, clip(reason), clip(traceback), wait)


def later(message: Message, queue: QueueSettings, now: float, wait: float) -> Verdict:
    """The handler asked for the message again after *wait* seconds: a start, not a failed attempt."""
    counted = _replace(message, starts=message.starts + 1, due=now + wait if wait > 0 else None)
    if (over := _starts_spent(counted, queue)) is not None:
        return dead(counted, queue, now, over)
    return Verdict(Outcome.LATER, Verb.MOVE, counted, next_in=wait)


def rejected(message: Message, queue: QueueSettings, now: float, reason: str, traceback: str = "") -> Verdict:
    """The handler, or the decoding of its message, says that no retry can help."""
    return dead(_replace(message, starts=message.starts + 1), queue, now, reason, traceback)


def unfit(message: Message, queue: QueueSettings, now: float, reason: str) -> Verdict:
    """The body cannot become what the handler takes; it was not called."""
    return dead(message, queue, now, reason)


def crashed(message: Message, queue: QueueSettings, now: float, what: str) -> Verdict:
    """The process that ran it died: back at the head, or dead when that happened too often."""
    counted = _replace(message, starts=message.starts + 1, crashes=message.crashes + 1)
    if counted.crashes >= queue.max_crashes:
        return dead(counted, queue, now, crash_reason(counted.crashes, what))
    return Verdict(Outcome.CRASHED, Verb.RELEASE, counted, what)


def crash_reason(crashes: int, what: str = "") -> str:
    times = "once" if crashes == 1 else f"{crashes} times"
    return f"its process died {times} while running it" + (f"; the last time: {what}" if what else "")


def interrupted(message: Message, reason: str) -> Verdict:
    """It was running when the worker stopped: back at the head; a start, not an attempt."""
    return Verdict(Outcome.INTERRUPTED, Verb.RELEASE, _replace(message, starts=message.starts + 1), reason)


def dead(message: Message, queue: QueueSettings, now: float, reason: str, traceback: str = "") -> Verdict:
    """Dead-lettered as *message* stands, its counts being the caller's affair."""
    reason, traceback = clip(reason), clip(traceback)
    fault = Fault(reason=reason, traceback=traceback, at=now, queue=queue.name)
    return Verdict(Outcome.DEAD, Verb.DEAD, _replace(message, fault=fault, due=None), reason, traceback)


def before_start(message: Message, queue: QueueSettings, now: float) -> Verdict | None:
    """Why *message* must not be given to a handler at all, or None."""
    if message.crashes >= queue.max_crashes:
        return dead(message, queue, now, crash_reason(message.crashes))
    options = message.options
    expires = options.expires if options is not None and options.expires is not None else queue.expires
    # only the first start has to be in time: a retry is of a message that did start
    if expires is not None and message.starts == 0:
        since = message.due if message.due is not None else message.sent_at
        if since and now > since + expires:
            reason = f"not started within {duration.text(expires)} of becoming due"
            return Verdict(Outcome.EXPIRED, Verb.ACK, reason=reason)
    return None


def _wait(backoff: Backoff, failed: int) -> float:
    """What *backoff* says, within what every broker can hold: the numbers in it may come from the wire."""
    try:
        wait = backoff.seconds(failed)
    except OverflowError:
        return duration.LONGEST
    # a NaN is neither
    return min(wait, duration.LONGEST) if wait > 0 else 0.0


def _starts_spent(counted: Message, queue: QueueSettings) -> str | None:
    if queue.max_starts is not None and counted.starts >= queue.max_starts:
        return f"started {counted.starts} times (max_starts: {queue.max_starts})"
    return None
