"""The background publisher: one daemon thread with a loop that brings a process's messages to its brokers.

Each queue gets its messages in their order and waits for no other queue: one that hangs fails its own sends alone.
It serves application processes, which have no dispatcher. It takes nothing from a broker, and lets no caller wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence

from handrail import adapter as port
from handrail import duration
from handrail.config.model import Settings
from handrail.errors import BrokerError, BufferFullError, SendError, SendTimeoutError
from handrail.logger import get_logger
from handrail.message import Message
from handrail.transport import Done

log = get_logger("handrail")

#: The most that one publish carries, in messages and bytes: enough for one commit to serve many, little enough to gather.
BATCH_MESSAGES = 5000
BATCH_BYTES = 8 << 20
#: Messages share a publish, and so its timeout, only while their own deadlines lie this close, as a share of send_timeout.
_SPREAD = 0.1
#: Seconds that an adapter may overrun the timeout it was given before it is thrown away.
_OVERRUN = 2.0
#: Seconds for which a broker's refusal stands before another send asks again.
_REFUSED = 1.0
#: Seconds an adapter gets to close.
_CLOSING = 2.0
#: Seconds that a fork waits at most for what is on its way, and then for the connections to close.
_FORKING = 1.0


class _Parcel:
    """One submit, until the fate of its last message is known."""

    __slots__ = ("deadline", "done", "errors", "left", "number", "size")

    def __init__(self, size: int, done: Done, deadline: float) -> None:
        self.number = 0
        self.size = size
        self.left = size
        self.done = done
        self.deadline = deadline
        self.errors: dict[int, SendError] = {}


class _Piece:
    """The part of a parcel that goes to one queue, from ``at`` on."""

    __slots__ = ("at", "indexes", "messages", "parcel")

    def __init__(self, parcel: _Parcel, messages: list[Message], indexes: Sequence[int]) -> None:
        self.parcel = parcel
        self.messages = messages
        self.indexes = indexes
        self.at = 0


_Share = tuple[_Parcel, Sequence[int]]


class _Lane:
    """One queue: what waits for its broker to take it there, one batch at a time."""

    def __init__(self, broker: _Broker) -> None:
        self.broker = broker
        self.waiting: deque[_Piece] = deque()
        #: Whether a batch is under way, or it is this lane's turn to send one.
        self.busy = False
        self.timer: asyncio.TimerHandle | None = None

    def take(self, spread: float) -> tuple[list[Message], list[_Share], float]:
        """The next batch, whose messages they are, and the deadline of the first."""
        messages: list[Message] = []
        shares: list[_Share] = []
        size = 0
        deadline = self.waiting[0].parcel.deadline
        while self.waiting and self.waiting[0].parcel.deadline <= deadline + spread:
            piece = self.waiting[0]
            start = piece.at
            end = min(len(piece.messages), start + BATCH_MESSAGES - len(messages))
            for at in range(start, end):
                size += len(piece.messages[at].body)
                if size > BATCH_BYTES and (messages or at > start):
                    end = at
                    break
            messages += piece.messages[start:end] if (start, end) != (0, len(piece.messages)) else piece.messages
            if end > start:
                shares.append((piece.parcel, piece.indexes[start:end]))
            piece.at = end
            if end < len(piece.messages):
                break
            self.waiting.popleft()
        return messages, shares, deadline


class _Broker:
    """One broker: the adapter that takes messages there, and the lanes whose turn it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: Lanes that have something to send, and of which no batch is under way.
        self.turns: deque[_Lane] = deque()
        self.wake = asyncio.Event()
        #: Held while the adapter is opened and batches are handed to it.
        self.handing = asyncio.Lock()
        #: The batches under way.
        self.batches: set[asyncio.Task[None]] = set()
        #: Seconds before the next try to open the adapter.
        self.pause = 0.0
        self.adapter: port.Adapter | None = None
        self.opened = False
        #: One line: what went wrong last, until something goes right.
        self.trouble = ""
        self.refused: BrokerError | None = None
        self.refused_at = 0.0
        self.task: asyncio.Task[None] | None = None

    def turn(self, lane: _Lane) -> None:
        """*lane* has something to send, and nothing under way."""
        lane.busy = True
        self.turns.append(lane)
        self.wake.set()

    def state(self) -> str:
        """One line: how the broker is."""
        if self.opened and self.adapter is not None:
            try:
                return self.adapter.health().detail
            except Exception as error:  # noqa: BLE001 - an adapter's fault must not hide the timeout
                return f"{type(error).__name__}: {error}"
        return self.trouble or "still connecting"


class Publisher:
    """A transport that publishes in the background of this process. Its thread starts with it and dies with the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # reentrant, for a finaliser or a signal handler may send, too, at any instruction
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)
        # guarded by the lock, from here
        self._inbox: deque[tuple[_Parcel, list[Message]]] = deque()
        self._open: dict[int, _Parcel] = {}
        self._number = 0
        self._buffered = 0
        self._woken = False
        self._closed = False
        # to here; the loop's own, from here
        self._brokers: dict[str, _Broker] = {}
        self._lanes: dict[str, _Lane] = {}
        self._parked = threading.Event()
        self._resumed = threading.Event()
        # always this loop, not the policy's: the application's choice of loop is not a choice for this thread
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="handrail-publisher", daemon=True)
        self._thread.start()

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def buffered(self) -> int:
        """Messages whose fate is open."""
        return self._buffered

    def submit(self, messages: list[Message], done: Done) -> None:
        """See :class:`handrail.transport.Transport`. The list is kept: do not change it afterwards."""
        count = len(messages)
        limit = self._settings.send_buffer
        parcel = _Parcel(count, done, time.monotonic() + self._settings.send_timeout)
        entry = (parcel, messages)
        with self._lock:
            if self._closed:
                raise SendError("nothing more is sent here: the process is ending, or was given another project")
            if self._buffered + count > limit:
                raise BufferFullError(self._full(count, limit))
            self._number = parcel.number = self._number + 1
            self._buffered += count
            self._open[parcel.number] = parcel
            self._inbox.append(entry)
            woken, self._woken = self._woken, True
        if not woken:
            self._loop.call_soon_threadsafe(self._gather)

    def flush(self, timeout: float) -> bool:
        """See :class:`handrail.transport.Transport`."""
        with self._lock:
            last = self._number
            return self._moved.wait_for(lambda: not self._open or next(iter(self._open)) > last, timeout)

    def close(self, timeout: float) -> bool:
        """Flush for up to *timeout* seconds, then take nothing more and disconnect; whether everything met its fate."""
        with self._lock:
            self._closed = True
        flushed = self.flush(timeout)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._begin, self._end)
            self._thread.join(_CLOSING + 1.0)
        return flushed

    def park(self) -> None:
        """Before a fork: disconnect and stand still until :meth:`resume`, so that a child inherits nothing half done.

        Without this a child could inherit an import lock that nobody will release, or SQLite's notes on locks that the
        child itself does not hold.
        """
        if not self._thread.is_alive() or self._thread is threading.current_thread():
            return
        self._parked.clear()
        self._resumed.clear()
        self._loop.call_soon_threadsafe(self._begin, self._park)
        self._parked.wait(_FORKING + _CLOSING + 1.0)

    def resume(self) -> None:
        """After a fork, in the parent: go on; the next send connects again."""
        self._resumed.set()

    def _full(self, count: int, limit: int) -> str:
        if count > limit:
            return f"{count:,} messages at once are more than send_buffer ({limit:,}); send them in parts"
        return (
            f"the send buffer is full: {self._buffered:,} of {limit:,} messages wait for the broker; "
            "wait for receipts, send more slowly, or raise send_buffer"
        )

    # ------------------------------------------------------------------------------------------- on the thread's loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _gather(self) -> None:
        with self._lock:
            found = list(self._inbox)
            self._inbox.clear()
            self._woken = False
        for parcel, messages in found:
            first = messages[0].queue if messages else ""
            if all(message.queue == first for message in messages):
                self._enqueue(first, _Piece(parcel, messages, range(len(messages))))
                continue
            indexes: dict[str, list[int]] = {}
            for index, message in enumerate(messages):
                indexes.setdefault(message.queue, []).append(index)
            for queue, chosen in indexes.items():
                self._enqueue(queue, _Piece(parcel, [messages[index] for index in chosen], chosen))

    def _enqueue(self, queue: str, piece: _Piece) -> None:
        lane = self._lanes.get(queue)
        if lane is None:
            lane = self._lanes[queue] = _Lane(self._broker(self._settings.queues[queue].broker))
        lane.waiting.append(piece)
        if lane.timer is None:
            self._watch(lane)
        if not lane.busy:
            lane.broker.turn(lane)

    def _broker(self, name: str) -> _Broker:
        broker = self._brokers.get(name)
        if broker is None:
            broker = self._brokers[name] = _Broker(name)
            broker.task = self._loop.create_task(self._serve(broker))
        return broker

    async def _serve(self, broker: _Broker) -> None:
        while True:
            while not broker.turns:
                broker.wake.clear()
                await broker.wake.wait()
            try:
                async with broker.handing:
                    adapter = await self._adapter(broker)
                    while adapter is not None and broker.turns:
                        self._hand(broker.turns.popleft(), adapter)
                if adapter is None and broker.pause:
                    await asyncio.sleep(broker.pause)
            except Exception as error:
                log.error("the background publisher stumbled", broker=broker.name, exc_info=error)
                self._fail_waiting(broker, f"broker {broker.name!r}: {type(error).__name__}: {error}")

    def _hand(self, lane: _Lane, adapter: port.Adapter) -> None:
        if not lane.waiting:  # its time was over
            lane.busy = False
            return
        batch = self._loop.create_task(self._publish(lane, adapter, *lane.take(self._settings.send_timeout * _SPREAD)))
        lane.broker.batches.add(batch)
        batch.add_done_callback(lambda _batch: self._handed(lane, batch))

    def _handed(self, lane: _Lane, batch: asyncio.Task[None]) -> None:
        lane.broker.batches.discard(batch)
        if lane.waiting:
            lane.broker.turn(lane)
        else:
            lane.busy = False
        if not batch.cancelled() and (error := batch.exception()) is not None:
            log.error("the background publisher stumbled", broker=lane.broker.name, exc_info=error)

    async def _publish(
        self, lane: _Lane, adapter: port.Adapter, messages: list[Message], shares: list[_Share], deadline: float
    ) -> None:
        failures: dict[int, SendError]
        broker = lane.broker
        left = max(0.05, deadline - time.monotonic())
        try:
            async with asyncio.timeout(left + _OVERRUN):
                failures = await adapter.publish(messages, left)
        except TimeoutError:
            text = self._late(broker, handed=True)
            failures = dict.fromkeys(range(len(messages)), SendTimeoutError(text))
            await self._drop(broker, adapter)
        except BrokerError as error:
            failures = dict.fromkeys(range(len(messages)), _as_send_error(error))
            broker.trouble = str(error)
            await self._drop(broker, adapter)
        except Exception as error:
            broker.trouble = f"{type(error).__name__}: {error}"
            log.error("an adapter failed to publish", broker=broker.name, exc_info=error)
            failures = dict.fromkeys(range(len(messages)), SendError(f"broker {broker.name!r}: {broker.trouble}"))
            await self._drop(broker, adapter)
        finished: list[_Parcel] = []
        at = 0
        for parcel, indexes in shares:
            count = len(indexes)
            if failures:
                for offset in range(count):
                    if (failure := failures.get(at + offset)) is not None:
                        parcel.errors[indexes[offset]] = failure
                at += count
            parcel.left -= count
            if not parcel.left:
                finished.append(parcel)
        self._settle(finished)

    def _settle(self, parcels: list[_Parcel]) -> None:
        with self._lock:
            # first, for who is told may send the next at once
            self._buffered -= sum(parcel.size for parcel in parcels)
        for parcel in parcels:
            try:
                parcel.done(parcel.errors)
            except Exception as error:
                log.error("telling a sender what became of its message failed", exc_info=error)
        with self._lock:
            for parcel in parcels:
                del self._open[parcel.number]
            self._moved.notify_all()

    # -------------------------------------------------------------------------------------------------------- adapter

    async def _adapter(self, broker: _Broker) -> port.Adapter | None:
        """The broker's adapter, open; None when it refused, or is to be asked again after ``broker.pause``."""
        if broker.opened:
            return broker.adapter
        if broker.refused is not None and time.monotonic() - broker.refused_at < _REFUSED:
            self._fail_waiting(broker, broker.refused)
            return None
        try:
            broker.adapter = port.load(self._settings.brokers[broker.name])
            await broker.adapter.open("client")
            await broker.adapter.declare([q.spec for q in self._settings.queues.values() if q.broker == broker.name])
        except BrokerError as error:  # by the port's word, waiting does not mend it
            broker.refused, broker.refused_at, broker.trouble, broker.pause = error, time.monotonic(), str(error), 0.0
            await self._drop(broker, broker.adapter)
            self._fail_waiting(broker, error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, the broker may be there in a moment
            broker.trouble = f"{type(error).__name__}: {error}"
            broker.pause = min(broker.pause * 2 or 0.1, 2.0)
            await self._drop(broker, broker.adapter)
            return None
        broker.opened, broker.trouble, broker.refused, broker.pause = True, "", None, 0.0
        return broker.adapter

    async def _drop(self, broker: _Broker, adapter: port.Adapter | None) -> None:
        """Give *adapter* up, which may have been given up already."""
        if adapter is None or broker.adapter is not adapter:
            return
        broker.adapter, broker.opened = None, False
        try:
            async with asyncio.timeout(_CLOSING):
                await adapter.close()
        except Exception as error:  # noqa: BLE001 - it is given up anyway
            broker.trouble = broker.trouble or f"{type(error).__name__}: {error}"

    # ------------------------------------------------------------------------------------------------------- deadlines

    def _watch(self, lane: _Lane) -> None:
        wait = max(0.0, lane.waiting[0].parcel.deadline - time.monotonic())
        lane.timer = self._loop.call_later(wait, self._expire, lane)

    def _expire(self, lane: _Lane) -> None:
        """Fail what waits beyond its deadline without having been handed to the broker."""
        lane.timer = None
        now = time.monotonic()
        late: list[_Piece] = []
        while lane.waiting and lane.waiting[0].parcel.deadline <= now:
            late.append(lane.waiting.popleft())
        if late:
            self._fail(late, SendTimeoutError(self._late(lane.broker, handed=False)))
        if lane.waiting:
            self._watch(lane)

    def _late(self, broker: _Broker, *, handed: bool) -> str:
        limit = duration.text(self._settings.send_timeout)
        place = port.masked(self._settings.brokers[broker.name].url)
        fate = "did not confirm" if handed else "took nothing"
        after = "; it may or may not have it" if handed else ""
        return f"broker {broker.name!r} ({place}) {fate} within {limit}: {broker.state()}{after}"

    def _fail_waiting(self, broker: _Broker, why: BrokerError | str) -> None:
        """Fail all whose turn it is; what waits behind a batch that is under way may have better luck."""
        pieces: list[_Piece] = []
        while broker.turns:
            lane = broker.turns.popleft()
            lane.busy = False
            pieces += lane.waiting
            lane.waiting.clear()
        self._fail(pieces, SendError(why) if isinstance(why, str) else _as_send_error(why))

    def _fail(self, pieces: list[_Piece], error: SendError) -> None:
        finished: list[_Parcel] = []
        for piece in pieces:
            rest = piece.indexes[piece.at :]
            piece.parcel.errors.update(dict.fromkeys(rest, error))
            piece.parcel.left -= len(rest)
            if not piece.parcel.left:
                finished.append(piece.parcel)
        self._settle(finished)

    # ------------------------------------------------------------------------------------------------------------ end

    def _begin(self, what: Callable[[], Coroutine[None, None, None]]) -> None:
        self._task = self._loop.create_task(what())  # the loop itself would forget it

    async def _park(self) -> None:
        held: list[_Broker] = []
        end = time.monotonic() + _FORKING
        for broker in list(self._brokers.values()):
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    await broker.handing.acquire()
            except TimeoutError:
                continue  # a broker that hangs must not hang a fork
            held.append(broker)
        for broker in held:
            if broker.batches:
                await asyncio.wait(broker.batches, timeout=max(0.0, end - time.monotonic()))
            if not broker.batches:
                await self._drop(broker, broker.adapter)
        self._parked.set()
        self._resumed.wait()  # blocking the loop is the very purpose
        for broker in held:
            broker.handing.release()

    async def _end(self) -> None:
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
        brokers = self._brokers.values()
        tasks = [task for broker in brokers for task in (broker.task, *broker.batches) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._drop(broker, broker.adapter) for broker in brokers), return_exceptions=True)
        error = SendError("the process ended before the broker had confirmed; it may or may not have the message")
        for parcel in (rest := list(self._open.values())):
            for index in range(parcel.size):
                parcel.errors.setdefault(index, error)
        self._settle(rest)
        self._loop.stop()


def _as_send_error(error: BrokerError) -> SendError:
    made = SendError(str(error))
    made.__cause__ = error
    return made
