"""The one thread on which senders' callbacks run, so that they can hold up or harm nothing else. It sends nothing.

It also says, folded, which failed sends nobody looked at.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from handrail.errors import HandrailError
from handrail.logger import get_logger

log = get_logger("handrail")

#: Gets None when the broker has the message, else the error.
Callback: TypeAlias = Callable[[HandrailError | None], object]

#: Seconds for which failures that nobody looked at gather before one line tells of them all.
_FOLD = 0.5

_Unseen = tuple[str, str]


class _Runner:
    """The thread and what waits for it."""

    def __init__(self) -> None:
        # the only queue whose put may be called from a finaliser
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._unseen: dict[_Unseen, int] = {}
        self._since = 0.0
        self.thread = threading.Thread(target=self._run, name="handrail-callbacks", daemon=True)
        self.thread.start()

    def call(self, callback: Callback, error: HandrailError | None) -> None:
        self._jobs.put(lambda: _guarded(callback, error))

    def note(self, where: str, error: str, count: int) -> None:
        self._jobs.put(lambda: self._count((where, error), count))

    def drain(self, timeout: float) -> bool:
        """Wait until everything put so far has run; whether it has."""
        if threading.current_thread() is self.thread:
            return False
        reached = threading.Event()

        def mark() -> None:
            self._tell()
            reached.set()

        self._jobs.put(mark)
        return reached.wait(timeout)

    def _run(self) -> None:
        while True:
            wait = max(0.0, self._since + _FOLD - time.monotonic()) if self._unseen else None
            try:
                job = self._jobs.get(timeout=wait)
            except queue.Empty:
                self._tell()
                continue
            job()

    def _count(self, what: _Unseen, count: int) -> None:
        if not self._unseen:
            self._since = time.monotonic()
        self._unseen[what] = self._unseen.get(what, 0) + count
        if time.monotonic() - self._since > _FOLD:
            self._tell()

    def _tell(self) -> None:
        unseen, self._unseen = self._unseen, {}
        for (where, error), count in unseen.items():
            messages = "a message was" if count == 1 else f"{count:,} messages were"
            event = f"{messages} not sent, and nobody looked at the receipt or gave a callback"
            log.error(event, queue=where, error=error)


def _guarded(callback: Callback, error: HandrailError | None) -> None:
    try:
        callback(error)
    except BaseException as raised:
        name = getattr(callback, "__qualname__", repr(callback))
        event = f"the callback of a send raised: {name}"
        log.error(event, exc_info=raised)


_runner: _Runner | None = None
_lock = threading.Lock()


def runner() -> _Runner:
    """The thread, started when it is first needed."""
    global _runner
    found = _runner
    if found is None:
        with _lock:
            found = _runner
            if found is None:
                found = _runner = _Runner()
    return found


def running() -> _Runner | None:
    """The thread if there is one."""
    return _runner


def after_fork() -> None:
    """In a forked child: the thread and what waited for it are the parent's."""
    global _runner, _lock
    _runner = None
    _lock = threading.Lock()
