"""What can become of a delivery, and how long a retry waits. It decides nothing: the dispatcher does."""

from __future__ import annotations

import enum
import random
from typing import Literal

import msgspec


class Outcome(enum.StrEnum):
    """What became of one delivery, in the words that logs, commands and docs use."""

    COMPLETED = "completed"  #: the callback fired without an error; acknowledged
    FAILED = "failed"  #: an attempt failed and another will follow
    LATER = "later"  #: the handler asked for the message again later (RetryLater)
    DEAD = "dead"  #: dead-lettered: no attempt is left, or none can help
    INTERRUPTED = "interrupted"  #: given back because the worker stopped; not an attempt
    CRASHED = "crashed"  #: the process that ran it died; given back, not an attempt
    EXPIRED = "expired"  #: it did not start in time; dropped
    DUPLICATE = "duplicate"  #: another message with its id was there first; acknowledged without running
    CANCELLED = "cancelled"  #: cancelled from outside; not retried
    REFUSED = "refused"  #: its lease, partition or connection was gone when the outcome came: no outcome


class Backoff(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long a failed message waits before its next attempt. All durations are seconds.

    With *n* the number of failed attempts so far (1 after the first), before ``max`` and jitter:
    ``fixed``: delay · ``linear``: delay·n · ``exponential``: delay·factor^(n-1) · ``list``: delays[n-1], the last repeats.
    """

    type: Literal["fixed", "linear", "exponential", "list"] = "exponential"
    delay: float = 1.0
    factor: float = 2.0
    max: float | None = None
    #: Share of the delay that jitter may take away, 0 to 1. Jitter only shortens: between (1-j)·d and d.
    jitter: float = 0.0
    delays: tuple[float, ...] = ()

    def seconds(self, failed: int, uniform: float | None = None) -> float:
        """Seconds to wait after the *failed*-th failed attempt (1 or more); *uniform* in [0, 1) replaces chance in tests."""
        match self.type:
            case "fixed":
                wait = self.delay
            case "linear":
                wait = self.delay * failed
            case "exponential":
                # beyond 2**60 the float would overflow long after `max` or ten years were reached
                wait = self.delay * self.factor ** min(failed - 1, 60)
            case "list":
                wait = self.delays[min(failed, len(self.delays)) - 1] if self.delays else 0.0
        if self.max is not None:
            wait = min(wait, self.max)
        if self.jitter and wait:
            chance = random.random() if uniform is None else uniform  # noqa: S311 - not a secret
            wait -= wait * self.jitter * chance
        return wait


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a message is a dead letter; it travels with it. Texts are valid UTF-8, each at most 8 KB."""

    #: One line for people: ``ValueError: no such user``, ``callback not called within 30s``.
    reason: str
    #: The user's frames first, or empty.
    traceback: str = ""
    #: Unix time in seconds at which it was dead-lettered.
    at: float = 0.0
    #: The queue it died in.
    queue: str = ""


#: Bytes of UTF-8 to which a reason or a traceback is cut, so that it always fits a header.
FAULT_BYTES = 8192


def clip(text: str, limit: int = FAULT_BYTES) -> str:
    """*text* as valid UTF-8 of at most *limit* bytes; the middle is cut, for the ends say most."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > limit:
        mark = b"\n[...]\n"
        half = (limit - len(mark)) // 2
        data = data[:half] + mark + data[-half:]
    return data.decode("utf-8", "ignore")
