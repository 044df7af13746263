"""The hosts as the dispatcher sees them: child processes that are started, spoken to, watched and ended. No user code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from handrail.board import Board
from handrail.config.model import Settings
from handrail.errors import StartError
from handrail.pipe import Batch, Found, Load, MemoryPipe, Pipe, SocketPipe, ToDispatcher, ToHost

if TYPE_CHECKING:
    from handrail.dispatcher.run import Run

#: Seconds between pings, and without an answer after which a host is named in the log.
PING_EVERY = 5.0
#: Seconds that handlers may take to load, and a lifespan to be left.
LOAD_TIMEOUT = 120.0
LEAVE_TIMEOUT = 15.0
#: Seconds for which a dead host's pipe is read to its end.
LAST_WORDS = 0.5


Receive = Callable[["Host", Batch], None]


class LoadError(StartError):
    """A host could not load its handlers. ``problems`` are blocks of text for people."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Body(Protocol):
    """What a host lives in: a process, or this process."""

    pid: int

    async def start(self, host: Host) -> Pipe: ...

    def kill(self) -> None: ...

    async def gone(self) -> str:
        """Returns when it is no more, with how it ended, for people."""


class Host:
    """One host: its pipe, what it was given, and whether it may be given more."""

    def __init__(
        self,
        body: Body,
        settings: Settings,
        queues: list[str],
        *,
        generation: str,
        board: Board | None,
        receive: Receive,
        lost: Callable[[Host, str], None],
        alone: bool = False,
    ) -> None:
        self.body = body
        #: Runs one job at a time, so that ending the host ends no bystander.
        self.alone = alone
        self.settings = settings
        self.queues = queues
        self.index = {name: at for at, name in enumerate(queues)}
        self.generation = generation
        self.board = board
        #: Given and without an outcome, by token.
        self.runs: dict[int, Run] = {}
        #: Settled without its word (timed out, cancelled) and perhaps still running, by token.
        self.lingering: dict[int, Run] = {}
        #: Tokens of threads that were abandoned and run on.
        self.abandoned: set[int] = set()
        self.found: list[Found] = []
        self.ready = False
        #: Gets nothing new; ends when nothing of it runs.
        self.draining = False
        #: Another is being started to take its place.
        self.replaced = False
        #: Was told to end, or is being killed: its death is no crash.
        self.ending = False
        self.ended = False
        self.born = time.monotonic()
        self._receive = receive
        self._lost = lost
        self._pipe: Pipe | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch: asyncio.Task[None] | None = None
        self._pings: asyncio.Task[None] | None = None
        self._ponged = 0.0
        self.silent = False

    @property
    def pid(self) -> int:
        return self.body.pid

    async def start(self) -> None:
        """Start it and load the handlers. Raises :class:`LoadError`, with all that is wrong, when they cannot be loaded."""
        try:
            self._pipe = await self.body.start(self)
        except OSError as error:
            self.ended = True
            raise LoadError([f"no process for the handlers can be started: {error.strerror or error}"]) from error
        except BaseException:
            self.ended = True
            raise
        self._watch = asyncio.create_task(self._until_gone())
        load = Load(
            settings=self.settings,
            queues=self.queues,
            generation=self.generation,
            board_fd=self.board.fd if self.board is not None else -1,
            colors=sys.stderr is not None and sys.stderr.isatty(),
        )
        self.send([int(ToHost.LOAD), msgspec.to_builtins(load)])
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await self._loaded
        except TimeoutError:
            await self.ended_for_good()
            raise LoadError([f"the handlers did not load within {LOAD_TIMEOUT:.0f} s: an import waits"]) from None
        except BaseException:
            await self.ended_for_good()
            raise
        self._ponged = time.monotonic()
        self._pings = asyncio.create_task(self._ping())

    def send(self, message: list[Any]) -> None:
        if self._pipe is not None and not self.ended:
            self._pipe.send(message)

    def received(self, batch: Batch) -> None:
        """What the pipe brought. Outcomes go straight on; what concerns the host itself stays here."""
        if self.ready:
            self._receive(self, batch)
            return
        rest = []
        for message in batch:
            match message[0]:
                case ToDispatcher.FOUND:
                    self.found = msgspec.convert(message[1], list[Found])
                    if message[2] and not self._loaded.done():
                        self._loaded.set_exception(LoadError(list(message[2])))
                case ToDispatcher.READY:
                    self.ready = True
                    if not self._loaded.done():
                        self._loaded.set_result(None)
                case _:
                    rest.append(message)
        if rest:
            self._receive(self, rest)

    def pong(self) -> None:
        self._ponged = time.monotonic()

    @property
    def seconds_silent(self) -> float:
        return time.monotonic() - self._ponged

    async def _ping(self) -> None:
        number = 0
        while not self.ended:
            number += 1
            self.send([int(ToHost.PING), number])
            await asyncio.sleep(PING_EVERY)

    async def leave(self) -> None:
        """Let it leave its lifespan and end; kill it when that takes too long."""
        self.draining = self.ending = True
        self.send([int(ToHost.STOP)])
        if self._watch is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    await asyncio.shield(self._watch)
        await self.ended_for_good()

    def end(self) -> None:
        """Kill it and everything it started, now."""
        self.draining = self.ending = True
        self.body.kill()

    async def ended_for_good(self) -> None:
        """Kill it, and return when nothing of it is left, zombies included."""
        self.end()
        if self._watch is not None:
            await asyncio.shield(self._watch)

    async def _until_gone(self) -> None:
        how = await self.body.gone()
        self.ended = True
        self.ready = False
        if self._pings is not None:
            self._pings.cancel()
        if self._pipe is not None:
            self._pipe.close()
        if not self._loaded.done():
            self._loaded.set_exception(LoadError([f"the process that loads the handlers ended: {how}"]))
            self._loaded.exception()  # nobody may be waiting any more; that is no fault
        self._lost(self, how)


class ProcessBody:
    """A host in a child process, in a process group of its own, so that nothing it starts outlives it."""

    def __init__(self) -> None:
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._sentinel: subprocess.Popen[bytes] | None = None
        self._gone = asyncio.Event()
        self._heard_out = asyncio.Event()
        self._how = ""
        self._host: Host | None = None

    async def start(self, host: Host) -> Pipe:
        self._host = host
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            # room for a batch of bodies in one write
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        fds = [theirs.fileno()] + ([host.board.fd] if host.board is not None else [])
        try:
            # -P: nothing in the working directory may stand in for a module of ours or of the standard library
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "handrail.host", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                process_group=0,
                cwd=host.settings.root,
                env={**os.environ, "HANDRAIL_CONFIG": host.settings.path},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        try:
            self._sentinel = _sentinel(self.pid)
            pipe = await SocketPipe.connect(ours, host.received, self._pipe_lost)
        except BaseException:
            # nobody would hear of its end
            ours.close()
            self._collect()
            raise
        self._watch_process()
        return pipe

    def _watch_process(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._process is not None
        if hasattr(os, "pidfd_open"):
            try:
                fd = os.pidfd_open(self.pid)
            except OSError:  # an old kernel, or a sandbox that knows no pidfd
                pass
            else:
                loop.add_reader(fd, self._pidfd_readable, fd)
                return
        loop.call_later(0.25, self._poll)

    def _pidfd_readable(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._collect()

    def _poll(self) -> None:
        assert self._process is not None
        # without reaping it: its group must stay ours until its children are killed
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            asyncio.get_running_loop().call_later(0.25, self._poll)
            return
        self._collect()

    def _pipe_lost(self) -> None:
        self._heard_out.set()
        if self._host is not None and self._host.ending:
            return  # it is leaving, and runs the users' exit functions
        # the other end is closed though the process may live on, as after os.closerange() in a handler: of no use any more
        self.kill()

    def _collect(self) -> None:
        if self._gone.is_set():
            return
        assert self._process is not None
        assert self._host is not None
        self._host.ready = False  # before its last words are heard: what is written to a dead host breaks them off
        self._end_sentinel()
        _kill_group(self.pid)  # what it started dies with it; it is a zombie still, so the group is still its own
        status = self._process.wait()
        self._how = f"killed by {_signal_name(-status)}" if status < 0 else f"exit status {status}"
        self._gone.set()

    def _end_sentinel(self) -> None:
        if self._sentinel is not None:
            self._sentinel.kill()
            self._sentinel.wait()
            assert self._sentinel.stdin is not None
            self._sentinel.stdin.close()
            self._sentinel = None

    def kill(self) -> None:
        if self._process is not None and not self._gone.is_set():
            _kill_group(self.pid)

    async def gone(self) -> str:
        await self._gone.wait()
        # what it said before it died counts; something that inherited its end of the pipe may hold that open for ever
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._heard_out.wait()
        return self._how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _sentinel(group: int) -> subprocess.Popen[bytes]:
    """A tiny shell that outlives us by a moment: when our end of its pipe closes, it kills the host's whole group.

    The host would notice our death by itself, but not while a handler holds the GIL, nor could it then kill what its
    handlers started.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$0"', str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
        env={},
    )


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # nobody is left; macOS says EPERM for a group of zombies
        return


class MemoryBody:
    """A host in this very process and loop, over an in-memory pipe: for tests and for embedding in an application."""

    def __init__(self, make: Callable[[MemoryPipe], InProcessHost]) -> None:
        self.pid = os.getpid()
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    async def start(self, host: Host) -> Pipe:
        ours, theirs = MemoryPipe.pair()
        inner = self._make(theirs)
        ours.listen(host.received, self.kill)
        theirs.listen(inner.receive, self.kill)
        self._task = asyncio.create_task(inner.run())
        self._task.add_done_callback(lambda _task: self._gone.set())
        return ours

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def gone(self) -> str:
        await self._gone.wait()
        assert self._task is not None
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            return repr(error)
        return "ended"


class InProcessHost(Protocol):
    """What :class:`MemoryBody` needs of ``handrail.host``, which this floor may not import."""

    def receive(self, batch: Batch) -> None: ...

    async def run(self) -> None: ...
