"""The adapter for SQLite: the port's face towards the event loop. Everything that touches the file is the writer's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from handrail.adapter import (
    BrokerSettings,
    Capability,
    Deliver,
    Delivery,
    Depth,
    Health,
    Hold,
    Lost,
    Planned,
    QueueSpec,
    Recall,
    Role,
    Settlement,
    State,
    Subscription,
    Verb,
)
from handrail.errors import BrokerError, SendError, SendTimeoutError
from handrail.message import Message
from handrail_sqlite import standing
from handrail_sqlite import statements as sql
from handrail_sqlite.commands import Ask, Intake, Publish, Settle
from handrail_sqlite.place import Place, memory, parse
from handrail_sqlite.writer import CLOSE_PATIENCE, TOLD_FOR, Writer

T = TypeVar("T")

_STATES: Mapping[State, int] = {"ready": sql.READY, "delayed": sql.DELAYED, "active": sql.ACTIVE, "dead": sql.DEAD}

#: Messages, and bytes of bodies, that are handed to the writer as one command.
_CHUNK, _CHUNK_BYTES = 5000, 16 << 20
#: Seconds without a sign of the writer after which messages cannot be said to flow.
_SILENCE = 5.0

_CAPABILITIES: Mapping[Capability, bool | str] = {
    Capability.DELAY: True,
    Capability.PRIORITY: True,
    Capability.LIFO: True,
    Capability.HEAD: True,
    Capability.FIFO: True,
    Capability.BY_KEY: "while one worker serves the queue",
    Capability.BY_PARTITION: False,
    Capability.DEAD_LETTERS: True,
    Capability.PEEK: True,
    Capability.PURGE: True,
    Capability.DEPTH: True,
    Capability.CRASHES: True,
    Capability.DEAD_WORKER: True,
    Capability.PROCESSES: True,
    Capability.MACHINES: "one machine: a lock over a network file system proves nothing",
    Capability.FAIR: True,
    Capability.FOREIGN: False,
}


#: What only a file on disk can do.
_OF_FILES = (Capability.PROCESSES, Capability.DEAD_WORKER, Capability.CRASHES)


class SQLiteAdapter:
    """Messages in one SQLite file, shared by any number of processes of one machine. Implements ``handrail.adapter.Adapter``.

    ``sqlite::memory:`` is a file in a folder of its own that adapters of this process with the same URL and root share,
    and that is gone when the last of them closes.
    """

    name = "sqlite"
    forwards = False
    capabilities: Mapping[Capability, bool | str] = _CAPABILITIES
    hold: Hold | None = None

    def __init__(self, settings: BrokerSettings) -> None:
        if settings.options:
            unknown = ", ".join(sorted(settings.options))
            raise BrokerError(
                f"broker {settings.name!r}: a SQLite broker has no options, but got {unknown}; remove them"
            )
        self.board: Path | None = None
        self._settings = settings
        self._file = parse(settings)
        if self._file is None:
            # it is of this process, and gone with it
            self.capabilities = {**_CAPABILITIES, **dict.fromkeys(_OF_FILES, False)}
        self._writer: Writer | None = None
        self._memory: tuple[str, str] | None = None
        self._pid = os.getpid()

    @property
    def place(self) -> str:
        return str(self._file or "memory of this process")

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self, role: Role) -> None:
        if self._writer is not None:
            raise BrokerError(f"{self.place}: is open already")
        if self._file is None:
            key = (self._settings.url, self._settings.root)
            place = Place(memory.acquire(key), memory=True)
            self._memory = key
        else:
            place = Place(self._file)
        self._pid = os.getpid()
        writer = Writer(self._settings, place, role, self.board, asyncio.get_running_loop())
        self._writer = writer
        try:
            await writer.begin()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and self._pid == os.getpid():
            await writer.end(2 * CLOSE_PATIENCE)
        if self._memory is not None:
            memory.release(self._memory)
            self._memory = None

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise BrokerError(f"{self.place}: is not open")
        if self._pid != os.getpid():
            raise BrokerError(f"{self.place}: was opened before this process forked; open an adapter of its own here")
        return self._writer

    async def _ask(self, call: Callable[[Writer], T], *, offline: bool = False) -> T:
        writer = self._open_writer()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        writer.submit(Ask(call, future, offline=offline))
        while not (await asyncio.wait([future], timeout=_SILENCE))[0]:
            if writer.trouble:
                future.cancel()
                raise BrokerError(writer.trouble)
        return future.result()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        await self._ask(lambda writer: writer.declare(queues), offline=True)

    async def plan(self, queues: Sequence[QueueSpec]) -> list[Planned]:
        if self._file is None:
            return standing.of_memory(self._settings.prefix, queues)
        return await asyncio.to_thread(standing.of_file, self._file, self._settings.prefix, queues)

    # --- messages -----------------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message], timeout: float) -> dict[int, SendError]:
        writer = self._open_writer()
        loop = asyncio.get_running_loop()
        commands: list[tuple[int, Publish]] = []
        for start, end in _chunks(messages):
            command = Publish(messages[start:end], loop.create_future())
            commands.append((start, command))
            writer.submit(command)
        if not commands:
            return {}
        await asyncio.wait([command.future for _start, command in commands], timeout=timeout)
        errors: dict[int, SendError] = {}
        for start, command in commands:
            if command.future.done():
                errors.update((start + index, error) for index, error in command.future.result().items())
                continue
            command.abandoned = True
            why = writer.trouble or f"{self.place}: another process is writing and does not finish"
            failure = SendTimeoutError.after(timeout, why)
            errors.update((start + index, failure) for index in range(len(command.messages)))
        return errors

    async def subscribe(
        self,
        queue: QueueSpec,
        credit: int,
        deliver: Deliver,
        lost: Lost,
        recall: Recall | None = None,  # noqa: ARG002 - no message is better elsewhere
    ) -> Subscription:
        intake = Intake(queue, self._settings.prefix + queue.name, credit, deliver, lost)
        await self._ask(lambda writer: writer.join_intake(intake), offline=True)
        return _Subscription(self._open_writer(), intake)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        writer = self._open_writer()
        future: asyncio.Future[list[Settlement]] = asyncio.get_running_loop().create_future()
        writer.submit(Settle(settlements, future))
        return await future

    # --- looking at and clearing --------------------------------------------------------------------------------------

    def _full(self, queue: str) -> str:
        return self._settings.prefix + queue

    async def catch_up(self) -> None:
        await self._ask(lambda writer: writer.catch_up())

    async def depth(self, queue: str) -> Depth:
        return await self._ask(lambda writer: writer.store.depth(self._full(queue)))

    async def peek(self, queue: str, state: State, limit: int, offset: int = 0) -> list[Message]:
        number = _STATES[state]
        return await self._ask(lambda writer: writer.store.peek(self._full(queue), queue, number, limit, offset))

    async def find(self, queue: str, state: State, message_id: str) -> Message | None:
        number = _STATES[state]
        return await self._ask(lambda writer: writer.store.find(self._full(queue), queue, number, message_id))

    async def purge(self, queue: str, state: State, ids: Sequence[str] | None = None) -> int:
        if state == "active":
            return 0  # somebody works on them
        number = _STATES[state]
        return await self._in_steps(lambda writer, count: writer.purge(self._full(queue), number, ids, count))

    async def replay(self, queue: str, ids: Sequence[str] | None = None) -> int:
        return await self._in_steps(lambda writer, count: writer.replay(self._full(queue), ids, count))

    async def _in_steps(self, step: Callable[[Writer, int], tuple[int, bool]]) -> int:
        count, finished = 0, False
        while not finished:
            so_far = count
            count, finished = await self._ask(lambda writer, so_far=so_far: step(writer, so_far))  # type: ignore[misc]
        return count

    def health(self) -> Health:
        writer = self._writer
        if writer is None:
            return Health(up=False, detail=f"{self.place}: is not open")
        if self._pid != os.getpid():
            return Health(up=False, detail=f"{self.place}: was opened before this process forked")
        if writer.trouble:
            return Health(up=False, detail=writer.trouble)
        now = time.monotonic()
        if not writer.asleep and now - writer.beat > _SILENCE:
            return Health(up=False, detail=f"{self.place}: another process is writing and does not finish")
        when, text = writer.told
        if text and now - when < TOLD_FOR:
            return Health(up=True, detail=f"{text}; a new one is in use")
        return Health(up=True, detail=self.place)


class _Subscription:
    """Implements ``handrail.adapter.Subscription``."""

    def __init__(self, writer: Writer, intake: Intake) -> None:
        self._writer = writer
        self._intake = intake

    def set_credit(self, credit: int) -> None:
        more = credit > self._intake.credit
        self._intake.credit = credit
        if more:
            self._writer.nudge()

    def pause(self) -> None:
        self._intake.paused = True

    def resume(self) -> None:
        intake = self._intake
        intake.paused = False
        if intake.waiting:
            waiting, intake.waiting = intake.waiting, []
            # through the loop, since a deliver within the caller's own call is nothing that callers expect
            asyncio.get_running_loop().call_soon(intake.arrive, waiting, self._writer.give_back)
        self._writer.nudge()

    async def cancel(self) -> None:
        intake = self._intake
        if intake.cancelled:
            return
        intake.cancelled = True
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._writer.submit(Ask(lambda writer: writer.leave_intake(intake), future, offline=True))
        await future
        waiting: list[Delivery] = intake.waiting
        intake.waiting = []
        if waiting:
            released: asyncio.Future[list[Settlement]] = asyncio.get_running_loop().create_future()
            self._writer.submit(Settle([Settlement(delivery, Verb.RELEASE) for delivery in waiting], released))
            await released


def _chunks(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Where to cut *messages*, so that one transaction neither lasts too long nor takes too much memory."""
    cuts: list[tuple[int, int]] = []
    start = size = 0
    for index, message in enumerate(messages):
        size += len(message.body)
        if index - start >= _CHUNK or size > _CHUNK_BYTES:
            if index > start:
                cuts.append((start, index))
                start = index
            size = len(message.body)
    if start < len(messages):
        cuts.append((start, len(messages)))
    return cuts
