"""The dispatcher: takes deliveries, gives them to hosts, judges what comes back, settles it. User code never runs here.

The hot path is `_deliver` → `_pump` → `_give`, then `_receive` → `_done` → the settler; all else is off it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from handrail import duration
from handrail.adapter import Adapter, Delivery
from handrail.board import ENDED, RUNNING, Board
from handrail.config.model import QueueSettings, Settings
from handrail.dispatcher import verdict
from handrail.dispatcher.hosts import Body, Host, LoadError
from handrail.dispatcher.lane import IsolatedPool, Lane
from handrail.dispatcher.settler import Judged, Settler, now
from handrail.dispatcher.verdict import Verdict
from handrail.errors import HandrailError, SendError
from handrail.ledger import Ledger
from handrail.logs import Journal
from handrail.message import Message
from handrail.outcome import Outcome
from handrail.pipe import Batch, End, Found, ToDispatcher, ToHost

log = structlog.get_logger("handrail")

_RUN, _CANCEL, _SENT = int(ToHost.RUN), int(ToHost.CANCEL), int(ToHost.SENT)
_DONE = int(ToDispatcher.DONE)
_COMPLETED, _FAILED, _REJECTED, _LATER, _UNFIT = (int(end) for end in End)

#: Seconds a cancelled job gets to unwind before its host is ended, where the host is about to end anyway.
UNWIND = 2.0
#: Seconds that an idle host for suspects is kept.
QUARANTINE_IDLE = 30.0
#: Seconds between two looks at what was cancelled from outside.
CANCELLATIONS_EVERY = 1.0

#: Told of every outcome once it is settled: message as delivered, verdict, result as JSON, seconds it ran.
OnOutcome = Callable[[Message, Verdict, bytes | None, float], None]


class Run:
    """One job in a host."""

    __slots__ = ("begun", "deadline", "delivery", "host", "lane", "limit", "slot", "token")

    def __init__(self, token: int, slot: int, lane: Lane, delivery: Delivery, host: Host, begun: float) -> None:
        self.token = token
        self.slot = slot
        self.lane = lane
        self.delivery = delivery
        self.host = host
        #: Monotonic seconds at which it was given to the host.
        self.begun = begun
        #: The timeout in seconds, and the monotonic time at which it runs out.
        self.limit: float | None = None
        self.deadline: float | None = None


class Generation:
    """The hosts of one state of the code: shared ones, one pool a queue that wants isolation, one for suspects."""

    def __init__(self, name: str, settings: Settings, queues: list[str]) -> None:
        self.name = name
        self.settings = settings
        self.queues = queues
        self.shared: list[Host] = []
        self.pools: dict[str, IsolatedPool] = {}
        self.quarantine: Host | None = None
        self.quarantine_starting = False
        self.found: dict[str, Found] = {}
        self.retired = False
        self.restarts = 0

    @property
    def hosts(self) -> list[Host]:
        pooled = [host for pool in self.pools.values() for host in pool.hosts]
        return [*self.shared, *pooled, *([self.quarantine] if self.quarantine is not None else [])]

    @property
    def common(self) -> list[str]:
        """The queues that the shared hosts serve."""
        return [name for name in self.queues if self.found[name].kind != "process"]


class Dispatcher:
    """See the module's docstring. One a worker; everything on one event loop."""

    def __init__(
        self,
        *,
        adapter_of: Callable[[str], Adapter],
        sender_of: Callable[[str], Any],
        make_body: Callable[[], Body],
        board: Board | None,
        journal: Journal,
        ledger: Ledger | None,
        processes: int,
        on_outcome: OnOutcome | None,
    ) -> None:
        self._adapter_of = adapter_of
        self._sender_of = sender_of
        self._make_body = make_body
        self._board = board
        self._journal = journal
        self._ledger = ledger
        self._processes = processes
        self._on_outcome = on_outcome
        self._loop = asyncio.get_running_loop()
        self.lanes: dict[str, Lane] = {}
        self._settlers: dict[int, Settler] = {}
        self.generation: Generation | None = None
        self._old: list[Generation] = []
        self._names = itertools.count(1)
        self._tokens = itertools.count(1)
        self._runs: dict[int, Run] = {}
        self._next_sweep: float | None = None
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._claims = 0
        self._sends = 0
        self._cancelled: set[tuple[str, str]] = set()
        self._suspect: Run | None = None
        self.paused = False
        self.stopping = False
        self._hurried = False
        self.last_message: Message | None = None

    # -- hosts ---------------------------------------------------------------------------------------------------------

    async def load(self, settings: Settings, queues: list[str]) -> Generation:
        """Start the hosts of a new generation and wait until they are ready. Raises LoadError; then nothing of it is left."""
        generation = Generation(f"{next(self._names)}", settings, queues)
        names = [name for name in queues if settings.queues[name].isolation != "process"]
        isolated = [name for name in queues if settings.queues[name].isolation == "process"]
        try:
            first = [self._new_host(generation, names)] if names else []
            # a host of its own for each isolated queue, so that its handler is known to load and the first job need not wait
            pools = [(name, self._new_host(generation, [name])) for name in isolated]
            more = [self._new_host(generation, names) for _ in range(self._processes - 1)] if names else []
            every = [*first, *(host for _, host in pools), *more]
            results = await asyncio.gather(*(host.start() for host in every), return_exceptions=True)
            problems: list[str] = []
            for result in results:
                if isinstance(result, LoadError):
                    problems += [problem for problem in result.problems if problem not in problems]
                elif isinstance(result, BaseException):
                    raise result
            if problems:
                raise LoadError(problems)
        except BaseException:
            for host in every:
                host.end()
            raise
        generation.shared = [*first, *more]
        for host in every:
            generation.found.update({found.queue: found for found in host.found})
        for name, host in pools:
            generation.pools[name] = IsolatedPool()
            generation.pools[name].hosts.append(host)
        return generation

    def _new_host(self, generation: Generation, queues: list[str]) -> Host:
        return Host(
            self._make_body(),
            generation.settings,
            queues,
            generation=generation.name,
            board=self._board,
            receive=self._receive,
            lost=self._host_lost,
        )

    async def switch(self, generation: Generation) -> None:
        """Let *generation* serve from now on: subscribe, adopt or leave queues, and let the old hosts finish what they run."""
        old, self.generation = self.generation, generation
        if old is not None:
            old.retired = True
            self._old.append(old)
        leaving, joining = [], []
        for name, lane in list(self.lanes.items()):
            queue = generation.settings.queues[name] if name in generation.queues else None
            if queue is None or lane.queue.spec != queue.spec or lane.queue.broker != queue.broker:
                leaving.append(
                    self.lanes.pop(name)
                )  # all before the first await: nothing may be pumped to hosts without it
            else:
                lane.adopt(queue, generation.found[name].kind)
        joining = [name for name in generation.queues if name not in self.lanes]
        await asyncio.gather(*(self._unsubscribe(lane) for lane in leaving))
        for name in joining:
            await self._subscribe(generation.settings.queues[name], generation.found[name].kind)
        if old is not None:
            for host in old.hosts:
                self._retire(host)
        for lane in self.lanes.values():
            self._pump(lane)

    async def _subscribe(self, queue: QueueSettings, kind: str) -> None:
        adapter = self._adapter_of(queue.broker)
        await adapter.declare([queue.spec])
        settler = self._settlers.get(id(adapter))
        if settler is None:
            settler = self._settlers[id(adapter)] = Settler(adapter, self._settled)
        lane = Lane(queue, kind, adapter, settler)
        self.lanes[queue.name] = lane

        def deliver(batch: list[Delivery]) -> None:
            self._deliver(lane, batch)

        def lost(batch: list[Delivery]) -> None:
            self._lost(lane, batch)

        lane.subscription = await adapter.subscribe(queue.spec, lane.window, deliver, lost)
        if self.paused:
            lane.subscription.pause()

    async def _unsubscribe(self, lane: Lane) -> None:
        """Take no more of that queue; give back what waits here. What runs goes on and is settled."""
        if lane.subscription is not None:
            await lane.subscription.cancel()
        self._give_back(lane)

    def _give_back(self, lane: Lane) -> None:
        for delivery in [*lane.suspects, *lane.buffer]:
            self._judge(lane, delivery, verdict.UNSTARTED)
        lane.buffer.clear()
        lane.suspects.clear()

    def _retire(self, host: Host) -> None:
        """No new work for *host*; it ends when what it runs has ended."""
        host.draining = True
        if not host.runs and not host.ended and not host.ending:
            host.ending = True
            self._spawn(self._leave(host))

    async def _leave(self, host: Host) -> None:
        if host.lingering:
            # what timed out or was cancelled has its outcome already; it gets a moment to unwind
            until = time.monotonic() + UNWIND
            while host.lingering and not host.ended and time.monotonic() < until:
                await asyncio.sleep(0.02)
        await host.leave()

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background step of the worker failed", error=repr(error), exc_info=error)

    # -- the hot path --------------------------------------------------------------------------------------------------

    def _deliver(self, lane: Lane, batch: list[Delivery]) -> None:
        plain = lane.buffer
        claims: list[Delivery] | None = None
        for delivery in batch:
            message = delivery.message
            if message.crashes and not lane.isolated:
                lane.suspects.append(delivery)
            elif message.send and self._ledger is not None:
                claims = claims or []
                claims.append(delivery)
            else:
                plain.append(delivery)
        if claims:
            self._claims += 1
            self._spawn(self._claim(lane, claims))
        self._pump(lane)

    def _pump(self, lane: Lane) -> None:
        """Give as many as there are slots for."""
        if self.stopping or self.paused or self.lanes.get(lane.queue.name) is not lane:
            return
        if lane.suspects:
            self._next_suspect(lane)
        buffer = lane.buffer
        while buffer and lane.running < lane.capacity:
            host = self._pick(lane)
            if host is None:
                return
            delivery = buffer.popleft()
            message = delivery.message
            queue = lane.queue
            if message.crashes or (message.starts == 0 and (queue.expires is not None or message.options is not None)):
                early = verdict.before_start(message, queue, now())
                if early is not None:
                    self._judge(lane, delivery, early)
                    continue
            if self._cancelled and (message.queue, message.id) in self._cancelled:
                self._judge(lane, delivery, verdict.CANCELLED)
                continue
            self._give(lane, delivery, host)

    def _pick(self, lane: Lane) -> Host | None:
        """A host that may take a job of *lane* now; None when none is ready (a start is under way then)."""
        generation = self.generation
        assert generation is not None
        if lane.isolated:
            return self._pick_isolated(generation, lane)
        best = None
        for host in generation.shared:
            if host.ready and not host.draining and (best is None or len(host.runs) < len(best.runs)):
                best = host
        return best

    def _give(self, lane: Lane, delivery: Delivery, host: Host) -> Run:
        message = delivery.message
        token = next(self._tokens)
        board = self._board
        slot = board.take(message.queue, message.id, message.crashes) if board is not None else -1
        begun = time.monotonic()
        run = Run(token, slot, lane, delivery, host, begun)
        options = message.options
        limit = options.timeout if options is not None and options.timeout is not None else lane.queue.timeout
        deadline = None
        if limit is not None:
            run.limit = limit
            run.deadline = deadline = begun + limit
            if self._next_sweep is None or deadline < self._next_sweep:
                self._sweep_at(deadline)
        lane.running += 1
        host.runs[token] = run
        self._runs[token] = run
        host.send(
            [
                _RUN,
                token,
                slot,
                host.index[lane.queue.name],
                message.body,
                (
                    message.id,
                    message.attempts + 1,
                    message.starts + 1,
                    message.crashes,
                    message.sent_at,
                    message.content_type,
                    message.priority,
                    message.key,
                    message.headers,
                    deadline,
                ),
            ]
        )
        return run

    def _receive(self, host: Host, batch: Batch) -> None:
        touched: set[Lane] = set()
        for message in batch:
            if message[0] == _DONE:
                run = host.runs.get(message[1])
                if run is None:
                    self._late(host, message)
                    continue
                touched.add(run.lane)
                self._done(run, message)
            else:
                self._other(host, message)
        for lane in touched:
            self._pump(lane)
        if host.draining and not host.runs:
            self._retire(host)

    def _done(self, run: Run, message: list[Any]) -> None:
        end = message[2]
        if end == _COMPLETED:
            self._end_run(run, verdict.COMPLETED, message[3])
            return
        lane = run.lane
        subject = run.delivery.message
        if end == _FAILED:
            name, text, trace, rule = message[3:7]
            reason = f"{name}: {text}" if name and text else name or text
            rules = lane.queue.errors
            matched = rules[rule] if 0 <= rule < len(rules) else None
            ruling = verdict.failed(subject, lane.queue, now(), reason, trace, matched)
        elif end == _REJECTED:
            ruling = verdict.rejected(subject, lane.queue, now(), message[3], message[4])
        elif end == _LATER:
            ruling = verdict.later(subject, lane.queue, now(), message[3])
        else:
            ruling = verdict.unfit(subject, lane.queue, now(), message[3])
        self._end_run(run, ruling)

    def _end_run(self, run: Run, ruling: Verdict, result: bytes | None = None, *, freed: bool = True) -> None:
        """*run* has its outcome. Unless *freed*, something of it may still run in its host: its slot stays taken there."""
        lane = run.lane
        del self._runs[run.token]
        del run.host.runs[run.token]
        if not freed:
            run.host.lingering[run.token] = run
            if self._board is not None:
                self._board.mark(run.slot, ENDED)
        elif self._board is not None:
            self._board.give_back(run.slot)
        if run is self._suspect:
            self._suspect = None
            self._spawn(self._after_suspect())
        lane.finished()
        lane.settler.add(
            Judged(run.delivery, lane.queue, ruling, seconds=time.monotonic() - run.begun, result=result, started=True)
        )

    def _judge(self, lane: Lane, delivery: Delivery, ruling: Verdict) -> None:
        """An outcome for what never started."""
        lane.settler.add(Judged(delivery, lane.queue, ruling))

    def _settled(self, judged: Judged, refused: bool) -> None:
        message = judged.delivery.message
        ruling = judged.verdict
        if refused:
            if judged.started:
                self._journal.job(
                    Outcome.REFUSED,
                    message.queue,
                    message.id,
                    message.attempts + 1,
                    judged.seconds,
                    reason=f"was {ruling.outcome}, but the message was no longer this worker's",
                )
            return
        if ruling is verdict.UNSTARTED:
            return
        self._journal.job(
            ruling.outcome,
            message.queue,
            message.id,
            message.attempts + 1,
            judged.seconds,
            reason=ruling.reason,
            traceback=ruling.traceback,
            next_in=ruling.next_in,
        )
        if judged.started:
            self.last_message = message
        if self._ledger is not None and (message.send or judged.result is not None):
            self._record(message, ruling, judged.result)
        if self._on_outcome is not None:
            self._on_outcome(message, ruling, judged.result, judged.seconds)

    # -- off the hot path ----------------------------------------------------------------------------------------------

    def _record(self, message: Message, ruling: Verdict, result: bytes | None) -> None:
        if ruling.outcome in _FINAL and self._ledger is not None:
            self._ledger.finish(message.queue, message.id, ruling.outcome, result=result, error=ruling.reason, at=now())

    async def _claim(self, lane: Lane, deliveries: list[Delivery]) -> None:
        """Ask the ledger which of *deliveries*, whose senders chose their ids, were sent before under the same id."""
        assert self._ledger is not None
        try:
            duplicates = await self._ledger.claim([(d.message.queue, d.message.id, d.message.send) for d in deliveries])
        except HandrailError as error:
            log.warning("the ledger cannot be asked for duplicates; the messages are handled", error=str(error))
            duplicates = set()
        finally:
            self._claims -= 1
        if self.lanes.get(lane.queue.name) is not lane:
            for delivery in deliveries:
                self._judge(lane, delivery, verdict.UNSTARTED)
            return
        for at, delivery in enumerate(deliveries):
            if at in duplicates:
                self._judge(lane, delivery, verdict.DUPLICATE)
            else:
                lane.buffer.append(delivery)
        self._pump(lane)

    def _late(self, host: Host, message: list[Any]) -> None:
        """An outcome for a job that has one already: timed out, cancelled, or taken away."""
        run = host.lingering.pop(message[1], None)
        if run is None:
            return
        self._release_slot(run)
        log.warning(
            "a late outcome was ignored: the job had its outcome already",
            queue=run.delivery.message.queue,
            id=run.delivery.message.id,
        )

    def _release_slot(self, run: Run) -> None:
        if self._board is not None and run.slot >= 0:
            self._board.give_back(run.slot)

    def _other(self, host: Host, message: list[Any]) -> None:
        match message[0]:
            case ToDispatcher.FREED:
                run = host.lingering.pop(message[1], None)
                if run is not None:
                    self._release_slot(run)
                    if run.lane.isolated:
                        self._pump(run.lane)
                if host.abandoned and run is not None and run.lane.kind == "thread":
                    host.abandoned -= 1
            case ToDispatcher.ABANDONED:
                run = host.lingering.get(message[1])
                if run is not None:
                    self._abandoned(host, run)
            case ToDispatcher.PONG:
                host.pong()
                if host.silent:
                    host.silent = False
                    log.info("the host answers again", pid=host.pid)
            case ToDispatcher.SEND:
                self._sends += 1
                self._spawn(self._send(host, message[1], message[2]))
            case ToDispatcher.PROGRESS:
                pass  # kept by a ledger that records jobs in detail; this one keeps outcomes
            case ToDispatcher.LOG:
                run = host.runs.get(message[1]) or host.lingering.get(message[1])
                subject = run.delivery.message if run is not None else None
                getattr(log, message[3], log.info)(
                    message[2], queue=subject.queue if subject else None, id=subject.id if subject else None
                )
            case ToDispatcher.SAY:
                getattr(log, message[1], log.info)(message[2], **message[3])

    def _abandoned(self, host: Host, run: Run) -> None:
        """A thread that cannot be stopped holds on. Too many of them, and the host is replaced."""
        host.abandoned += 1
        log.warning(
            "a thread was abandoned: it runs on, for a thread cannot be stopped; isolation: process can",
            queue=run.lane.queue.name,
            id=run.delivery.message.id,
            abandoned=host.abandoned,
        )
        generation = self.generation
        if host.abandoned >= run.lane.capacity and generation is not None and host in generation.shared:
            log.warning("the host is replaced: as many threads are abandoned as may run", pid=host.pid)
            generation.shared.remove(host)
            self._spawn(self._start_shared(generation, then=host))

    async def _send(self, host: Host, number: int, encoded: bytes) -> None:
        """Publish what a handler sent, and tell its host what became of it."""
        messages = msgspec.msgpack.decode(encoded, type=list[Message])
        failures: dict[int, str] = {}
        try:
            settings = host.settings
            by_broker: dict[str, list[int]] = {}
            for at, message in enumerate(messages):
                by_broker.setdefault(settings.queues[message.queue].broker, []).append(at)
            for broker, indexes in by_broker.items():
                adapter = await self._sender_of(broker)
                errors: dict[int, SendError] = await adapter.publish(
                    [messages[at] for at in indexes], settings.send_timeout
                )
                failures.update({indexes[at]: str(error) for at, error in errors.items()})
        except Exception as error:  # noqa: BLE001 - the handler that sent must hear of it, whatever it was
            log.error("messages sent by a handler were not stored", error=str(error), messages=len(messages))
            failures = {at: str(error) for at in range(len(messages))}
        finally:
            self._sends -= 1
        host.send([_SENT, number, [list(item) for item in failures.items()]])

    # -- isolation and suspects ----------------------------------------------------------------------------------------

    def _pick_isolated(self, generation: Generation, lane: Lane) -> Host | None:
        pool = generation.pools.get(lane.queue.name)
        if pool is None:
            pool = generation.pools[lane.queue.name] = IsolatedPool()
        host = pool.idle()
        if host is None and len(pool.hosts) + pool.starting < lane.capacity + _replacements(pool):
            pool.starting += 1
            self._spawn(self._start_isolated(generation, pool, lane))
        return host

    async def _start_isolated(self, generation: Generation, pool: IsolatedPool, lane: Lane) -> None:
        host = self._new_host(generation, [lane.queue.name])
        try:
            await host.start()
        except LoadError as error:
            log.error("a host for an isolated handler did not start", queue=lane.queue.name, error=str(error))
            await asyncio.sleep(1.0)
        else:
            pool.hosts.append(host)
        finally:
            pool.starting -= 1
        if generation.retired or self.stopping:
            self._retire(host)
        elif self.lanes.get(lane.queue.name) is lane:
            self._pump(lane)

    def _next_suspect(self, lane: Lane) -> None:
        """Run the first suspect of *lane*, if nothing suspect runs: alone in a host that no bystander shares."""
        if self._suspect is not None or lane.running >= lane.capacity:
            return
        generation = self.generation
        assert generation is not None
        while lane.suspects:
            message = lane.suspects[0].message
            early = verdict.before_start(message, lane.queue, now())
            if early is None and (message.queue, message.id) in self._cancelled:
                early = verdict.CANCELLED
            if early is None:
                break
            self._judge(lane, lane.suspects.popleft(), early)
        if not lane.suspects:
            return
        host = generation.quarantine
        if host is None or not host.ready or host.draining:
            if not generation.quarantine_starting:
                generation.quarantine_starting = True
                self._spawn(self._start_quarantine(generation))
            return
        self._suspect = self._give(lane, lane.suspects.popleft(), host)

    async def _start_quarantine(self, generation: Generation) -> None:
        host = self._new_host(generation, generation.common)
        try:
            await host.start()
        except LoadError as error:
            log.error("the host for messages whose process died did not start", error=str(error))
            await asyncio.sleep(1.0)
        else:
            generation.quarantine = host
        finally:
            generation.quarantine_starting = False
        if generation.retired or self.stopping:
            self._retire(host)
        self._pump_suspects()

    async def _after_suspect(self) -> None:
        self._pump_suspects()
        await asyncio.sleep(QUARANTINE_IDLE)
        generation = self.generation
        if generation is not None and generation.quarantine is not None and self._suspect is None:
            host, generation.quarantine = generation.quarantine, None
            self._retire(host)

    def _pump_suspects(self) -> None:
        for lane in self.lanes.values():
            if lane.suspects:
                self._pump(lane)

    # -- timeouts and cancellation -------------------------------------------------------------------------------------

    def _sweep_at(self, deadline: float) -> None:
        self._next_sweep = deadline
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        # a little after the deadline, so that one look finds it passed
        self._sweep_handle = self._loop.call_later(max(deadline - time.monotonic(), 0) + 0.005, self._sweep)

    def _sweep(self) -> None:
        self._next_sweep = None
        self._sweep_handle = None
        moment = time.monotonic()
        earliest: float | None = None
        touched: set[Lane] = set()
        for run in list(self._runs.values()):
            if run.deadline is None:
                continue
            if run.deadline <= moment:
                if self._board is not None and self._board.state(run.slot) not in (RUNNING, ENDED):
                    # handed over but not begun (its host is busy): its time has not started to run
                    run.deadline = moment + (run.limit or 0.0)
                else:
                    self._time_out(run)
                    touched.add(run.lane)
                    continue
            if earliest is None or run.deadline < earliest:
                earliest = run.deadline
        if earliest is not None:
            self._sweep_at(earliest)
        for lane in touched:
            self._pump(lane)

    def _time_out(self, run: Run) -> None:
        assert run.limit is not None
        lane = run.lane
        reason = f"callback not called within {duration.text(run.limit)}"
        ruling = verdict.failed(run.delivery.message, lane.queue, now(), reason)
        if lane.isolated:
            # a process is really stopped: its whole group is killed, and another takes its place
            self._end_run(run, ruling)
            self._drop_isolated(run.host)
            return
        self._end_run(run, ruling, freed=False)
        run.host.send([_CANCEL, run.token, "timeout"])

    def _drop_isolated(self, host: Host) -> None:
        for generation in (self.generation, *self._old):
            if generation is not None:
                for pool in generation.pools.values():
                    if host in pool.hosts:
                        pool.hosts.remove(host)
        host.end()

    async def watch_cancellations(self) -> None:
        """Follow what is cancelled from outside, through the ledger."""
        if self._ledger is None:
            return
        while not self.stopping:
            self._cancelled = await self._ledger.cancelled()
            if self._cancelled:
                for run in list(self._runs.values()):
                    message = run.delivery.message
                    if (message.queue, message.id) in self._cancelled:
                        self._cancel(run)
            await asyncio.sleep(CANCELLATIONS_EVERY)

    def _cancel(self, run: Run) -> None:
        lane = run.lane
        if lane.isolated:
            self._end_run(run, verdict.CANCELLED)
            self._drop_isolated(run.host)
        else:
            self._end_run(run, verdict.CANCELLED, freed=False)
            run.host.send([_CANCEL, run.token, "cancelled"])
        self._pump(lane)

    # -- deaths --------------------------------------------------------------------------------------------------------

    def _host_lost(self, host: Host, how: str) -> None:
        """A host is gone. What it was running is suspect; what was only handed over is a bystander's."""
        runs, lingering = list(host.runs.values()), list(host.lingering.values())
        host.lingering.clear()
        for run in lingering:
            self._release_slot(run)
        expected = host.ending
        generation = next((g for g in (self.generation, *self._old) if g is not None and host in g.hosts), None)
        guilty = 0
        for run in reversed(runs):
            state = self._board.state(run.slot) if self._board is not None else RUNNING
            if expected:
                self._end_run(run, verdict.interrupted(run.delivery.message, "the worker stopped"))
            elif state == RUNNING:
                guilty += 1
                self._end_run(run, verdict.crashed(run.delivery.message, run.lane.queue, now(), how))
            elif state == ENDED:
                # it had ended, but how was not heard: it has to run again, though not as a suspect
                self._end_run(run, verdict.interrupted(run.delivery.message, f"its process died ({how})"))
            else:
                self._take_back(run)
        if not expected:
            log.error("a host died", pid=host.pid, how=how, running=guilty, handed_over=len(runs) - guilty)
        if generation is not None:
            self._forget(generation, host, restart=not expected)
        for lane in {run.lane for run in runs}:
            self._pump(lane)

    def _take_back(self, run: Run) -> None:
        """*run* never began: it waits again as if it had not been handed over."""
        del self._runs[run.token]
        del run.host.runs[run.token]
        if self._board is not None:
            self._board.give_back(run.slot)
        run.lane.running -= 1
        if run is self._suspect:
            self._suspect = None
            run.lane.suspects.appendleft(run.delivery)
        else:
            run.lane.buffer.appendleft(run.delivery)

    def _forget(self, generation: Generation, host: Host, *, restart: bool) -> None:
        if host is generation.quarantine:
            generation.quarantine = None
            return
        for pool in generation.pools.values():
            if host in pool.hosts:
                pool.hosts.remove(host)
                return
        if host in generation.shared:
            generation.shared.remove(host)
            if restart and generation is self.generation and not self.stopping:
                self._spawn(self._start_shared(generation))
        if generation.retired and not generation.hosts and generation in self._old:
            self._old.remove(generation)

    async def _start_shared(self, generation: Generation, then: Host | None = None) -> None:
        """Start one more shared host, again and again with growing pauses until it is up; then retire *then*."""
        while generation is self.generation and not self.stopping:
            if generation.restarts:
                await asyncio.sleep(min(0.1 * 2 ** (generation.restarts - 1), 30.0))
            generation.restarts += 1
            host = self._new_host(generation, generation.common)
            try:
                await host.start()
            except LoadError as error:
                log.error("a host did not start; it is tried again", error=str(error))
                continue
            generation.shared.append(host)
            if generation.retired or self.stopping:
                self._retire(host)
                break
            self._loop.call_later(30.0, self._calm, generation)
            for lane in self.lanes.values():
                self._pump(lane)
            break
        if then is not None:
            self._retire(then)

    def _calm(self, generation: Generation) -> None:
        """A host has lived for a while: the next death is answered at once again."""
        generation.restarts = max(0, generation.restarts - 1)

    def check_silent(self) -> None:
        """Name hosts that answer no ping, with what they run."""
        for generation in (self.generation, *self._old):
            for host in generation.hosts if generation is not None else ():
                if host.ready and not host.silent and host.seconds_silent > 10.0:
                    host.silent = True
                    handlers = sorted(
                        {f"{run.lane.queue.name} ({run.lane.queue.handler})" for run in host.runs.values()}
                    )
                    log.warning(
                        "a host does not answer: a handler blocks its event loop, or holds the GIL",
                        pid=host.pid,
                        seconds=round(host.seconds_silent),
                        running=handlers,
                    )

    def _lost(self, lane: Lane, batch: list[Delivery]) -> None:
        """The broker took *batch* away from us. What waits is dropped; what runs may finish, and its outcome is refused."""
        gone = {id(delivery) for delivery in batch}
        for waiting in (lane.buffer, lane.suspects):
            kept = [delivery for delivery in waiting if id(delivery) not in gone]
            waiting.clear()
            waiting.extend(kept)

    # -- pausing and stopping ------------------------------------------------------------------------------------------

    def pause(self) -> None:
        self.paused = True
        for lane in self.lanes.values():
            if lane.subscription is not None:
                lane.subscription.pause()

    def resume(self) -> None:
        self.paused = False
        for lane in self.lanes.values():
            if lane.subscription is not None:
                lane.subscription.resume()
            self._pump(lane)

    @property
    def running(self) -> int:
        return len(self._runs)

    @property
    def idle(self) -> bool:
        """Whether nothing waits, runs, or is being settled or sent here. The broker may still hold messages."""
        return not (
            self._runs
            or self._claims
            or self._sends
            or any(lane.buffer or lane.suspects for lane in self.lanes.values())
            or any(settler.busy for settler in self._settlers.values())
        )

    async def stop(self, drain: float) -> int:
        """Take nothing new, let what runs finish for *drain* seconds, give the rest back. Returns how many were interrupted."""
        self.stopping = True
        lanes = list(self.lanes.values())
        self.lanes.clear()
        await asyncio.gather(*(self._unsubscribe(lane) for lane in lanes))
        until = time.monotonic() + drain
        while (self._runs or self._sends or self._claims) and time.monotonic() < until and not self._hurried:
            await asyncio.sleep(0.01)
        left = list(self._runs.values())
        for run in left:
            ruling = verdict.interrupted(run.delivery.message, f"still running after {duration.text(drain)} of drain")
            self._end_run(run, ruling, freed=False)
            run.host.send([_CANCEL, run.token, "drain"])
        for lane in lanes:
            self._give_back(lane)
        for settler in self._settlers.values():
            await settler.flushed()
        generations = [g for g in (self.generation, *self._old) if g is not None]
        hosts = [host for g in generations for host in g.hosts if not host.ended]
        for host in hosts:
            host.ending = True
        await asyncio.gather(*(self._leave(host) for host in hosts))
        for settler in self._settlers.values():
            await settler.flushed()
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return len(left)

    def hurry(self) -> None:
        """While :meth:`stop` waits: wait no longer."""
        self._hurried = True

    def end(self) -> None:
        """Kill all hosts now."""
        for generation in (self.generation, *self._old):
            for host in generation.hosts if generation is not None else ():
                host.end()


_FINAL = frozenset({Outcome.COMPLETED, Outcome.DEAD, Outcome.EXPIRED, Outcome.CANCELLED})


def _replacements(pool: IsolatedPool) -> int:
    """Hosts of *pool* that are on their way out: they count no more against its size."""
    return sum(1 for host in pool.hosts if host.draining or host.ended)
