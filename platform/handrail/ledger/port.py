"""The ledger's port: what workers remember and agree on beside the broker. It never delivers and never orders messages."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

from handrail.outcome import Outcome

DAY = 86_400.0
#: Seconds for which a finished job is remembered: its outcome, its result, and that its id is taken.
FINISHED_KEPT = 7 * DAY
#: Seconds for which an id stays held by a job that is neither finished nor delivered again, such as a purged one.
HELD_KEPT = 30 * DAY
#: Seconds for which a cancellation waits for its job to turn up. After that it is forgotten, so that none stands for ever.
CANCELLATION_KEPT = DAY


class Record(msgspec.Struct, frozen=True):
    """What the ledger knows of one job. A job without a chosen id, a result or an end that was kept has no record."""

    queue: str
    id: str
    #: The last outcome; None: it is held by a delivery that has none yet.
    outcome: Outcome | None
    #: Whether that outcome is the end: completed, dead, expired or cancelled.
    final: bool
    #: The handler's result as JSON, None when there is none.
    result: bytes | None
    #: One line, empty when nothing went wrong.
    error: str
    #: Unix time of the outcome in seconds, 0 when there is none.
    at: float
    #: Attempts so far, 0 when nobody said.
    attempts: int


class Cancelling(enum.StrEnum):
    """What asking for a cancellation led to."""

    NOTED = "noted"  #: the job is held and unfinished: workers see it within a second or two
    UNKNOWN = "unknown"  #: the ledger never saw this id: noted for a day in case it still waits in its queue
    FINISHED = "finished"  #: too late, nothing was noted


class Ledger(Protocol):
    """What happened, and what several workers must agree on. All methods are called on the loop it was opened on."""

    @property
    def place(self) -> str:
        """Where it lies, for people; no password in it."""

    async def open(self) -> None:
        """Raises :class:`BrokerError` or :class:`SchemaError`, one line each, for what waiting does not mend."""

    async def close(self) -> None:
        """Write what :meth:`finish` was given, then let go. Takes at most a few seconds; safe to call twice."""

    async def claim(self, jobs: Sequence[tuple[str, str, str]]) -> set[int]:
        """Indexes of the *jobs* (queue, id, send) that are duplicates and must not run; the others now hold their ids.

        The first act of sending holds an id until its record is forgotten. The same ``send`` again is the same message
        (retried, redelivered, replayed) and no duplicate. Another ``send`` is one, whether the first is finished or not.
        An empty ``send`` (a foreign sender) is a duplicate when the id is finished, except for its own dead letter,
        which may be replayed.

        Never raises and takes at most some seconds: while the ledger is out of order nothing is known to be a
        duplicate, for handling goes on without a ledger; that is logged once.
        """

    def finish(
        self,
        queue: str,
        id: str,  # noqa: A002 - the word everywhere
        outcome: Outcome,
        *,
        result: bytes | None = None,
        error: str = "",
        at: float,
        attempts: int = 0,
    ) -> None:
        """Remember *outcome*; returns at once, is written within some tens of milliseconds, never raises.

        A final outcome also takes the job's cancellation away. ``DUPLICATE`` and ``REFUSED`` are not outcomes of the
        job that holds the id and leave no trace. A SIGKILL loses what was not written yet.
        """

    async def get(self, queue: str, id: str) -> Record | None:  # noqa: A002
        """The record of a job, None when there is none. Raises :class:`BrokerError`."""

    async def forget(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Free these ids, or all of the queue's, for new messages (after a purge); how many. Raises :class:`BrokerError`."""

    async def cancel(self, queue: str, id: str) -> Cancelling:  # noqa: A002
        """Ask all workers to stop this job or not to start it. Raises :class:`BrokerError`.

        What is noted for an id that never turns up is forgotten after :data:`CANCELLATION_KEPT`.
        """

    async def uncancel(self, queue: str, id: str) -> None:  # noqa: A002
        """Take a cancellation back, or away once it was carried out. Raises :class:`BrokerError`."""

    async def cancelled(self) -> set[tuple[str, str]]:
        """All standing cancellations as (queue, id). Reads only what changed since the last call; do not change the set.

        Never raises: while the ledger is out of order it is what was known before.
        """
