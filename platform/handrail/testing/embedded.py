"""A project that lives in the test's own process: real worker, real host code, queues in memory. It judges nothing.

The worker runs on an event loop of its own, on a thread of its own, so that tests may be plain or async; it stands still
except within ``run_until_idle``, so that what a test sends waits until the test wants it handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from handrail import codec, config, context, transport
from handrail.adapter import Adapter, load
from handrail.codec import DecodeError
from handrail.config.model import QueueSettings, Settings
from handrail.context.options import Duration, Header
from handrail.dispatcher.verdict import Verdict
from handrail.errors import BrokerError, HandrailError, SendError
from handrail.logs import Journal
from handrail.message import JSON, Message
from handrail.outcome import Backoff, Outcome
from handrail.transport import Done
from handrail.worker import Worker

T = TypeVar("T")

#: Seconds that opening and closing may take; handlers that load or end more slowly hang.
_PATIENCE = 60.0
#: Seconds between two looks at whether all is done.
_LOOK = 0.002

_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True, slots=True)
class Handled:
    """What became of one delivery of one message."""

    queue: str
    id: str
    #: The payload as it was sent, before any conversion to the handler's type.
    message: Any
    outcome: Outcome
    #: Which attempt it was, 1 for the first.
    attempt: int
    #: What the handler returned or gave to its callback, as it reads back from JSON; None when there is none.
    result: Any
    #: Why it failed or died, one line; empty when it did not.
    reason: str
    traceback: str
    #: Seconds after which it comes back, where it does.
    next_in: float | None
    headers: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class SentMessage:
    """One message that a handler, or the application under test, sent through ``context.queues``."""

    queue: str
    id: str
    #: The payload as a handler of that queue gets it.
    message: Any
    priority: int
    #: Seconds from its sending to when it is due; None when it is due at once.
    delay: float | None
    headers: Mapping[str, Any]
    key: str | None


class Outbox:
    """What was sent where. ``outbox["queue"]`` are the payloads sent to a queue; iterating gives all, in their order."""

    def __init__(self, sent: list[SentMessage]) -> None:
        self._sent = sent

    def __getitem__(self, queue: str) -> list[Any]:
        return [one.message for one in self._sent if one.queue == queue]

    def __iter__(self) -> Iterator[SentMessage]:
        return iter(self._sent)

    def __len__(self) -> int:
        return len(self._sent)

    def __repr__(self) -> str:
        return f"Outbox({self._sent!r})"


class _Transport:
    """How everything in this process sends while the project is open: into the project's memory, and remembered."""

    def __init__(self, project: Project) -> None:
        self._project = project

    @property
    def settings(self) -> Settings:
        return self._project.settings

    def submit(self, messages: list[Message], done: Done) -> None:
        self._project._submit(messages, done)

    def flush(self, timeout: float) -> bool:
        return self._project._flush(timeout)


class Project:
    """A project in this process. Made by :func:`handrail.testing.project`; one at a time."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.settings = _in_memory(_load(path))
        self._outcomes: list[Handled] = []
        self._sent: list[SentMessage] = []
        self._sending_itself = threading.local()
        self._in_flight = 0
        self._change = threading.Condition()
        self._adapters: dict[str, Adapter] = {}
        self._worker: Worker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._before = transport.current()
        self._transport = _Transport(self)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="handrail-testing", daemon=True)
        self._thread.start()
        try:
            # before the handlers load, for what they send while they load belongs here as well
            transport.install(self._transport)
            self._call(self._start(), _PATIENCE)
        except BaseException:
            self.close()
            raise

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(
        self,
        queue: str,
        message: Any,
        *,
        delay: Duration | None = None,
        at: datetime | float | None = None,
        priority: int | None = None,
        attempts: int | None = None,
        backoff: Mapping[str, Any] | list[Any] | Duration | Backoff | None = None,
        timeout: Duration | None = None,
        expires: Duration | None = None,
        id: str | None = None,  # noqa: A002 - the public name
        headers: Mapping[str, Header] | None = None,
        key: str | None = None,
    ) -> str:
        """Send *message* to *queue*, with the options of ``context.queues.send_to_queue``; returns its id.

        It waits there until :meth:`run_until_idle`. What is sent so is the test's own and not in :attr:`sent`.
        """
        self._sending_itself.now = True
        try:
            receipt = context.queues.send_to_queue(
                queue,
                message,
                delay=delay,
                at=at,
                priority=priority,
                attempts=attempts,
                backoff=backoff,
                timeout=timeout,
                expires=expires,
                id=id,
                headers=headers,
                key=key,
            )
        finally:
            self._sending_itself.now = False
        receipt.wait(_PATIENCE)
        return receipt.id

    # -- running -------------------------------------------------------------------------------------------------------

    def run_until_idle(self, timeout: float = 30.0, *, skip_delays: bool = True) -> None:
        """Handle messages until none is left, those included that handlers send meanwhile.

        Delays take no time: whenever nothing else is left, the message that is due next is due now, so retries with
        their backoff and messages sent with ``delay="24h"`` are handled too. With ``skip_delays=False`` what is not due
        stays where it is; see :attr:`waiting`.

        Raises ``TimeoutError``, which says what is left, after *timeout* seconds. It blocks this thread; handlers run
        on others. In a coroutine, :meth:`run_until_idle_async` does not block the loop.
        """
        self._call(self._run(timeout, skip_delays), timeout + _PATIENCE)

    async def run_until_idle_async(self, timeout: float = 30.0, *, skip_delays: bool = True) -> None:
        """As :meth:`run_until_idle`, without blocking the test's own event loop."""
        self._check_open()
        running = asyncio.run_coroutine_threadsafe(self._run(timeout, skip_delays), self._loop)
        await asyncio.wrap_future(running)

    # -- what happened -------------------------------------------------------------------------------------------------

    @property
    def outcomes(self) -> list[Handled]:
        """What became of each delivery, in the order of the ends; a message that was retried is in it several times."""
        return list(self._outcomes)

    @property
    def completed(self) -> list[Handled]:
        """What was handled well."""
        return self._of(Outcome.COMPLETED)

    @property
    def failed(self) -> list[Handled]:
        """Failed attempts after which another followed, or will."""
        return self._of(Outcome.FAILED)

    @property
    def dead(self) -> list[Handled]:
        """What was dead-lettered, each with its ``reason`` and ``traceback``."""
        return self._of(Outcome.DEAD)

    @property
    def results(self) -> list[Any]:
        """The results of :attr:`completed`, None where a handler gave none."""
        return [one.result for one in self.completed]

    @property
    def sent(self) -> Outbox:
        """What handlers, and the application under test, sent: ``project.sent["queue"]`` are the payloads."""
        return Outbox(list(self._sent))

    @property
    def waiting(self) -> list[SentMessage]:
        """Messages that are in a queue now: not handled yet, delayed, or of a queue that has no handler."""
        return self._call(self._waiting(), _PATIENCE)

    def story(self) -> str:
        """What became of each delivery, one line each, and the tracebacks; for people."""
        lines = []
        for one in self._outcomes:
            reason = f": {one.reason}" if one.reason else ""
            lines.append(f"{one.outcome:<11} {one.queue} {one.id} attempt {one.attempt}{reason}")
            lines.extend(f"    {line}" for line in one.traceback.splitlines())
        return "\n".join(lines)

    # -- life ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the lifespan, and this process as it was before. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._call(self._stop(), _PATIENCE, closing=True)
        finally:
            transport.install(self._before)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _start(self) -> None:
        for name, broker in self.settings.brokers.items():
            adapter = load(broker)
            await adapter.open("client")
            self._adapters[name] = adapter
            await adapter.declare([queue.spec for queue in self.settings.queues.values() if queue.broker == name])
        if any(queue.handler is not None for queue in self.settings.queues.values()):
            worker = Worker(self.settings, in_process=True, on_outcome=self._on_outcome, journal=Journal("off"))
            await worker.start()
            worker.pause()
            self._worker = worker
        self._install()

    async def _stop(self) -> None:
        if self._worker is not None:
            await self._worker.stop(0.0)
        for adapter in self._adapters.values():
            with contextlib.suppress(BrokerError):  # closing what holds nothing but a test's messages
                await adapter.close()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def _install(self) -> None:
        # hosts install a transport of their own as they start, and put back what was before when they end
        if transport.current() is not self._transport:
            transport.install(self._transport)

    def _check_open(self) -> None:
        if self._closed:
            raise HandrailError("this project is closed; use it within its `with` statement, or its fixture's test")

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float, *, closing: bool = False) -> T:
        if not closing:
            try:
                self._check_open()
            except HandrailError:
                coroutine.close()
                raise
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise HandrailError("a handler cannot run the project it runs in")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    # -- what happens --------------------------------------------------------------------------------------------------

    def _submit(self, messages: list[Message], done: Done) -> None:
        if not getattr(self._sending_itself, "now", False):
            self._sent.extend(self._as_sent(message) for message in messages)
        with self._change:
            self._in_flight += 1

        def start() -> None:
            task = self._loop.create_task(self._publish(messages, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)

    async def _publish(self, messages: list[Message], done: Done) -> None:
        errors: dict[int, SendError] = {}
        try:
            for broker, adapter in self._adapters.items():
                indexes = [
                    at for at, message in enumerate(messages) if self.settings.queues[message.queue].broker == broker
                ]
                if indexes:
                    failed = await adapter.publish([messages[at] for at in indexes], self.settings.send_timeout)
                    errors.update({indexes[at]: error for at, error in failed.items()})
        except BrokerError as error:
            errors = {at: SendError(str(error)) for at in range(len(messages))}
        finally:
            done(errors)
            with self._change:
                self._in_flight -= 1
                self._change.notify_all()

    def _flush(self, timeout: float) -> bool:
        if threading.current_thread() is self._thread:
            return not self._in_flight  # what is in flight lands on this very thread
        with self._change:
            return self._change.wait_for(lambda: not self._in_flight, timeout)

    def _on_outcome(self, message: Message, verdict: Verdict, result: bytes | None, seconds: float) -> None:  # noqa: ARG002
        self._install()
        self._outcomes.append(
            Handled(
                queue=message.queue,
                id=message.id,
                message=self._payload(message),
                outcome=verdict.outcome,
                attempt=message.attempts + 1,
                result=None if result is None else msgspec.json.decode(result),
                reason=verdict.reason,
                traceback=verdict.traceback,
                next_in=verdict.next_in,
                headers=message.headers or {},
            )
        )

    def _of(self, outcome: Outcome) -> list[Handled]:
        return [one for one in self._outcomes if one.outcome is outcome]

    def _payload(self, message: Message) -> Any:
        content = self.settings.queues[message.queue].content
        if content == "json" and message.content_type != JSON:
            content = "bytes"
        try:
            return codec.decode(message.body, content, None)
        except DecodeError:
            return message.body

    def _as_sent(self, message: Message) -> SentMessage:
        return SentMessage(
            queue=message.queue,
            id=message.id,
            message=self._payload(message),
            priority=message.priority,
            delay=None if message.due is None else max(0.0, message.due - message.sent_at),
            headers=message.headers or {},
            key=message.key,
        )

    # -- running until idle --------------------------------------------------------------------------------------------

    async def _run(self, timeout: float, skip_delays: bool) -> None:
        if self._worker is None:
            return
        end = time.monotonic() + timeout
        self._install()
        self._worker.resume()
        try:
            while True:
                await self._until(self._quiet, end, timeout)
                ended = len(self._outcomes)
                if skip_delays and await self._skip():
                    continue
                # a delay may have ended by itself between the two looks
                if await self._quiet() and len(self._outcomes) == ended:
                    return
        finally:
            self._worker.pause()

    async def _until(self, condition: Callable[[], Coroutine[Any, Any, bool]], end: float, timeout: float) -> None:
        while not await condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not idle after {timeout:g} s: {await self._left()}")
            await asyncio.sleep(_LOOK)

    def _served(self) -> list[QueueSettings]:
        return [queue for queue in self.settings.queues.values() if queue.handler is not None]

    async def _quiet(self) -> bool:
        """Whether nothing runs and nothing that is due waits."""
        assert self._worker is not None
        for _look in range(2):  # a message on its way from one place to another might be missed by one look
            if self._in_flight or not self._worker.dispatcher.idle:
                return False
            for queue in self._served():
                depth = await self._adapters[queue.broker].depth(queue.name)
                if depth.ready or depth.active:
                    return False
        return True

    async def _skip(self) -> bool:
        """Make the message that is due next due now; False when none waits."""
        first: tuple[float, Adapter, Message] | None = None
        for queue in self._served():
            adapter = self._adapters[queue.broker]
            for message in await adapter.peek(queue.name, "delayed", 1):
                if first is None or (message.due or 0.0) < first[0]:
                    first = message.due or 0.0, adapter, message
        if first is None:
            return False
        _due, adapter, message = first
        # it may fall due by itself at this very moment: only what was taken away is put back
        if await adapter.purge(message.queue, "delayed", [message.id]):
            now = time.time()
            errors = await adapter.publish([msgspec.structs.replace(message, due=now, native=None)], _PATIENCE)
            if errors:
                raise next(iter(errors.values()))
        return True

    async def _left(self) -> str:
        assert self._worker is not None
        found = [
            f"{lane.running} running in {name!r}"
            for name, lane in self._worker.dispatcher.lanes.items()
            if lane.running
        ]
        for queue in self._served():
            depth = await self._adapters[queue.broker].depth(queue.name)
            if depth.ready:
                found.append(f"{depth.ready} waiting in {queue.name!r}")
            if depth.delayed:
                found.append(f"{depth.delayed} delayed in {queue.name!r}")
        if self._outcomes:
            last = self._outcomes[-1]
            found.append(f"the last outcome was {last.outcome} of {last.queue!r} {last.reason}".rstrip())
        return ", ".join(found) or "a message is being settled or sent"

    async def _waiting(self) -> list[SentMessage]:
        found: list[Message] = []
        for queue in self.settings.queues.values():
            adapter = self._adapters[queue.broker]
            for state in ("ready", "active", "delayed"):
                found += await adapter.peek(queue.name, state, 10_000)
        return [self._as_sent(message) for message in found]


def _load(path: str | Path | None) -> Settings:
    given = None if path is None else Path(path)
    return config.load(given if given is not None and given.is_file() else config.find(given))


def _in_memory(settings: Settings) -> Settings:
    """*settings* with every broker in memory, and nothing kept on the disk."""
    # the root tells one project's memory from another's
    root = f"{settings.root}#{next(_numbers)}"
    brokers = {
        name: msgspec.structs.replace(broker, url="sqlite::memory:", root=root, prefix="", options={})
        for name, broker in settings.brokers.items()
    }
    queues = {name: msgspec.structs.replace(queue, options={}) for name, queue in settings.queues.items()}
    ledger = None if settings.ledger is None else "sqlite::memory:"
    return msgspec.structs.replace(settings, brokers=brokers, queues=queues, ledger=ledger, prefix="")
