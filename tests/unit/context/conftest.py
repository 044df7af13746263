"""An in-memory broker that can be held, broken and slowed, for what no real one does on demand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import structlog

from handrail import adapter as port
from handrail import context, transport
from handrail.adapter import BrokerSettings, Health, QueueSpec
from handrail.config.model import QueueSettings, Settings
from handrail.errors import SendError
from handrail.message import Message


class Broker:
    """What the adapters of one test share: the messages that were stored, and what shall go wrong."""

    def __init__(self) -> None:
        self.stored: list[Message] = []
        self.batches: list[int] = []
        self.opened = 0
        self.closed = 0
        self.declared: list[str] = []
        self.timeouts: list[float] = []
        self.threads: set[str] = set()
        #: While clear, publish waits for it, for as long as its timeout allows.
        self.flowing = threading.Event()
        self.flowing.set()
        #: Queues that confirm nothing.
        self.stuck: set[str] = set()
        self.entered = threading.Event()
        #: Called before each open, to raise.
        self.on_open: Callable[[], None] = lambda: None
        #: Says, for each message, why it is refused.
        self.refuse: Callable[[Message], SendError | None] = lambda _message: None
        self.detail = "memory alarm: the broker blocks publishers"
        self.obedient = True

    def adapter(self, settings: BrokerSettings) -> Adapter:
        return Adapter(self, settings)

    def messages(self, queue: str | None = None) -> list[Message]:
        return [message for message in self.stored if queue in {None, message.queue}]


class Adapter:
    name = "memory"
    capabilities: ClassVar[dict[port.Capability, bool | str]] = {}

    def __init__(self, broker: Broker, settings: BrokerSettings) -> None:
        self.broker = broker
        self.settings = settings

    async def open(self, role: port.Role) -> None:
        assert role == "client"
        self.broker.opened += 1
        self.broker.on_open()

    async def close(self) -> None:
        self.broker.closed += 1

    async def declare(self, queues: list[QueueSpec]) -> None:
        self.broker.declared += [queue.name for queue in queues]

    async def publish(self, messages: list[Message], timeout: float) -> dict[int, SendError]:
        broker = self.broker
        broker.threads.add(threading.current_thread().name)
        broker.timeouts.append(timeout)
        broker.entered.set()
        end = time.monotonic() + timeout
        while not broker.flowing.is_set() or any(message.queue in broker.stuck for message in messages):
            if broker.obedient and time.monotonic() > end:
                return {index: SendError("not confirmed in time") for index in range(len(messages))}
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)
        failures = {}
        for index, message in enumerate(messages):
            if (error := broker.refuse(message)) is not None:
                failures[index] = error
            else:
                broker.stored.append(message)
        broker.batches.append(len(messages))
        return failures

    def health(self) -> Health:
        return Health(self.broker.flowing.is_set(), self.broker.detail)


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """As in an application that has not set structlog up, whatever tests ran before."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


@pytest.fixture
def settings() -> Settings:
    return Settings(
        path="/project/queues.yaml",
        root="/project",
        brokers={"default": BrokerSettings("default", "memory://user:secret@here/", "/project")},
        queues={
            "email": QueueSettings("email", None),
            "Reports": QueueSettings("Reports", None, priority=7),
        },
        send_timeout=60.0,
        send_buffer=1000,
        max_message_bytes=10_000,
    )


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Broker]:
    """A project on the in-memory broker."""
    made = Broker()
    monkeypatch.setattr(port, "load", made.adapter)
    transport.install(None)
    context.configure(settings=settings)
    yield made
    made.flowing.set()
    context.configure()


@pytest.fixture
def use(settings: Settings) -> Callable[..., None]:
    """Send by the same project with some settings changed."""
    import msgspec

    def change(**changes: object) -> None:
        context.configure(settings=msgspec.structs.replace(settings, **changes))

    return change
