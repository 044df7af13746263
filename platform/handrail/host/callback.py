"""The callback a handler is given. It only tells the host that it fired, or that it can no longer fire."""

from __future__ import annotations

from typing import Any, Protocol

from handrail.host.job import Job


class Listener(Protocol):
    """Who wants to know; on whatever thread it happens."""

    open: dict[int, Job]

    def fired(self, job: Job, error: Any, result: Any) -> None: ...

    def dropped(self, job: Job) -> None: ...


class Callback:
    """``callback()``, ``callback(None, result)`` or ``callback(error)``: the job's outcome. The first call counts.

    It may be called from anywhere: at once, later, in another thread or task. *error* is an exception or a text;
    ``Reject`` and ``RetryLater`` are understood. It never raises.
    """

    __slots__ = ("__weakref__", "_job", "_listener")

    def __init__(self, listener: Listener, job: Job) -> None:
        self._listener = listener
        self._job = job

    def __call__(self, error: Any = None, result: Any = None) -> None:
        self._listener.fired(self._job, error, result)

    def __repr__(self) -> str:
        return f"<callback of {self._job.queue} {self._job.id}>"

    def __del__(self) -> None:
        # on any thread, in the middle of anything: the listener may only take note
        if self._job.token in self._listener.open:
            self._listener.dropped(self._job)
