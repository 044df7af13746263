"""Real hosts for the tests: one in this process over an in-memory pipe, one in a child process over a socket pair."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handrail.board import Board
from handrail.config.model import HandlerRef, QueueSettings, Settings
from handrail.host import Host
from handrail.message import JSON
from handrail.pipe import Batch, Found, Load, MemoryPipe, SocketPipe, ToDispatcher, ToHost

WAIT = 20.0


def ref(text: str) -> HandlerRef:
    """``mail.send`` as queues.yaml has it: the file mail.py, the function send."""
    file, _, function = text.partition(".")
    return HandlerRef(text, f"{file}.py", function or "handler")


class Project:
    """A project in a temporary folder, written file by file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.queues: dict[str, QueueSettings] = {}
        self.send_timeout = 10.0
        self.send_buffer = 100_000
        (root / "handlers").mkdir()

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    def handler(
        self, source: str, name: str = "q", file: str = "h.py", function: str = "handler", **options: Any
    ) -> None:
        """Bind queue *name* to *function* of a handler file with *source*."""
        self.write(f"handlers/{file}", source)
        self.bind(name, HandlerRef(f"{file[:-3]}.{function}", file, function), **options)

    def bind(self, name: str, handler: HandlerRef | None, **options: Any) -> None:
        self.queues[name] = QueueSettings(name=name, handler=handler, **options)

    @property
    def settings(self) -> Settings:
        return Settings(
            path=f"{self.root}/queues.yaml",
            root=str(self.root),
            brokers={},
            queues=self.queues,
            send_timeout=self.send_timeout,
            send_buffer=self.send_buffer,
        )


class Driver:
    """The dispatcher's end of a pipe to a host."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.heard: list[list[Any]] = []
        self.found: list[Found] = []
        self.problems: list[str] = []
        self.ready = False
        self.board: Board | None = None
        #: Answers a SEND; None leaves it unanswered.
        self.answer: Callable[[int], list[Any]] | None = lambda _number: []
        self.pid = os.getpid()
        self.host: Host | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._tokens = itertools.count(1)
        self._pipe: Any = None
        self._change = asyncio.Event()

    def receive(self, batch: Batch) -> None:
        for message in batch:
            self.heard.append(message)
            if message[0] == ToDispatcher.FOUND:
                self.found = msgspec.convert(message[1], list[Found])
                self.problems = message[2]
            elif message[0] == ToDispatcher.READY:
                self.ready = True
            elif message[0] == ToDispatcher.SEND and self.answer is not None:
                self._pipe.send([int(ToHost.SENT), message[1], self.answer(message[1])])
        self._change.set()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """What *condition* gives, once it is true."""
        async with asyncio.timeout(WAIT):
            while not (value := condition()):
                self._change.clear()
                try:
                    await asyncio.wait_for(self._change.wait(), 0.02)
                except TimeoutError:
                    continue
            return value

    def send(self, *message: Any) -> None:
        self._pipe.send([int(message[0]), *message[1:]])

    async def load(self) -> None:
        fd = self.board.fd if self.board is not None else -1
        load = Load(settings=self.project.settings, queues=list(self.project.queues), generation="g1", board_fd=fd)
        self.send(ToHost.LOAD, msgspec.to_builtins(load))
        await self.until(lambda: self.ready or self.problems)

    def run(self, body: bytes = b"{}", queue: str = "q", **facts: Any) -> int:
        """Hand the host a job; its token."""
        token = next(self._tokens)
        number = list(self.project.queues).index(queue)
        given = {
            "id": f"id-{token}",
            "attempt": 1,
            "starts": 1,
            "crashes": 0,
            "sent_at": 5.0,
            "content_type": JSON,
            "priority": 4,
            "key": None,
            "headers": None,
            "deadline": None,
        } | facts
        slot = self.board.take(queue, given["id"], 0) if self.board is not None else -1
        self.send(ToHost.RUN, token, slot, number, body, tuple(given.values()))
        return token

    def outcome(self, token: int) -> list[Any] | None:
        return next((one[2:] for one in self.heard if one[0] == ToDispatcher.DONE and one[1] == token), None)

    async def done(self, token: int) -> list[Any]:
        """How the job ended: the End and what goes with it."""
        found: list[Any] = await self.until(lambda: self.outcome(token))
        return found

    async def call(self, body: bytes = b"{}", queue: str = "q", **facts: Any) -> list[Any]:
        return await self.done(self.run(body, queue, **facts))

    def said(self, text: str) -> list[Any] | None:
        """The first line of the host's own that holds *text*."""
        return next((one for one in self.heard if one[0] == ToDispatcher.SAY and text in str(one)), None)

    def has(self, op: ToDispatcher, token: int) -> bool:
        return any(one[0] == op and one[1] == token for one in self.heard)

    def outcomes(self, token: int) -> int:
        return sum(one[0] == ToDispatcher.DONE and one[1] == token for one in self.heard)

    async def ping(self) -> None:
        """Returns when the host has done all that it was told before."""
        number = next(self._tokens)
        self.send(ToHost.PING, number)
        await self.until(lambda: [int(ToDispatcher.PONG), number] in self.heard)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(Path(os.path.realpath(tmp_path)))


@asynccontextmanager
async def in_memory(project: Project, *, board: bool = False) -> AsyncIterator[Driver]:
    """A host in this process and loop, loaded."""
    driver = Driver(project)
    driver.board = Board.create(None) if board else None
    ours, theirs = MemoryPipe.pair()
    driver._pipe = ours
    driver.host = Host(theirs, in_process=True)
    ours.listen(driver.receive, lambda: None)
    theirs.listen(driver.host.receive, lambda: None)
    living = asyncio.create_task(driver.host.run())
    try:
        await driver.load()
        yield driver
        driver.send(ToHost.STOP)
        await asyncio.wait_for(living, WAIT)
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        if driver.board is not None:
            driver.board.close()


@asynccontextmanager
async def in_child(project: Project, *, board: bool = False, **popen: Any) -> AsyncIterator[Driver]:
    """A host in a process of its own, loaded."""
    driver = Driver(project)
    driver.board = Board.create(None) if board else None
    ours, theirs = socket.socketpair()
    fds = [theirs.fileno()] + ([driver.board.fd] if driver.board is not None else [])
    driver.process = subprocess.Popen(
        [sys.executable, "-P", "-m", "handrail.host", str(theirs.fileno())],
        pass_fds=fds,
        process_group=0,
        cwd=project.root,
        **popen,
    )
    theirs.close()
    driver.pid = driver.process.pid
    driver._pipe = await SocketPipe.connect(ours, driver.receive, lambda: None)
    try:
        await driver.load()
        yield driver
        driver.send(ToHost.STOP)
        await driver.until(lambda: driver.process is not None and driver.process.poll() is not None)
    finally:
        driver._pipe.close()
        if driver.process.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.process.wait()
        if driver.board is not None:
            driver.board.close()
        await asyncio.sleep(0)  # the transport closes in the next turn


@pytest.fixture
def memory(project: Project) -> Callable[[], Any]:
    return lambda **options: in_memory(project, **options)


@pytest.fixture
def child(project: Project) -> Callable[[], Any]:
    return lambda **options: in_child(project, **options)


def alive(pid: int) -> bool:
    """Whether *pid* is a process that has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def wait_gone() -> Callable[[int], None]:
    def wait(pid: int) -> None:
        end = time.monotonic() + WAIT
        while alive(pid):
            assert time.monotonic() < end, f"process {pid} lives on"
            time.sleep(0.01)

    return wait
