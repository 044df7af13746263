"""The job as a handler sees it (``context.job``), and where it is found. It decides no outcome."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol

from handrail.pipe import Facts, ToDispatcher

if TYPE_CHECKING:
    from handrail.host.loader import Binding

Level = Literal["debug", "info", "warning", "error"]
_LEVELS = frozenset({"debug", "info", "warning", "error"})


class Desk(Protocol):
    """Where a job leaves what it has to say; callable from any thread."""

    def send(self, message: list[Any]) -> None: ...


class Job:
    """One delivery in its handler's hands. Safe to use from any thread, also after the job has ended."""

    __slots__ = (
        "_body",
        "_desk",
        "_facts",
        "_message",
        "_reason",
        "began",
        "binding",
        "dropped",
        "entered",
        "in_thread",
        "returned",
        "slot",
        "task",
        "token",
    )

    def __init__(self, desk: Desk, token: int, slot: int, binding: Binding, body: bytes, facts: Facts) -> None:
        self._desk = desk
        self._body = body
        self._facts = facts
        self._message: Any = None
        self._reason = ""
        # what follows is the host's own book-keeping, of no use to handlers
        self.token = token
        self.slot = slot
        self.binding = binding
        self.task: asyncio.Task[None] | None = None
        #: Its first step was made.
        self.began = False
        #: The handler itself was called (a middleware may not do that).
        self.entered = False
        #: The handler has returned; the callback may still fire.
        self.returned = False
        #: The callback can no longer fire.
        self.dropped = False
        #: A thread works for it while its task waits.
        self.in_thread = False

    def __repr__(self) -> str:
        return f"<Job {self.queue} {self.id} attempt {self.attempt}>"

    @property
    def id(self) -> str:
        """The message's id, the same in every attempt."""
        return self._facts[0]

    @property
    def queue(self) -> str:
        return self.binding.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is; 1 is the first. Interruptions, crashes and ``RetryLater`` do not count."""
        return self._facts[1]

    @property
    def starts(self) -> int:
        """How often a handler was called for this message, this call included."""
        return self._facts[2]

    @property
    def crashes(self) -> int:
        """How often the process died while it ran this message."""
        return self._facts[3]

    @property
    def sent_at(self) -> float:
        """Unix time in seconds at which it was sent; 0 when a foreign sender did not say."""
        return self._facts[4]

    @property
    def content_type(self) -> str:
        return self._facts[5]

    @property
    def priority(self) -> int:
        """0 to 9, 9 first."""
        return self._facts[6]

    @property
    def key(self) -> str | None:
        """The ordering key it was sent with."""
        return self._facts[7]

    @property
    def headers(self) -> Mapping[str, Any]:
        """The sender's headers; empty when there are none."""
        return self._facts[8] or {}

    @property
    def body(self) -> bytes:
        """The message's bytes as they came."""
        return self._body

    @property
    def message(self) -> Any:
        """What the handler was called with; None until the body is decoded."""
        return self._message

    @property
    def deadline(self) -> float | None:
        """``time.monotonic()`` at which the timeout strikes; None without a timeout."""
        return self._facts[9]

    @property
    def remaining(self) -> float | None:
        """Seconds until the timeout strikes, 0 when it has; None without a timeout."""
        return None if self._facts[9] is None else max(0.0, self._facts[9] - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the job was given up: timed out, cancelled, or interrupted. A thread should look and return."""
        return bool(self._reason)

    @property
    def cancel_reason(self) -> str:
        """Why: ``timeout``, ``cancelled`` or ``drain`` (the worker stops); empty while it is not."""
        return self._reason

    def progress(self, share: float) -> None:
        """Tell how much of the work is done, from 0 to 1. Cheap; raises ``ValueError`` outside that range."""
        value = float(share)
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"progress is a share from 0 to 1, not {share!r}; for a percentage divide by 100")
        self._desk.send([int(ToDispatcher.PROGRESS), self.token, value])

    def log(self, text: str, level: Level = "info") -> None:
        """Write a line that belongs to this job into the worker's log. *level*: debug, info, warning or error."""
        if level not in _LEVELS:
            raise ValueError(f"unknown level {level!r}; use debug, info, warning or error")
        safe = str(text).encode("utf-8", "backslashreplace").decode()
        self._desk.send([int(ToDispatcher.LOG), self.token, safe, level])


#: The job whose handler runs in this task, or in this thread; None outside a handler.
current_job: ContextVar[Job | None] = ContextVar("handrail_job", default=None)

#: What ``_lifespan.py`` yielded, for all handlers of this process.
state: dict[str, Any] = {}
