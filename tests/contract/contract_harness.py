"""What contract tests hold in their hands: a project with real workers, and the bare port. It asserts nothing itself.

A project's handlers are written by the test as source text and run in real hosts. They tell what they did through
``notes`` (a module in the project's root): ``note(...)`` writes a line that the test can wait for, ``gate(name)`` waits
until the test opens that gate. So tests wait for conditions and never for time to pass.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
import yaml

from handrail import config, context, transport
from handrail.adapter import Adapter, BrokerSettings, Delivery, Depth, QueueSpec, Settlement, State, Subscription, load
from handrail.board import Board
from handrail.config.model import Settings
from handrail.dispatcher.verdict import Verdict
from handrail.errors import SendError
from handrail.logs import Journal
from handrail.message import Message, new_id
from handrail.outcome import Outcome
from handrail.worker import ReloadReport, Worker

T = TypeVar("T")

#: Seconds for anything that is bound to happen; never waited for in a test that passes.
GENEROUS = 30.0

NOTES = '''
"""How the handlers of a contract test tell what they did, and wait until they may go on."""

import asyncio
import json
import os
import time
from pathlib import Path

ROOT = Path(__file__).parent


def note(tag, *facts):
    line = json.dumps([tag, time.time(), os.getpid(), *facts]) + "\\n"
    descriptor = os.open(ROOT / "notes.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def count(tag):
    """How many notes of that tag there are."""
    with open(ROOT / "notes.jsonl") as notes:
        return sum(json.loads(line)[0] == tag for line in notes)


def is_open(name):
    return (ROOT / "gates" / name).exists()


def gate(name):
    while not is_open(name):
        time.sleep(0.01)


async def agate(name):
    while not is_open(name):
        await asyncio.sleep(0.01)
'''


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """One line that a handler wrote."""

    tag: str
    #: Unix time in seconds.
    at: float
    pid: int
    facts: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """One settled outcome, as the worker told it."""

    #: As it was delivered.
    message: Message
    verdict: Verdict
    #: The result as the handler gave it, None when there is none.
    result: Any
    at: float

    @property
    def outcome(self) -> Outcome:
        return self.verdict.outcome

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def payload(self) -> Any:
        return msgspec.json.decode(self.message.body)


class _Journal(Journal):
    """The worker's journal, which also keeps what it wrote: some outcomes are logged and nothing else."""

    def __init__(self, kept: list[tuple[Outcome, str, str]]) -> None:
        super().__init__("off")
        self._kept = kept

    def job(self, outcome: Outcome, queue: str, id: str, *args: Any, **kwargs: Any) -> None:  # noqa: A002
        self._kept.append((outcome, id, kwargs.get("reason", "")))


class _Direct:
    """A transport that publishes through the project's own client adapter."""

    def __init__(self, project: Project) -> None:
        self._project = project

    @property
    def settings(self) -> Settings:
        return self._project.settings

    def submit(self, messages: list[Message], done: Callable[[dict[int, SendError]], None]) -> None:
        self._project.spawn(self._publish(messages, done))

    async def _publish(self, messages: list[Message], done: Callable[[dict[int, SendError]], None]) -> None:
        adapter = await self._project.client()
        done(await adapter.publish(messages, GENEROUS))

    def flush(self, timeout: float) -> bool:
        return True


class Running:
    """A worker that runs on the project's loop."""

    def __init__(self, project: Project, worker: Worker) -> None:
        self._project = project
        self.worker = worker
        self.stopped = False

    def stop(self, drain: float | None = 10.0) -> int:
        self.stopped = True
        return self._project.run(self.worker.stop(drain), timeout=GENEROUS + (drain or 30.0))

    def reload(self) -> ReloadReport:
        """Read queues.yaml and the handlers again."""
        return self._project.run(self.worker.reload(self._project.load()), timeout=100)

    def pause(self) -> None:
        self._project.call(self.worker.pause)

    def resume(self) -> None:
        self._project.call(self.worker.resume)

    def host_pids(self) -> list[int]:
        return self._project.call(lambda: [host.pid for host in self.worker.dispatcher.fleet])


class Project:
    """A folder with queues.yaml and handlers/, and the workers that serve it."""

    def __init__(self, broker: BrokerSettings) -> None:
        self.root = Path(broker.root)
        self._broker = broker
        self.handlers = self.root / "handlers"
        self.handlers.mkdir()
        (self.root / "gates").mkdir()
        (self.root / "notes.py").write_text(NOTES)
        self._settings: Settings | None = None
        self._running: list[Running] = []
        self._client: Adapter | None = None
        self._opening: asyncio.Lock | None = None
        self._keep: set[asyncio.Task[Any]] = set()
        self.seen: list[Seen] = []
        #: What the journal wrote: outcome, id, reason.
        self.journal: list[tuple[Outcome, str, str]] = []
        #: What the worker logged besides: event and fields.
        self.logs: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="contract-worker", daemon=True)
        self._thread.start()
        self._log = structlog.testing.LogCapture()
        structlog.configure(processors=[self._capture])
        transport.install(_Direct(self))

    # -- writing -------------------------------------------------------------------------------------------------------

    def handler(self, source: str, name: str = "work") -> None:
        """Write handlers/*name*.py. The names of ``notes`` are imported for it."""
        path = self.handlers / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from notes import agate, count, gate, is_open, note\n" + textwrap.dedent(source))

    def queues(self, queues: dict[str, Any] | None = None, /, **settings: Any) -> None:
        """Write queues.yaml: *queues* by name, *settings* beside them. Without any: ``work`` bound to handlers/work.py."""
        content = {
            "brokers": {"default": {"url": self._broker.url, **self._broker.options}},
            "prefix": self._broker.prefix,
            "send_timeout": f"{GENEROUS:g}s",
            **settings,
            "queues": queues if queues is not None else {"work": "work"},
        }
        (self.root / "queues.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self._settings = None

    def load(self) -> Settings:
        """queues.yaml as it is now."""
        self._settings = config.load(self.root / "queues.yaml")
        return self._settings

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            return self.load()
        return self._settings

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self, *, queues: list[str] | None = None, processes: int = 1) -> Running:
        """A worker of this project, serving when this returns."""
        if not (self.root / "queues.yaml").exists():
            self.queues()
        # opened first and closed last, for a broker in memory lives as long as somebody has it open
        self.run(self.client())
        worker = Worker(
            self.load(),
            queues=queues,
            processes=processes,
            on_outcome=self._on_outcome,
            journal=_Journal(self.journal),
        )
        self.run(worker.start(), timeout=100)
        running = Running(self, worker)
        self._running.append(running)
        return running

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = GENEROUS) -> T:
        """Run *coroutine* on the project's loop and wait for it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        async def called() -> T:
            return function()

        return self.run(called())

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        def start() -> None:
            task = self._loop.create_task(coroutine)
            self._keep.add(task)
            task.add_done_callback(self._keep.discard)

        self._loop.call_soon_threadsafe(start)

    async def client(self) -> Adapter:
        """An adapter of the project's broker that is no worker's."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._client is None:
                client = load(self.settings.brokers["default"])
                await client.open("client")
                await connected(client)
                await client.declare([queue.spec for queue in self.settings.queues.values()])
                self._client = client
        return self._client

    def end(self) -> None:
        """Open every gate, stop every worker, leave nothing."""
        transport.install(None)
        structlog.reset_defaults()
        self.open("*")
        try:
            for running in self._running:
                if not running.stopped:
                    running.stop(drain=0.0)
            if self._client is not None:
                self.run(self._client.close())
            self.run(self._left_over())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(GENEROUS)
            self._loop.close()

    @staticmethod
    async def _left_over() -> None:
        """A worker that was stopped leaves nothing on its loop."""
        assert asyncio.all_tasks() == {asyncio.current_task()}

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, queue: str, message: Any, **options: Any) -> str:
        """Send and wait until the broker has it; the message's id."""
        receipt = context.queues.send_to_queue(queue, message, **options)
        receipt.wait(GENEROUS)
        return str(receipt.id)

    def send_bulk(self, queue: str, messages: Sequence[Any], **options: Any) -> None:
        context.queues.send_bulk(queue, messages, **options).wait(GENEROUS)

    def publish(self, *messages: Message) -> None:
        """Put *messages* into the broker as they are, as a foreign client would."""

        async def publish() -> None:
            adapter = await self.client()
            assert await adapter.publish(messages, GENEROUS) == {}

        self.run(publish())

    # -- looking -------------------------------------------------------------------------------------------------------

    def depth(self, queue: str = "work") -> Depth:
        async def depth() -> Depth:
            return await (await self.client()).depth(queue)

        return self.run(depth())

    def peek(self, queue: str = "work", state: State = "ready", limit: int = 100) -> list[Message]:
        async def peek() -> list[Message]:
            return await (await self.client()).peek(queue, state, limit)

        return self.run(peek())

    def replay(self, queue: str = "work", ids: Sequence[str] | None = None) -> int:
        async def replay() -> int:
            return await (await self.client()).replay(queue, ids)

        return self.run(replay())

    def purge(self, queue: str, state: State, ids: Sequence[str] | None = None) -> int:
        async def purge() -> int:
            return await (await self.client()).purge(queue, state, ids)

        return self.run(purge())

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(
        self,
        outcome: Outcome | None = None,
        *,
        count: int = 1,
        queue: str | None = None,
        id: str | None = None,  # noqa: A002
    ) -> list[Seen]:
        """The first *count* outcomes, or more, of that kind, queue and id, once there are so many."""

        def chosen() -> list[Seen]:
            return [
                one
                for one in list(self.seen)
                if (outcome is None or one.outcome is outcome)
                and (queue is None or one.message.queue == queue)
                and (id is None or one.id == id)
            ]

        self.until(lambda: len(chosen()) >= count, f"{count} × {outcome or 'any outcome'} of {queue or 'any queue'}")
        return chosen()

    def one(self, outcome: Outcome | None = None, **which: Any) -> Seen:
        """The first such outcome."""
        return self.wait(outcome, **which)[0]

    def notes(self, tag: str | None = None) -> list[Note]:
        path = self.root / "notes.jsonl"
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return [Note(line[0], line[1], line[2], tuple(line[3:])) for line in lines if tag is None or line[0] == tag]

    def noted(self, tag: str, count: int = 1) -> list[Note]:
        """The notes of that tag, once there are *count*."""
        self.until(lambda: len(self.notes(tag)) >= count, f"{count} × note {tag!r}")
        return self.notes(tag)

    def logged(self, *words: str) -> dict[str, Any]:
        """The first log entry that holds all *words*, once there is one."""

        def found() -> dict[str, Any] | None:
            return next((entry for entry in list(self.logs) if all(word in str(entry) for word in words)), None)

        self.until(lambda: found() is not None, f"a log entry with {words}")
        entry = found()
        assert entry is not None
        return entry

    def until(self, condition: Callable[[], bool], what: str, timeout: float = GENEROUS) -> None:
        """Wait until *condition* holds; it is looked at after each outcome, and every 10 ms."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s in vain for {what}")
            with self._changed:
                self._changed.wait(0.01)

    def open(self, gate: str) -> None:
        """Let handlers pass this gate; ``*`` opens all that are waited for at the end."""
        if gate == "*":
            for path in self.handlers.rglob("*.py"):
                for word in path.read_text().split('gate("')[1:]:
                    (self.root / "gates" / word.partition('"')[0]).touch()
        else:
            (self.root / "gates" / gate).touch()

    def story(self) -> str:
        """What happened, for the report of a test that failed."""
        outcomes = [
            f"{one.at:.3f} {one.outcome} {one.message.queue} {one.id} {one.verdict.reason}" for one in self.seen
        ]
        notes = [f"{one.at:.3f} {one.tag} {one.pid} {one.facts}" for one in self.notes()]
        logs = [str(entry) for entry in self.logs]
        return "\n".join(["outcomes:", *outcomes, "notes:", *notes, "log:", *logs])

    # -- what the worker tells -----------------------------------------------------------------------------------------

    def _on_outcome(self, message: Message, verdict: Verdict, result: bytes | None, seconds: float) -> None:
        value = None if result is None else msgspec.json.decode(result)
        with self._changed:
            self.seen.append(Seen(msgspec.structs.replace(message), verdict, value, time.time()))
            self._changed.notify_all()

    def _capture(self, _logger: Any, method: str, event: Any) -> Any:
        self.logs.append({"level": method, **event})
        raise structlog.DropEvent


class Port:
    """Adapters of one broker, to be opened by a test of the port on its own loop."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.queue = QueueSpec(name="work", dead_letter="work.dead")

    @contextlib.asynccontextmanager
    async def worker(self, *queues: QueueSpec, board: Board | None = None) -> AsyncIterator[Adapter]:
        """An adapter that may subscribe."""
        adapter = load(self.settings)
        adapter.board = board.path if board is not None else None
        await adapter.open("worker")
        try:
            await connected(adapter)
            await adapter.declare(queues or [self.queue])
            yield adapter
        finally:
            await adapter.close()

    @contextlib.asynccontextmanager
    async def client(self, *queues: QueueSpec) -> AsyncIterator[Adapter]:
        """An adapter that publishes and inspects."""
        adapter = load(self.settings)
        await adapter.open("client")
        try:
            await connected(adapter)
            await adapter.declare(queues or [self.queue])
            yield adapter
        finally:
            await adapter.close()

    async def consume(self, adapter: Adapter, queue: QueueSpec | None = None, credit: int = 100) -> Inbox:
        """Subscribe, and gather what comes."""
        inbox = Inbox(adapter)
        inbox.subscription = await adapter.subscribe(queue or self.queue, credit, inbox.deliver, inbox.lost.extend)
        return inbox


class Inbox:
    """What one subscription delivered, in order."""

    subscription: Subscription

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.deliveries: list[Delivery] = []
        self.lost: list[Delivery] = []
        self._came = asyncio.Event()

    def deliver(self, batch: list[Delivery]) -> None:
        self.deliveries += batch
        self._came.set()

    async def take(self, count: int) -> list[Delivery]:
        """The next *count* deliveries, taken out of the inbox."""
        async with asyncio.timeout(GENEROUS):
            while len(self.deliveries) < count:
                self._came.clear()
                await self._came.wait()
        taken, self.deliveries = self.deliveries[:count], self.deliveries[count:]
        return taken

    async def settle(self, *settlements: Settlement) -> list[Settlement]:
        return await self._adapter.settle(settlements)


def message(body: Any = None, queue: str = "work", **fields: Any) -> Message:
    """A message as a sender makes it; *body* is its payload."""
    given = {"id": new_id(), "sent_at": time.time(), **fields}
    return Message(queue=queue, body=msgspec.json.encode(body), **given)


async def eventually(condition: Callable[[], Coroutine[Any, Any, bool]], what: str) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + GENEROUS
    while not await condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {GENEROUS:g} s in vain for {what}")
        await asyncio.sleep(0.01)


async def connected(adapter: Adapter) -> None:
    """Wait until *adapter* has its server: it is open sooner, and goes on trying."""

    async def up() -> bool:
        return adapter.health().up

    await eventually(up, "the adapter to be connected")
