"""A worker: dispatcher, hosts, brokers and ledger, started, reloaded and stopped as one. It knows no signals and no terminal."""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from pathlib import Path

import msgspec

from handrail import adapter as port
from handrail import duration
from handrail.adapter import Adapter, Role
from handrail.board import Board
from handrail.config import describe_changes
from handrail.config.model import QueueSettings, Settings
from handrail.dispatcher.core import Dispatcher, OnOutcome
from handrail.dispatcher.hosts import Body, InProcessHost, LoadError, MemoryBody, ProcessBody
from handrail.dispatcher.sequences import is_ordered, refusal
from handrail.errors import HandrailError, StartError
from handrail.ledger import Ledger, open_ledger
from handrail.logger import get_logger
from handrail.logs import Journal
from handrail.pipe import Found, MemoryPipe

log = get_logger("handrail")

#: Objects that may come into being, beyond those that have gone, before the garbage collector looks at them.
COLLECT_AFTER = 50_000


class ReloadReport(msgspec.Struct, frozen=True):
    """What a reload did, for people."""

    #: Files that made it necessary, as the caller gave them.
    files: list[str]
    #: What changed in queues.yaml: ``welcome-email: attempts 3 → 5``.
    changes: list[str]
    #: Seconds from the call until the new code served.
    seconds: float
    #: What became of the messages in flight: ``2 running finish in the old host``.
    in_flight: str
    #: Why nothing changed: the old code serves on. Blocks of text.
    problems: list[str]


class Worker:
    """One running platform. Everything happens on the loop that :meth:`start` is called on."""

    def __init__(
        self,
        settings: Settings,
        *,
        queues: list[str] | None = None,
        processes: int = 1,
        in_process: bool = False,
        board: bool = True,
        on_outcome: OnOutcome | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.settings = settings
        self._only = queues
        self._processes = processes
        self._in_process = in_process
        self._with_board = board and not in_process
        self._on_outcome = on_outcome
        self._journal = journal if journal is not None else Journal()
        self._adapters: dict[str, Adapter] = {}
        #: Adapters that only send, for what handlers send to brokers that no queue here is taken from.
        self._clients: dict[str, Adapter] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._board: Board | None = None
        self._ledger: Ledger | None = None
        self._dispatcher: Dispatcher | None = None
        self._background: list[asyncio.Task[None]] = []
        self._reloading = asyncio.Lock()
        self._stopped = False
        #: Set while :meth:`start` is not under way.
        self._not_starting = asyncio.Event()
        self._not_starting.set()

    # -- what others ask -----------------------------------------------------------------------------------------------

    @property
    def found(self) -> list[Found]:
        """What is bound now, in the order of queues.yaml."""
        generation = self._dispatcher.fleet.current if self._dispatcher is not None else None
        return [generation.found[name] for name in generation.queues] if generation is not None else []

    @property
    def dispatcher(self) -> Dispatcher:
        if self._dispatcher is None:
            raise HandrailError("the worker is not running")
        return self._dispatcher

    def adapter(self, broker: str) -> Adapter:
        """The open adapter of the broker named so in queues.yaml."""
        return self._adapters[broker]

    @property
    def places(self) -> dict[str, str]:
        """Where each open broker's messages lie, for people: name → URL with its password masked, or path."""
        return {name: adapter.place for name, adapter in {**self._clients, **self._adapters}.items()}

    async def idle(self, timeout: float) -> bool:
        """Wait until nothing waits, runs or is being settled in this worker; False when that took over *timeout* seconds."""
        end = time.monotonic() + timeout
        while not self.dispatcher.idle:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.005)
        return True

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> list[Found]:
        """Load the handlers, connect, subscribe; returns what was bound once messages can flow.

        Raises :class:`StartError` (its ``problems`` say what is wrong with the handlers) or :class:`BrokerError`.
        """
        settings = self.settings
        names = self._bound(settings)
        self._not_starting.clear()
        try:
            if self._with_board:
                self._board = Board.create(Path(settings.data, "workers", f"{uuid.uuid4().hex}.board"))
            self._ledger = open_ledger(settings)
            if self._ledger is not None:
                await self._ledger.open()
            for broker in dict.fromkeys(settings.queues[name].broker for name in names):
                await self._open(broker, "worker")
            dispatcher = self._dispatcher = Dispatcher(
                adapter=self.adapter,
                sender=self._sender,
                make_body=self._body,
                board=self._board,
                journal=self._journal,
                ledger=self._ledger,
                processes=self._processes,
                on_outcome=self._on_outcome,
            )
            generation = await dispatcher.load(settings, names)
            await dispatcher.switch(generation)
            self._warn_of_holds(names)
            if self._stopped:
                raise StartError("the worker was stopped while it started")
        except BaseException:
            await self._close()
            raise
        finally:
            self._not_starting.set()
        if not self._in_process:
            _quiet_collector()
        self._background = [
            asyncio.create_task(dispatcher.watch_cancellations()),
            asyncio.create_task(self._look_round(dispatcher)),
        ]
        return self.found

    def _bound(self, settings: Settings) -> list[str]:
        names = [name for name, queue in settings.queues.items() if queue.handler is not None]
        if self._only is not None:
            for name in self._only:
                if name not in settings.queues:
                    raise StartError(f"queue {name!r} is not in {settings.path}; it has {', '.join(settings.queues)}")
                if name not in names:
                    raise StartError(
                        f"queue {name!r} has no handler in {settings.path}: there is nothing to run for it"
                    )
            names = [name for name in names if name in self._only]
        if not names:
            raise StartError(f"no queue in {settings.path} has a handler: there is nothing to run")
        return names

    async def _open(self, broker: str, role: Role) -> Adapter:
        adapter = port.load(self.settings.brokers[broker])
        adapter.board = self._board.path if self._board is not None else None
        try:
            await adapter.open(role)
        except BaseException:
            await adapter.close()
            raise
        (self._adapters if role == "worker" else self._clients)[broker] = adapter
        return adapter

    async def _sender(self, broker: str) -> Adapter:
        """The adapter through which handlers' messages for *broker* go; opened when it is first needed."""
        lock = self._opening.setdefault(broker, asyncio.Lock())
        async with lock:
            if broker in self._adapters:
                return self._adapters[broker]
            if broker not in self._clients:
                adapter = await self._open(broker, "client")
                await adapter.declare([queue.spec for queue in self.settings.queues.values() if queue.broker == broker])
            return self._clients[broker]

    def _body(self) -> Body:
        if not self._in_process:
            return ProcessBody()
        from handrail.host import Host  # noqa: PLC0415 - a worker with processes has no use for it

        def make(pipe: MemoryPipe) -> InProcessHost:
            return Host(pipe, in_process=True)

        return MemoryBody(make)

    async def _look_round(self, dispatcher: Dispatcher) -> None:
        while True:
            # the first at once: from then on a standstill of this process is noticed
            try:
                dispatcher.look_round()
            except Exception:  # the next look may fare better, and nobody else would notice
                log.exception("a look round the worker failed")
            await asyncio.sleep(1.0)

    async def reload(self, settings: Settings, files: list[str] | None = None) -> ReloadReport:
        """Serve *settings* and the handlers as they are on disk now. When they cannot be loaded, the old ones serve on."""
        async with self._reloading:
            began = time.monotonic()
            changes = describe_changes(self.settings, settings)
            dispatcher = self.dispatcher

            def report(in_flight: str, problems: list[str]) -> ReloadReport:
                return ReloadReport(files or [], changes, time.monotonic() - began, in_flight, problems)

            if settings.brokers != self.settings.brokers:
                moved = [
                    name
                    for name, broker in settings.brokers.items()
                    if self.settings.brokers.get(name, broker) != broker
                ]
                if moved:
                    text = f"broker {', '.join(moved)} changed; until this worker is restarted it serves the old one"
                    return report("", [f"queues.yaml: {text}"])
            try:
                names = self._bound(settings)
                generation = await dispatcher.load(settings, names)
            except LoadError as error:
                return report("", error.problems)
            except HandrailError as error:
                return report("", [str(error)])
            running = dispatcher.running
            before, self.settings = self.settings, settings
            try:
                for broker in dict.fromkeys(settings.queues[name].broker for name in names):
                    if broker not in self._adapters:
                        await self._open(broker, "worker")
                await dispatcher.switch(generation)
            except HandrailError as error:
                if dispatcher.fleet.current is not generation:  # nothing was changed
                    self.settings = before
                    await dispatcher.fleet.discard(generation)
                return report("", [str(error)])
            if changes:
                self._warn_of_holds(names)
            return report(_in_flight(running), [])

    def _warn_of_holds(self, names: list[str]) -> None:
        """Say which handlers may take longer than their broker leaves a message with them."""
        for broker in dict.fromkeys(self.settings.queues[name].broker for name in names):
            hold = self.adapter(broker).hold
            if hold is None:
                continue
            found = [self.settings.queues[name] for name in names if self.settings.queues[name].broker == broker]
            too_long = [
                f"{queue.name} ({'none' if queue.timeout is None else duration.text(queue.timeout)})"
                for queue in found
                if queue.timeout is None or queue.timeout > hold.seconds
            ]
            if too_long:
                log.warning(
                    "a timeout is longer than the broker leaves a message in hand: then it gives it out again",
                    queues=", ".join(too_long),
                    limit=duration.text(hold.seconds),
                    mend=hold.mend,
                )

    def pause(self) -> None:
        """Start nothing new until :meth:`resume`; what runs goes on."""
        self.dispatcher.pause()

    def resume(self) -> None:
        self.dispatcher.resume()

    async def stop(self, drain: float | None = None) -> int:
        """Take nothing new, let handlers finish for *drain* seconds (``drain_timeout`` when None), give back the rest, end.

        Returns how many messages were interrupted. Calling it again with a shorter *drain* is safe.
        """
        if self._stopped:
            return 0
        self._stopped = True
        if not self._not_starting.is_set():
            if self._dispatcher is not None:
                self._dispatcher.fleet.kill()
            await self._not_starting.wait()  # it fails, and ends what it had begun
            return 0
        interrupted = 0
        try:
            if self._dispatcher is not None:
                interrupted = await self._dispatcher.stop(self.settings.drain_timeout if drain is None else drain)
        finally:
            await self._close()
        return interrupted

    def hurry(self) -> None:
        """While :meth:`stop` drains: stop waiting, give back what still runs."""
        if self._dispatcher is not None:
            self._dispatcher.hurry()

    async def _close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._dispatcher is not None:
            await self._dispatcher.fleet.end()
        for adapter in [*self._adapters.values(), *self._clients.values()]:
            try:
                await adapter.close()
            except Exception as error:  # noqa: BLE001 - the others must be closed all the same
                log.warning("a broker's connection did not close cleanly", broker=adapter.place, error=str(error))
        if self._dispatcher is not None:
            await self._dispatcher.settled()
        self._journal.flush()
        if self._ledger is not None:
            await self._ledger.close()
        if self._board is not None:
            self._board.close(unlink=True)
            self._board = None


def _in_flight(running: int) -> str:
    if not running:
        return "none in flight"
    return "1 running finishes in the old host" if running == 1 else f"{running} running finish in the old host"


def _quiet_collector() -> None:
    """Let the garbage collector look rarely: what a message takes is in no cycle, and thousands of them live at once.

    At its defaults it would look through all of them for every few hundred that come: a fifth of the time of a full load.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 100)


async def check_handlers(settings: Settings) -> tuple[list[Found], list[str]]:
    """Load all handlers in a host, run nothing: what was found, and what is wrong with the rest."""
    worker = Worker(settings, board=False)
    try:
        names = worker._bound(settings)
    except StartError as error:
        return [], [str(error)]
    dispatcher = Dispatcher(
        adapter=worker.adapter,
        sender=worker._sender,
        make_body=ProcessBody,
        board=None,
        journal=Journal(),
        ledger=None,
        processes=1,
        on_outcome=None,
    )
    try:
        generation = await dispatcher.load(settings, names)
    except LoadError as error:
        return [], error.problems
    found = [generation.found[name] for name in names]
    for host in generation.hosts():
        await host.leave()
    return found, _orders_refused([settings.queues[name] for name in names], settings)


def _orders_refused(queues: list[QueueSettings], settings: Settings) -> list[str]:
    """Queues in an order that their broker cannot keep. Nothing is connected."""
    lines = (refusal(queue, port.load(settings.brokers[queue.broker])) for queue in queues if is_ordered(queue))
    return [line for line in lines if line]
