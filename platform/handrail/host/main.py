"""The host itself: from LOAD to STOP over one pipe. It changes nothing of the process it lives in, see ``process``."""

from __future__ import annotations

import asyncio
import gc

import msgspec

from handrail import transport
from handrail.board import Board
from handrail.host import tracebacks
from handrail.host.call import Calls
from handrail.host.lifespan import Lifespan
from handrail.host.loader import LIFESPAN, Loader, Problem
from handrail.host.sends import PipeTransport
from handrail.pipe import Batch, Load, Pipe, ToDispatcher, ToHost

_RUN, _CANCEL = int(ToHost.RUN), int(ToHost.CANCEL)

#: Seconds that functions which go on after their callback get at STOP, and then to unwind once cancelled. Together
#: with the lifespan's end they must stay below what the dispatcher grants a host to leave.
PATIENCE = 4.0
UNWIND = 1.0


class Host:
    """Loads the handlers and runs them, on the running loop.

    *in_process*: it shares its process with the dispatcher (tests, embedding) and must leave ``sys.path`` alone.
    """

    def __init__(self, pipe: Pipe, *, in_process: bool) -> None:
        self._pipe = pipe
        self._in_process = in_process
        self._load: Load | None = None
        self._loading = asyncio.Event()
        self._stopping = asyncio.Event()
        self._sends: PipeTransport | None = None
        #: The jobs; None before LOAD.
        self.calls: Calls | None = None

    def receive(self, batch: Batch) -> None:
        """What the dispatcher says."""
        calls = self.calls
        for message in batch:
            op = message[0]
            if op == _RUN:
                assert calls is not None
                calls.run(message)
            elif op == _CANCEL:
                assert calls is not None
                calls.cancel(message[1], message[2])
            else:
                self._other(message)
        if calls is not None:
            calls.turn()

    def _other(self, message: list[object]) -> None:
        match message[0]:
            case ToHost.PING:
                self._pipe.send([int(ToDispatcher.PONG), message[1]])
            case ToHost.SENT:
                if self._sends is not None:
                    number, failures = msgspec.convert(message[1:], tuple[int, list[tuple[int, str]]])
                    self._sends.sent(number, failures)
            case ToHost.LOAD:
                self._load = msgspec.convert(message[1], Load)
                self._loading.set()
            case ToHost.STOP:
                self._stopping.set()
                self._loading.set()

    async def run(self) -> None:
        """Load, serve, and return when STOP is carried out. Cancelling it ends everything at once."""
        await self._loading.wait()
        if self._load is None:  # stopped before it began
            return
        load = self._load
        board = Board(load.board_fd, None) if load.board_fd >= 0 else None
        loader = Loader(load.settings, process_wide=not self._in_process)
        self.calls = calls = Calls(self._pipe, loader.root, board=board)
        self._sends = sends = PipeTransport(calls, load.settings)
        calls.sends_busy = lambda: sends.busy
        before = transport.current()
        if isinstance(before, PipeTransport):  # of the host that this one follows, which will be gone
            before = None
        transport.install(sends)
        try:
            await self._serve(load, loader, calls, sends)
        finally:
            if transport.current() is sends:
                transport.install(before)
            calls.close()
            sends.close()
            if self._in_process:
                loader.close()
            if board is not None:
                board.map.close()

    async def _serve(self, load: Load, loader: Loader, calls: Calls, sends: PipeTransport) -> None:
        bindings, found = loader.load(load.queues)
        problems = loader.problems
        lifespan = await self._open(loader)
        self._pipe.send([int(ToDispatcher.FOUND), [msgspec.to_builtins(one) for one in found], problems])
        if not problems:
            calls.serve(bindings)
            if not self._in_process:
                # what is loaded stays: the collector need not look through it again and again
                gc.collect()
                gc.freeze()
            self._pipe.send([int(ToDispatcher.READY)])
        await self._stopping.wait()
        await calls.finish(PATIENCE, UNWIND)
        if lifespan is not None:
            try:
                await lifespan.leave()
            except Exception as error:  # noqa: BLE001 - the user's closing code; the host ends all the same
                calls.say(
                    "error",
                    "the lifespan could not be left cleanly",
                    error=tracebacks.one_line(error),
                    traceback=tracebacks.render(error, loader.root),
                )
        await sends.flushed()

    async def _open(self, loader: Loader) -> Lifespan | None:
        """Enter the lifespan, if there is one and nothing is wrong so far. What goes wrong joins the problems."""
        if not loader.has_lifespan():
            return None
        try:
            found = loader.lifespan()
        except Problem as problem:
            loader.tell(str(problem))
            return None
        if loader.problems:
            return None
        lifespan = Lifespan(found)
        try:
            await lifespan.enter()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's opening code may raise anything
            text = tracebacks.block(error, loader.root)
            loader.tell(f"{loader.place(found, f'handlers/{LIFESPAN}')}: lifespan failed to open\n{text}")
            return None
        return lifespan
