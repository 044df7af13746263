"""The settings as the rest of handrail uses them: frozen, complete, every default filled in. No parsing, no checks.

Durations are seconds. They cross the pipe to the hosts as they are, so every type here is one msgspec can encode.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from handrail.adapter import BrokerSettings, Order, QueueSpec
from handrail.outcome import Backoff

DEFAULT_BROKER_URL = "sqlite:.platform/queues.db"
DEFAULT_BACKOFF = Backoff(type="exponential", delay=1.0, factor=2.0, max=300.0, jitter=0.2)


class HandlerRef(msgspec.Struct, frozen=True):
    """Which function serves a queue."""

    #: As the user wrote it: ``mail.send_welcome``.
    text: str
    #: The file, relative to ``handlers/``: ``mail.py``.
    file: str
    function: str

    def __str__(self) -> str:
        return f"handlers/{self.file}:{self.function}"


class ErrorRule(msgspec.Struct, frozen=True):
    """``errors:`` of a queue: what to do when a handler fails with this class of exception."""

    #: Import path of the exception's class: ``httpx.ConnectError``, ``ValueError``.
    when: str
    then: Literal["retry", "reject"] = "retry"
    backoff: Backoff | None = None


class QueueSettings(msgspec.Struct, frozen=True):
    """One queue of queues.yaml with the defaults filled in."""

    name: str
    #: None: no handler is bound, the queue is only sent to.
    handler: HandlerRef | None
    broker: str = "default"
    #: Handlers of this queue that run at once in one worker; None: by the handler's kind (see `CONCURRENCY`).
    concurrency: int | None = None
    #: Runs in all, the first included.
    attempts: int = 3
    backoff: Backoff = DEFAULT_BACKOFF
    #: Seconds from the handler's start within which the callback must fire; None: no limit.
    timeout: float | None = 900.0
    #: Seconds from when a message becomes due within which its first run must start; None: no limit.
    expires: float | None = None
    max_starts: int | None = None
    max_crashes: int = 3
    priority: int = 4
    order: Order = "fifo"
    isolation: Literal["none", "process"] = "none"
    #: The place for dead letters, None to drop them (``dead_letter: false``).
    dead_letter: str | None = None
    #: How a body becomes the handler's message: ``json`` decodes it, ``text`` decodes UTF-8, ``bytes`` passes it on.
    content: Literal["json", "text", "bytes"] = "json"
    errors: tuple[ErrorRule, ...] = ()
    #: Handler references of functions that wrap each call, outermost first.
    middleware: tuple[HandlerRef, ...] = ()
    #: Keys that only this queue's broker knows.
    options: dict[str, Any] = {}

    @property
    def spec(self) -> QueueSpec:
        return QueueSpec(name=self.name, order=self.order, dead_letter=self.dead_letter, options=self.options)


#: Handlers that run at once in one worker where the queue does not say: by the handler's kind.
#: ``process`` is the number of CPUs instead.
CONCURRENCY = {"async": 100, "thread": 10}


class Settings(msgspec.Struct, frozen=True):
    """A whole queues.yaml."""

    #: Absolute path of the file.
    path: str
    #: Absolute path of the project: the folder of queues.yaml. It is importable from handlers.
    root: str
    brokers: dict[str, BrokerSettings]
    queues: dict[str, QueueSettings]
    prefix: str = ""
    #: Seconds that running handlers get when the worker stops.
    drain_timeout: float = 30.0
    #: Seconds after which a send that the broker did not confirm fails.
    send_timeout: float = 10.0
    #: Messages that may wait for the broker's confirmation in one process.
    send_buffer: int = 100_000
    max_message_bytes: int = 1_000_000
    #: Where the ledger lies: ``sqlite:PATH`` or None for ``off``.
    ledger: str | None = "sqlite:.platform/ledger.db"

    @property
    def handlers(self) -> str:
        """Absolute path of ``handlers/``."""
        return f"{self.root}/handlers"

    @property
    def data(self) -> str:
        """Absolute path of ``.platform/``, where everything that handrail itself writes lies."""
        return f"{self.root}/.platform"
