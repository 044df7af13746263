"""The dispatcher: takes deliveries, gives them to hosts, judges what comes back, settles it. User code never runs here.

The hot path is `_deliver` → `_pump` → `_give`, then `_receive` → `_done` → `_end` → the settler; all else is off it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from handrail import duration
from handrail.adapter import Adapter, Delivery, Verb
from handrail.board import COMPLETED, ENDED, RUNNING, Board
from handrail.config.model import QueueSettings, Settings
from handrail.dispatcher import verdict
from handrail.dispatcher.deadlines import Deadlines
from handrail.dispatcher.fleet import Fleet, Generation
from handrail.dispatcher.hosts import Body, Host
from handrail.dispatcher.lane import Lane
from handrail.dispatcher.run import Run
from handrail.dispatcher.sequences import Sequences, is_ordered, limit_of, refusal
from handrail.dispatcher.settler import Judged, Settler, now
from handrail.dispatcher.tasks import Tasks
from handrail.dispatcher.verdict import Verdict
from handrail.errors import BrokerError, HandrailError, StartError
from handrail.ledger import Ledger
from handrail.logger import get_logger
from handrail.logs import Journal
from handrail.message import Message
from handrail.outcome import Outcome
from handrail.pipe import Batch, End, ToDispatcher, ToHost

log = get_logger("handrail")

_RUN, _CANCEL, _SENT = int(ToHost.RUN), int(ToHost.CANCEL), int(ToHost.SENT)
_DONE = int(ToDispatcher.DONE)
_COMPLETED, _FAILED, _REJECTED, _LATER = int(End.COMPLETED), int(End.FAILED), int(End.REJECTED), int(End.LATER)

#: Seconds between two looks at what was cancelled from outside.
CANCELLATIONS_EVERY = 1.0
#: Seconds that the broker gets, while the worker stops, to take what it is told; and when it stops in a hurry.
BROKER_PATIENCE, HURRIED_PATIENCE = 5.0, 1.0
#: Seconds without an answer to a ping after which a host is named in the log.
SILENT = 10.0

#: Seconds without a look round after which this process must have stood still, as a frozen container or machine does, and what
#: was in its hands may be others' by now; and seconds for the brokers to say so at most, before anything of it is begun.
STOOD_STILL, HEARING = 4.0, 10.0
#: Seconds after which a look round comes too late to judge by it how fast handlers are.
LATE = 2.0

#: Told of every outcome once it is settled: message as delivered, verdict, result as JSON, seconds it ran.
OnOutcome = Callable[[Message, Verdict, bytes | None, float], None]


class Dispatcher:
    """See the module's docstring. One a worker; everything on one event loop."""

    def __init__(
        self,
        *,
        adapter: Callable[[str], Adapter],
        sender: Callable[[str], Awaitable[Adapter]],
        make_body: Callable[[], Body],
        board: Board | None,
        journal: Journal,
        ledger: Ledger | None,
        processes: int,
        on_outcome: OnOutcome | None,
    ) -> None:
        self._adapter = adapter
        self._sender = sender
        self._board = board
        self._journal = journal
        self._ledger = ledger
        self._on_outcome = on_outcome
        self.lanes: dict[str, Lane] = {}
        self._settlers: dict[int, Settler] = {}
        #: By queue. They outlive a lane: what still runs keeps what follows it from running in the next.
        self._sequences: dict[str, Sequences] = {}
        self._tokens = itertools.count(1)
        self._runs: dict[int, Run] = {}
        self._deadlines = Deadlines(self._runs, board, self._timed_out)
        self.fleet = Fleet(
            make_body=make_body,
            board=board,
            processes=processes,
            receive=self._receive,
            lost=self._host_lost,
            ready=self._pump_all,
        )
        self._tasks = Tasks("a step of the dispatcher")
        self._cancelled: set[tuple[str, str]] = set()
        self._suspect: Run | None = None
        self.paused = False
        #: Until when what waits here is surely ours, in monotonic seconds; for ever where nobody looks round.
        self._sure_until = math.inf
        self._waking = False
        self.stopping = False
        self._hurried = False
        #: The last message that was handled, for "send it again".
        self.last_message: Message | None = None

    # -- what is served ------------------------------------------------------------------------------------------------

    async def load(self, settings: Settings, queues: list[str]) -> Generation:
        """Start hosts for *queues* and wait until they are ready. Raises LoadError; then nothing of them is left."""
        return await self.fleet.load(settings, queues)

    async def switch(self, generation: Generation) -> None:
        """Let *generation* serve from now on: subscribe, adopt or leave queues, and let the old hosts finish what they run.

        Raises HandrailError with nothing changed and *generation* ended when the broker will not have its queues. Once
        it serves, a queue that cannot be subscribed to does not keep the others: the error follows when all is done.
        """
        try:
            await self._declare(generation)
            if self.stopping:
                raise StartError("the worker stops: what was loaded is not used any more")
        except BaseException:
            await self.fleet.discard(generation)
            raise
        leaving: list[Lane] = []
        self.fleet.promote(generation)
        for name, lane in list(self.lanes.items()):
            queue = generation.settings.queues[name] if name in generation.queues else None
            if queue is None or lane.queue.spec != queue.spec or lane.queue.broker != queue.broker:
                leaving.append(self.lanes.pop(name))  # all before the first await: nothing may go to hosts without it
            else:
                lane.adopt(queue, generation.found[name].kind)
        problems: list[str] = []
        try:
            left = await asyncio.gather(*(self._unsubscribe(lane) for lane in leaving), return_exceptions=True)
            problems += [str(error) for error in left if isinstance(error, Exception)]
            for name in generation.queues:
                if name not in self.lanes and not self.stopping:
                    try:
                        await self._subscribe(generation.settings.queues[name], generation.found[name].kind)
                    except HandrailError as error:
                        self.lanes.pop(name, None)  # so that the next reload tries again
                        problems.append(f"queue {name} is not served: {error}")
        finally:
            self.fleet.retire_old()
            self._pump_all()
        if problems:
            raise BrokerError("\n".join(problems))

    async def _declare(self, generation: Generation) -> None:
        """Make sure that the queues which *generation* brings anew exist."""
        for name in generation.queues:
            queue, lane = generation.settings.queues[name], self.lanes.get(name)
            if lane is None or lane.queue.spec != queue.spec or lane.queue.broker != queue.broker:
                adapter = self._adapter(queue.broker)
                if why := refusal(queue, adapter):
                    raise StartError(why)
                await adapter.declare([queue.spec])

    async def _subscribe(self, queue: QueueSettings, kind: str) -> None:
        adapter = self._adapter(queue.broker)
        settler = self._settlers.get(id(adapter))
        if settler is None:
            settler = self._settlers[id(adapter)] = Settler(adapter, self._settled)
        sequences = None
        if is_ordered(queue):
            sequences = self._sequences.setdefault(queue.name, Sequences())
            if limit := limit_of(queue, adapter):
                log.info(f"order: {queue.order} holds {limit}", queue=queue.name, broker=adapter.name)  # noqa: G004
        lane = Lane(queue, kind, settler, sequences)
        self.lanes[queue.name] = lane

        def deliver(batch: list[Delivery]) -> None:
            self._deliver(lane, batch)

        def lost(batch: list[Delivery]) -> None:
            for delivery in lane.forget(batch):
                self._go_on(lane, delivery)

        def recall(batch: list[Delivery]) -> None:
            for delivery in lane.take_waiting(batch):
                self._judge(lane, delivery, verdict.UNSTARTED)
            lane.fit()

        if self._ledger is not None:
            self._cancelled = await self._ledger.cancelled()  # what was cancelled while it waited must not begin
        lane.subscription = await adapter.subscribe(queue.spec, lane.window, deliver, lost, recall)
        if self.paused:
            lane.subscription.pause()

    async def _unsubscribe(self, lane: Lane) -> None:
        """Take no more of that queue; give back what waits here. What runs goes on and is settled."""
        if lane.subscription is not None:
            await lane.subscription.cancel()
        for delivery in lane.take_waiting():
            self._judge(lane, delivery, verdict.UNSTARTED)

    # -- the hot path --------------------------------------------------------------------------------------------------

    def _deliver(self, lane: Lane, batch: list[Delivery]) -> None:
        if lane.sequences is not None:
            batch = [delivery for delivery in lane.sequences.admit(batch) if not self._rests(lane, delivery)]
            lane.fit()
        self._take(lane, batch)

    def _take(self, lane: Lane, batch: list[Delivery]) -> None:
        # behind one that waits for the ledger the others wait too, or they would overtake it
        waiting = lane.unclaimed if lane.claiming else lane.buffer
        for delivery in batch:
            message = delivery.message
            if message.crashes and not lane.isolated:
                if not lane.suspects:
                    lane.suspects_since = time.monotonic()
                lane.suspects.append(delivery)
                continue
            if message.send and not lane.claiming and self._ledger is not None:
                lane.claiming = True
                waiting = lane.unclaimed
                self._tasks.spawn(self._claim(lane, self._ledger))
            waiting.append(delivery)
        self._pump(lane)

    def _pump(self, lane: Lane) -> None:
        """Give hosts as many as there are slots for."""
        if self.stopping or self.paused or self.lanes.get(lane.queue.name) is not lane:
            return
        if time.monotonic() > self._sure_until:
            self._wake_up()
            return
        if lane.suspects:
            self._pump_suspects(lane)
        waiting = lane.buffer
        while waiting and lane.running < lane.capacity:
            host = self.fleet.pick(lane)
            if host is None:
                return
            delivery = waiting.popleft()
            message = delivery.message
            # the first test is the cheap one that lets nearly everything pass
            if (message.starts == 0 or message.crashes or self._cancelled) and (
                early := self._before_start(lane, message)
            ) is not None:
                self._judge(lane, delivery, early)
                continue
            self._give(lane, delivery, host)

    def _before_start(self, lane: Lane, message: Message) -> Verdict | None:
        if self._cancelled and (message.queue, message.id) in self._cancelled:
            return verdict.CANCELLED
        if message.crashes or message.options is not None or lane.queue.expires is not None:
            return verdict.before_start(message, lane.queue, now())
        return None

    def _give(self, lane: Lane, delivery: Delivery, host: Host) -> Run | None:
        """Hand it over. None when the pipe cannot carry it: then it has its outcome already."""
        message = delivery.message
        token = next(self._tokens)
        board = self._board
        slot = board.take(message.queue, message.id, message.crashes, message.send) if board is not None else -1
        begun = time.monotonic()
        run = Run(token, slot, lane, delivery, host, begun)
        options = message.options
        limit = options.timeout if options is not None and options.timeout is not None else lane.queue.timeout
        if limit is not None:
            run.limit = limit
            run.deadline = begun + limit
        lane.running += 1
        host.runs[token] = self._runs[token] = run
        if run.deadline is not None:
            self._deadlines.watch(run.deadline)
        try:
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
                        run.deadline,
                    ),
                ]
            )
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            # a header that is no text or number, say: no retry can mend it
            self._end(run, verdict.unfit(message, lane.queue, now(), f"it cannot be given to a handler: {error}"))
            return None
        return run

    def _receive(self, host: Host, batch: Batch) -> None:
        touched: set[Lane] = set()
        for message in batch:
            if message[0] == _DONE:
                run = host.runs.get(message[1])
                if run is None:
                    self._late(host, message[1])
                    continue
                touched.add(run.lane)
                self._done(run, message)
            else:
                try:
                    self._other(host, message)
                except Exception:  # one word of a host must not cost the others in its batch
                    log.exception("what a host said was not understood", pid=host.pid)
        for lane in touched:
            self._pump(lane)
        if host.draining and not host.runs:
            self.fleet.retire(host)

    def _done(self, run: Run, message: list[Any]) -> None:
        end = message[2]
        if end == _COMPLETED:
            self._end(run, verdict.COMPLETED, message[3])
            return
        try:
            ruling = self._ruling(run, end, message)
        except Exception as error:  # whatever a message brings along, it harms no other
            log.exception("an outcome could not be judged", id=run.delivery.message.id)
            reason = f"its outcome could not be judged: {error!r}"
            ruling = verdict.rejected(run.delivery.message, run.lane.queue, now(), reason)
        self._end(run, ruling)

    @staticmethod
    def _ruling(run: Run, end: int, message: list[Any]) -> Verdict:
        queue = run.lane.queue
        subject = run.delivery.message
        if end == _FAILED:
            name, text, trace, rule = message[3:7]
            reason = f"{name}: {text}" if name and text else name or text
            matched = queue.errors[rule] if 0 <= rule < len(queue.errors) else None
            return verdict.failed(subject, queue, now(), reason, trace, matched)
        if end == _REJECTED:
            return verdict.rejected(subject, queue, now(), message[3], message[4])
        if end == _LATER:
            return verdict.later(subject, queue, now(), message[3])
        return verdict.unfit(subject, queue, now(), message[3])

    def _end(self, run: Run, ruling: Verdict, result: bytes | None = None, *, lingers: bool = False) -> None:
        """*run* has its outcome and frees its slot. If it *lingers*, something of it may still run in its host."""
        self._take_from(run)
        slot = run.slot
        if lingers:
            run.host.lingering[run.token] = run
            slot = -1
        lane = run.lane
        lane.finished()
        if run.delivery.sequence is not None and ruling.message is not None and ruling.verb is not Verb.DEAD:
            ruling = self._in_place(lane, ruling)
        seconds = time.monotonic() - run.begun
        # the slot on the board stays until it is settled: until then, what it says is news to whoever survives us
        lane.settler.add(
            Judged(run.delivery, lane.queue, ruling, seconds=seconds, result=result, started=True, slot=slot)
        )

    def _settled(self, judged: Judged, refused: bool) -> None:
        message = judged.delivery.message
        ruling = judged.verdict
        if judged.slot >= 0 and self._board is not None:
            self._board.give_back(judged.slot)
        if judged.delivery.sequence is not None:
            self._passed(judged, refused)
        if refused or ruling is verdict.UNSTARTED:
            if refused and judged.started:
                self._refused(judged)
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
        if self._ledger is not None and (
            message.send or judged.result is not None or ruling.outcome is Outcome.CANCELLED
        ):
            self._ledger.finish(
                message.queue,
                message.id,
                ruling.outcome,
                result=judged.result,
                error=ruling.reason,
                at=now(),
                attempts=message.attempts + 1,
            )
        if self._on_outcome is not None:
            self._on_outcome(message, ruling, judged.result, judged.seconds)

    # -- off the hot path ----------------------------------------------------------------------------------------------

    def _pump_all(self) -> None:
        for lane in list(self.lanes.values()):
            self._pump(lane)

    def _judge(self, lane: Lane, delivery: Delivery, ruling: Verdict) -> None:
        """An outcome for what never started."""
        lane.settler.add(Judged(delivery, lane.queue, ruling))

    def _take_from(self, run: Run) -> None:
        del self._runs[run.token]
        del run.host.runs[run.token]
        if run is self._suspect:
            self._suspect = None
            asyncio.get_running_loop().call_soon(self._pump_all)
            self.fleet.suspect_ended(lambda: self._suspect is None)

    def _give_back_slot(self, run: Run) -> None:
        if self._board is not None:
            self._board.give_back(run.slot)

    def _refused(self, judged: Judged) -> None:
        message = judged.delivery.message
        reason = f"was {judged.verdict.outcome}, but the message was no longer this worker's"
        self._journal.job(
            Outcome.REFUSED, message.queue, message.id, message.attempts + 1, judged.seconds, reason=reason
        )

    async def _claim(self, lane: Lane, ledger: Ledger) -> None:
        """Ask *ledger* which of the deliveries that gather in *lane* were sent before under the same id, until none gathers.

        Asked for are those whose ``send`` says that their sender chose the id. An id alone says nothing: foreign clients
        use it as they like, and a message dropped for another's sake is lost. One that wants it sets ``handrail-send``.
        """
        try:
            while lane.unclaimed:
                asked = [delivery for delivery in lane.unclaimed if delivery.message.send]
                jobs = [(one.message.queue, one.message.id, one.message.send) for one in asked]
                count = len(lane.unclaimed)
                try:
                    duplicates = {id(asked[at]) for at in await ledger.claim(jobs)}
                except HandrailError as error:
                    log.warning("the ledger cannot be asked for duplicates; the messages are handled", error=str(error))
                    duplicates = set()
                # what was lost or given back meanwhile is not in there any more, so no more than was asked for is taken
                known = {id(one) for one in asked}
                for _ in range(min(count, len(lane.unclaimed))):
                    message = lane.unclaimed[0].message
                    if message.send and id(lane.unclaimed[0]) not in known:
                        break
                    delivery = lane.unclaimed.popleft()
                    if id(delivery) in duplicates:
                        self._judge(lane, delivery, verdict.DUPLICATE)
                    else:
                        lane.buffer.append(delivery)
                self._pump(lane)
        finally:
            lane.claiming = False

    def _late(self, host: Host, token: int) -> None:
        """An outcome for a job that has one already: it timed out, or was cancelled or taken away."""
        run = host.lingering.pop(token, None)
        if run is None:
            return
        self._give_back_slot(run)
        message = run.delivery.message
        log.warning("a late outcome was ignored: the job had one already", queue=message.queue, id=message.id)

    def _other(self, host: Host, message: list[Any]) -> None:
        match message[0]:
            case ToDispatcher.FREED:
                run = host.lingering.pop(message[1], None)
                if run is not None:
                    self._give_back_slot(run)
                    self._pump(run.lane)
                host.abandoned.discard(message[1])
            case ToDispatcher.ABANDONED:
                run = host.lingering.get(message[1])
                if run is not None:
                    self._abandoned(run)
            case ToDispatcher.PONG:
                host.pong()
                if host.silent:
                    host.silent = False
                    log.info("the host answers again", pid=host.pid)
            case ToDispatcher.SEND:
                self._tasks.spawn(self._send(host, message[1], message[2]))
            case ToDispatcher.LOG:
                run = host.runs.get(message[1]) or host.lingering.get(message[1])
                facts = {"queue": run.delivery.message.queue, "id": run.delivery.message.id} if run is not None else {}
                getattr(log, message[3], log.info)(message[2], **facts)
            case ToDispatcher.SAY:
                getattr(log, message[1], log.info)(message[2], **message[3])
            # PROGRESS has no reader yet: this ledger keeps outcomes only

    def _abandoned(self, run: Run) -> None:
        """A thread that cannot be stopped holds on. When as many are abandoned as may run, their host is replaced."""
        host, lane = run.host, run.lane
        host.abandoned.add(run.token)
        # each queue's own, for each has its own measure of how many are too many
        abandoned = sum(1 for one in host.lingering.values() if one.lane is lane and one.token in host.abandoned)
        log.warning(
            "a thread was abandoned: it runs on, for a thread cannot be stopped (isolation: process can)",
            queue=lane.queue.name,
            id=run.delivery.message.id,
            abandoned=abandoned,
        )
        if abandoned >= lane.capacity and not host.draining and not self.stopping:
            self.fleet.replace(host)

    async def _send(self, host: Host, number: int, encoded: bytes) -> None:
        """Publish what a handler sent, and tell its host what became of it."""
        messages = msgspec.msgpack.decode(encoded, type=list[Message])
        settings = host.settings
        failures: dict[int, str] = {}
        brokers: dict[str, list[int]] = {}
        for at, message in enumerate(messages):
            brokers.setdefault(settings.queues[message.queue].broker, []).append(at)
        for broker, indexes in brokers.items():
            try:
                adapter = await self._sender(broker)
                errors = await adapter.publish([messages[at] for at in indexes], settings.send_timeout)
                failures.update({indexes[at]: str(error) for at, error in errors.items()})
            except HandrailError as error:
                failures.update(dict.fromkeys(indexes, str(error)))
        host.send([_SENT, number, [list(item) for item in failures.items()]])

    # -- one after another ---------------------------------------------------------------------------------------------

    def _in_place(self, lane: Lane, ruling: Verdict) -> Verdict:
        """What comes back keeps its place: in our hands until its time comes or, when we leave, where it lies."""
        leaving = self.stopping or self.lanes.get(lane.queue.name) is not lane
        return msgspec.structs.replace(ruling, verb=Verb.RELEASE if leaving else Verb.HOLD)

    def _passed(self, judged: Judged, refused: bool) -> None:
        """The outcome of one of a sequence is durable: it goes on itself when it is held, else the next does."""
        delivery, name = judged.delivery, judged.queue.name
        sequences = self._sequences[name]
        lane = self.lanes.get(name)
        if lane is not None and lane.sequences is not sequences:
            lane = None  # the queue keeps another order now
        if judged.verdict.verb is not Verb.HOLD or refused or sequences.is_lost(delivery):
            following = sequences.leave(delivery)
            if following is not None and lane is not None:
                self._go_on(lane, following)
            return
        assert judged.verdict.message is not None
        delivery.message = judged.verdict.message
        if lane is None or lane.queue.broker != judged.queue.broker:  # left meanwhile: nobody would run it
            self._settlers[id(self._adapter(judged.queue.broker))].add(
                Judged(delivery, judged.queue, verdict.UNSTARTED)
            )
        else:
            self._go_on(lane, delivery)

    def _go_on(self, lane: Lane, delivery: Delivery) -> None:
        """It is the turn of *delivery*."""
        if not self._rests(lane, delivery):
            self._take(lane, [delivery])
        lane.fit()

    def _rests(self, lane: Lane, delivery: Delivery) -> bool:
        """Whether *delivery* failed before and its next attempt is not due yet; then it comes back here when it is."""
        message = delivery.message
        if delivery.sequence is None or message.due is None or not message.starts:
            return False
        wait = message.due - now()
        if wait <= 0:
            return False
        timer = asyncio.get_running_loop().call_later(wait, self._rested, lane, delivery)
        lane.resting[id(delivery)] = delivery, timer
        return True

    def _rested(self, lane: Lane, delivery: Delivery) -> None:
        del lane.resting[id(delivery)]
        self._go_on(lane, delivery)

    # -- suspects, timeouts, cancellation, deaths ------------------------------------------------------------------------

    def _pump_suspects(self, lane: Lane) -> None:
        """Run the next suspect of *lane*, unless one runs already: alone, in a host that no bystander shares."""
        while lane.suspects and self._suspect is None and lane.running < lane.capacity:
            early = self._before_start(lane, lane.suspects[0].message)
            if early is not None:
                self._judge(lane, lane.suspects.popleft(), early)
                continue
            host = self.fleet.pick_for_suspect()
            if host is None:
                return
            self._suspect = self._give(lane, lane.suspects.popleft(), host)

    def _timed_out(self, runs: list[Run]) -> None:
        for run in runs:
            reason = f"callback not called within {duration.text(run.limit or 0.0)}"
            ruling = verdict.failed(run.delivery.message, run.lane.queue, now(), reason)
            self._stop_run(run, ruling, "timeout")
        for lane in {run.lane for run in runs}:
            self._pump(lane)

    def _stop_run(self, run: Run, ruling: Verdict, why: str) -> None:
        """*run* gets its outcome now, whatever its handler is doing, and is stopped as far as its kind can be."""
        if self._board is not None:
            self._board.mark(run.slot, ENDED)
        # by what the host is, not by what its queue wants now: a reload may have changed that
        if run.host.alone:
            self._end(run, ruling)
            self.fleet.drop(run.host)
        else:
            self._end(run, ruling, lingers=True)
            run.host.send([_CANCEL, run.token, why])

    async def watch_cancellations(self) -> None:
        """Follow what is cancelled from outside, through the ledger, until stopped."""
        while self._ledger is not None and not self.stopping:
            self._cancelled = await self._ledger.cancelled()
            if self._cancelled:
                for run in list(self._runs.values()):
                    message = run.delivery.message
                    # pumping, or a host that cannot be told, may have ended others of these
                    if (message.queue, message.id) in self._cancelled and run.token in self._runs:
                        self._stop_run(run, verdict.CANCELLED, "cancelled")
                        self._pump(run.lane)
            await asyncio.sleep(CANCELLATIONS_EVERY)

    def _host_lost(self, host: Host, how: str) -> None:
        """A host is gone. What it was running is suspect; what was only handed over is a bystander."""
        runs = list(host.runs.values())
        running = 0
        for run in host.lingering.values():
            self._give_back_slot(run)
        host.lingering.clear()
        for run in reversed(runs):  # backwards, for each goes to the head
            state = self._board.state(run.slot) if self._board is not None else RUNNING
            message, lane = run.delivery.message, run.lane
            if host.ending:
                self._end(run, verdict.interrupted(message, "the worker stopped"))
            elif state == RUNNING:
                running += 1
                self._end(run, verdict.crashed(message, lane.queue, now(), how))
            elif state == COMPLETED:
                self._end(run, verdict.COMPLETED)
            elif state == ENDED:
                # it had ended, but how was never heard: it runs again, and is no suspect
                self._end(run, verdict.interrupted(message, f"its process died as it ended ({how})"))
            else:
                suspect = run is self._suspect
                self._take_from(run)
                self._give_back_slot(run)
                lane.running -= 1
                if self.lanes.get(lane.queue.name) is lane:
                    (lane.suspects if suspect else lane.buffer).appendleft(run.delivery)
                else:  # its queue was left meanwhile, so nobody would take it from there
                    self._judge(lane, run.delivery, verdict.UNSTARTED)
        if not host.ending:
            log.error("a host died", pid=host.pid, how=how, running=running, handed_over=len(runs) - running)

    def _wake_up(self) -> None:
        """This process stood still: have the brokers say what was lost meanwhile."""
        if not self._waking:
            self._waking = True
            still = time.monotonic() - self._sure_until + STOOD_STILL
            log.warning(
                "this worker stood still; it begins nothing before it has heard of its brokers", seconds=round(still)
            )
            self._tasks.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            while not await self._heard():
                pass
        finally:  # whatever an adapter does, this worker goes on
            self._waking = False
            self._sure_until = time.monotonic() + STOOD_STILL
            self._pump_all()

    async def _heard(self) -> bool:
        """Ask all brokers that we take from, and wait for their answers or until none can be expected.

        False when this process stood still once more meanwhile.
        """
        adapters = {
            id(adapter): adapter for lane in self.lanes.values() for adapter in [self._adapter(lane.queue.broker)]
        }
        asked = {asyncio.ensure_future(adapter.catch_up()) for adapter in adapters.values()}
        pending, looked = asked, time.monotonic()
        until = looked + HEARING
        try:
            while pending and looked < until:
                _, pending = await asyncio.wait(pending, timeout=0.2)
                before, looked = looked, time.monotonic()
                if looked > before + STOOD_STILL:
                    return False
        finally:
            for one in pending:
                one.cancel()
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(answer, Exception) and not isinstance(answer, BrokerError):
                    log.error("asking a broker what it took back failed", error=repr(answer), exc_info=answer)
        return True

    def look_round(self) -> None:
        """Called each second or two: let lanes that hold more than they can soon handle let go of it; name silent hosts."""
        at = time.monotonic()
        late = at > self._sure_until - STOOD_STILL + LATE  # counted from the last look
        if at > self._sure_until:
            self._wake_up()
        else:
            self._sure_until = at + STOOD_STILL
        for lane in self.lanes.values():
            if late:
                lane.measure_anew()
                continue
            hold = self._adapter(lane.queue.broker).hold
            # those that wait behind a suspect may wait for hours, and come again with a new term
            patience = hold.seconds / 4 if hold is not None else None
            for delivery in lane.relax(paused=self.paused, patience=patience):
                self._judge(lane, delivery, verdict.UNSTARTED)
        self._check_silent()

    def _check_silent(self) -> None:
        """Name hosts that answer no ping, with the handlers they run."""
        for host in self.fleet:
            if host.ready and not host.silent and host.seconds_silent > SILENT:
                host.silent = True
                handlers = sorted({f"{run.lane.queue.name} ({run.lane.queue.handler})" for run in host.runs.values()})
                log.warning(
                    "a host does not answer: a handler blocks its event loop, or holds the GIL",
                    pid=host.pid,
                    seconds=round(host.seconds_silent),
                    running=handlers,
                )

    # -- pausing and stopping ------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Start nothing new until :meth:`resume`."""
        self.paused = True
        for lane in self.lanes.values():
            if lane.subscription is not None:
                lane.subscription.pause()

    def resume(self) -> None:
        self.paused = False
        for lane in self.lanes.values():
            if lane.subscription is not None:
                lane.subscription.resume()
        self._pump_all()

    @property
    def running(self) -> int:
        """Jobs in hosts."""
        return len(self._runs)

    @property
    def idle(self) -> bool:
        """Whether nothing waits, runs, or is being settled or sent here. The broker may still hold messages."""
        return not (
            self._runs
            or self._tasks
            or any(lane.buffer or lane.suspects or lane.unclaimed for lane in self.lanes.values())
            or any(self._sequences.values())
            or any(settler.busy for settler in self._settlers.values())
        )

    async def stop(self, drain: float) -> int:
        """Take nothing new, let what runs finish for *drain* seconds, give the rest back. Returns how many were interrupted."""
        self.stopping = True
        lanes = list(self.lanes.values())
        self.lanes.clear()
        leaving = [asyncio.ensure_future(self._unsubscribe(lane)) for lane in lanes]
        await self._bounded(asyncio.gather(*leaving, return_exceptions=True))
        until = time.monotonic() + drain
        while (self._runs or self._tasks) and time.monotonic() < until and not self._hurried:
            await asyncio.sleep(0.01)
        left = list(self._runs.values())
        reason = "stopped at once" if self._hurried else f"still running after {duration.text(drain)} of drain"
        for run in left:
            self._stop_run(run, verdict.interrupted(run.delivery.message, reason), "drain")
        await self.settled()
        if self._hurried:
            self.fleet.kill()
        await self.fleet.stop()
        await self.settled()
        self._deadlines.stop()
        await self._tasks.cancel()
        return len(left)

    async def settled(self) -> None:
        """Returns when every outcome is settled or, the brokers being closed, can no longer be; within some seconds."""
        await self._bounded(self._flushed())

    async def _bounded(self, step: Awaitable[object]) -> None:
        """Await *step*, which is up to the broker, but not for ever: closing the adapter ends what is left of it."""
        task = asyncio.ensure_future(step)
        until = time.monotonic() + BROKER_PATIENCE
        while not task.done() and time.monotonic() < until:
            await asyncio.wait((task,), timeout=0.05 if self._hurried else 0.5)
            if self._hurried:
                until = min(until, time.monotonic() + HURRIED_PATIENCE)
        if not task.done():
            log.warning("the broker does not answer; what it was not told of, it will give out again")
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _flushed(self) -> None:
        for settler in self._settlers.values():
            await settler.flushed()

    def hurry(self) -> None:
        """While :meth:`stop` waits: wait no longer."""
        self._hurried = True
        if self.fleet.stopping:
            self.fleet.kill()
