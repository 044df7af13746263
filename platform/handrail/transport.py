"""The slot through which ``context`` finds how to send. It holds one transport per process and sends nothing itself.

A host installs a transport that crosses its pipe; tests install one of their own. Where none is installed, ``context``
opens a publisher of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from handrail.config.model import Settings
from handrail.errors import SendError
from handrail.message import Message

#: Told once, on any thread, what became of one ``submit``: the failures by index; empty means all are durable.
Done = Callable[[dict[int, SendError]], None]


class Transport(Protocol):
    """A way to hand messages to the broker. Thread-safe; order is kept per queue in the order of the calls."""

    @property
    def settings(self) -> Settings:
        """The project's settings, by which messages are checked before they get here."""

    def submit(self, messages: list[Message], done: Done) -> None:
        """Take *messages*, all or none, and return at once. *done* is called exactly once, when their fate is known.

        Raises :class:`BufferFullError` when there is no room, and then never calls *done*. *done* may run on a thread
        that serves every send of this process: it must be quick and must not raise.
        """

    def flush(self, timeout: float) -> bool:
        """Wait until everything submitted so far has met its fate, at most *timeout* seconds; whether it has."""


_current: Transport | None = None


def install(transport: Transport | None) -> None:
    """Make *transport* the way this process sends; None takes it away again."""
    global _current
    _current = transport


def current() -> Transport | None:
    """The installed transport, or None outside a host."""
    return _current


# a forked child must not write into its parent's pipe: it opens a publisher of its own
os.register_at_fork(after_in_child=lambda: install(None))
