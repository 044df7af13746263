"""Daemon threads for plain handlers: as many as needed, idle ones used again. Nothing waits for them at exit.

The standard library's pool joins its threads when the interpreter ends, so that one stuck handler would keep a host
alive; and it has a fixed size, where concurrency is counted by the dispatcher already.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

#: Seconds after which an idle thread ends.
IDLE = 60.0

_Work = tuple[Context, Callable[..., None], tuple[Any, ...]]


class Threads:
    """The pool. ``run`` is for one thread (the loop's); the work must not raise."""

    def __init__(self) -> None:
        self._idle: list[_Thread] = []
        self._numbers = itertools.count(1)

    def run(self, context: Context, work: Callable[..., None], *args: Any) -> None:
        """Have *work* called with *args* inside *context*, at once, in a thread."""
        try:
            thread = self._idle.pop()
        except IndexError:
            thread = _Thread(self._idle, f"handrail-{next(self._numbers)}")
            thread.start()
        thread.inbox.put((context, work, args))


class _Thread(threading.Thread):
    def __init__(self, idle: list[_Thread], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._idle_list = idle

    def run(self) -> None:
        while True:
            try:
                context, work, args = self.inbox.get(timeout=IDLE)
            except queue.Empty:
                try:
                    self._idle_list.remove(self)
                except ValueError:
                    continue  # just now taken out of the list: work is on its way
                return
            context.run(work, *args)
            del context, work, args  # an idle thread must keep no callback alive
            self._idle_list.append(self)
