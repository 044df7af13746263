"""The ledger on SQLite: one thread writes what gathered in one transaction. It decides nothing and never stops handling."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw

from handrail.errors import BrokerError
from handrail.ledger.port import Cancelling, Record
from handrail.ledger.store import PRUNE_ROWS, Row, Store
from handrail.logger import get_logger
from handrail.outcome import Outcome, clip

T = TypeVar("T")
log = get_logger("handrail")

#: Seconds for which outcomes gather before they are written.
LINGER = 0.02
#: Outcomes written in one transaction, and the number that does not linger. A question is answered after all before it.
BATCH = 1000
#: Outcomes, and bytes of results, that wait in memory while they cannot be written. Beyond them the oldest are lost.
WAITING_ROWS, WAITING_BYTES = 20_000, 64 << 20
#: Seconds between attempts to write while it fails: from the first, doubling, to the last.
RETRY_FIRST, RETRY_LAST = 1.0, 30.0
#: Seconds after which a claim goes on without an answer.
CLAIM_TIMEOUT = 5.0
#: Seconds that closing may take.
CLOSE_TIMEOUT = 5.0
#: Seconds between two prunings, and between two batches of one.
PRUNE_EVERY, PRUNE_NEXT = 60.0, 0.1

_FINAL = frozenset({Outcome.COMPLETED, Outcome.DEAD, Outcome.EXPIRED, Outcome.CANCELLED})
_NO_OUTCOME = frozenset({Outcome.DUPLICATE, Outcome.REFUSED})


#: Whose question it was, the answer, and the error in its place.
Answer = tuple[asyncio.Future[Any], Any, Exception | None]


class _Ask:
    """A question to the thread, and where its answer goes."""

    __slots__ = ("call", "future", "write")

    def __init__(self, call: Callable[[Store], Any], future: asyncio.Future[Any], *, write: bool) -> None:
        self.call = call
        self.future = future
        self.write = write


class SQLiteLedger:
    """See :class:`handrail.ledger.port.Ledger`. Several processes may have the same file open."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._store = Store(path, clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._asks: deque[_Ask] = deque()
        self._stopping = False
        #: Guards the four below, which the loop fills and the thread empties.
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque()
        self._row_bytes = 0
        self._lost = 0
        self._lingering = False
        #: Why writing fails, or None; the thread's own.
        self._problem: str | None = None
        #: Whether the thread left a claim without an answer and has not spoken since.
        self._silent = False

    @classmethod
    def at(cls, path: str, root: str) -> SQLiteLedger:
        """The ledger at *path* as written after ``sqlite:``; a relative one counts from *root*."""
        if path == ":memory:":
            return cls(None)
        return cls(Path(root) / path.removeprefix("//"))

    @property
    def place(self) -> str:
        return self._store.place

    # -- on the loop ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._thread is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        opened = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="handrail-ledger", daemon=True)
        _open.add(self)
        self._thread.start()
        try:
            await asyncio.shield(opened)
        except BaseException:
            self._stopping = True
            self._wake.set()
            self._thread = None
            raise

    async def close(self) -> None:
        thread = self._thread
        if thread is None:
            return
        self._stopping = True
        self._wake.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join, CLOSE_TIMEOUT)
        self._thread = None
        if thread.is_alive():
            log.warning("the ledger did not close in time: another process holds it", ledger=self.place)

    async def claim(self, jobs: Sequence[tuple[str, str, str]]) -> set[int]:
        if not jobs:
            return set()
        asked = self._ask(lambda store: store.claim(jobs), write=True)
        try:
            async with asyncio.timeout(0.05 if self._silent else CLAIM_TIMEOUT):
                return await asked
        except TimeoutError:
            if not self._silent:
                self._silent = True
                log.warning(
                    "the ledger does not answer: duplicates go unnoticed until it does; is a process that uses it stopped?",
                    ledger=self.place,
                )
        except BrokerError:
            pass  # the thread said so when it began; handling goes on without a ledger
        return set()

    def finish(
        self,
        queue: str,
        id: str,  # noqa: A002
        outcome: Outcome,
        *,
        result: bytes | None = None,
        error: str = "",
        at: float,
        attempts: int = 0,
    ) -> None:
        if outcome in _NO_OUTCOME or self._loop is None or self._thread is None:
            return
        row: Row = (queue, id, outcome.value, outcome in _FINAL, attempts, at, clip(error) if error else "", result)
        with self._lock:
            self._rows.append(row)
            self._row_bytes += _size(row)
            self._bound()
            waiting = len(self._rows)
        if waiting >= BATCH:
            self._wake.set()
        elif not self._lingering:
            self._lingering = True
            self._loop.call_later(LINGER, self._lingered)

    async def get(self, queue: str, id: str) -> Record | None:  # noqa: A002
        return await self._ask(lambda store: store.get(queue, id), write=False)

    async def forget(self, queue: str, ids: Sequence[str] | None = None) -> int:
        return await self._ask(lambda store: store.forget(queue, ids), write=True)

    async def cancel(self, queue: str, id: str) -> Cancelling:  # noqa: A002
        return await self._ask(lambda store: store.cancel(queue, id), write=True)

    async def uncancel(self, queue: str, id: str) -> None:  # noqa: A002
        await self._ask(lambda store: store.uncancel(queue, id), write=True)

    async def cancelled(self) -> set[tuple[str, str]]:
        try:
            return await self._ask(Store.refresh, write=False)
        except BrokerError:
            return self._store.cancelled  # the thread said so when it began

    def _lingered(self) -> None:
        self._lingering = False
        self._wake.set()

    def _ask(self, call: Callable[[Store], T], *, write: bool) -> asyncio.Future[T]:
        if self._loop is None or self._thread is None or self._stopping:
            raise BrokerError(f"ledger {self.place}: is not open")
        ask = _Ask(call, self._loop.create_future(), write=write)
        self._asks.append(ask)
        self._wake.set()
        return ask.future

    def _bound(self) -> None:
        while len(self._rows) > WAITING_ROWS or (self._row_bytes > WAITING_BYTES and len(self._rows) > 1):
            self._row_bytes -= _size(self._rows.popleft())
            self._lost += 1

    # -- on the thread -------------------------------------------------------------------------------------------------

    def _run(self, opened: asyncio.Future[Any]) -> None:
        try:
            self._store.open()
        except Exception as error:  # noqa: BLE001 - raised again by whoever awaits it
            self._answer([(opened, None, error)])
            return
        self._answer([(opened, None, None)])
        prune_at = time.monotonic() + PRUNE_NEXT
        retry, retry_at = RETRY_FIRST, 0.0
        while True:
            now = time.monotonic()
            self._wake.wait(max(0.0, min(prune_at, retry_at or prune_at) - now))
            self._wake.clear()
            stopping = self._stopping
            asks = list(self._asks)
            for _ in asks:
                self._asks.popleft()
            now = time.monotonic()
            prune = now >= prune_at
            # while writing fails, outcomes wait for their next attempt and do not slow the claims
            rows = self._take(WAITING_ROWS if asks else BATCH) if stopping or now >= retry_at else []
            wrote, pruned = self._turn(asks, rows, prune=prune)
            if prune:
                prune_at = now + (PRUNE_NEXT if pruned >= PRUNE_ROWS else PRUNE_EVERY)
            if not wrote:
                if now >= retry_at:
                    retry_at, retry = now + retry, min(retry * 2, RETRY_LAST)
            elif rows or not self._problem:
                retry_at, retry = 0.0, RETRY_FIRST
                if self._rows:
                    self._wake.set()
            if stopping and (not self._rows or not wrote):
                break
        self._end()

    def _turn(self, asks: list[_Ask], rows: list[Row], *, prune: bool) -> tuple[bool, int]:
        """Do all of it in one transaction; whether that went well, and how many rows were pruned."""
        writes = [ask for ask in asks if ask.write]
        answers: list[Answer] = []
        problem: Exception | None = None
        pruned = 0
        try:
            if rows or writes or prune:
                if self._store.follow():
                    log.warning(
                        "the ledger's file was removed under this process: a new one was made", ledger=self.place
                    )
                with self._store.transaction():
                    if rows:
                        self._store.finish(rows)
                    answers = [(ask.future, ask.call(self._store), None) for ask in writes]
                    if prune:
                        pruned = self._store.prune()
        except (apsw.Error, OSError, BrokerError) as error:
            problem = self._store.explain(error)
            self._put_back(rows)
        except Exception as error:
            log.exception("a fault in the ledger: please report it", ledger=self.place, outcomes_lost=len(rows))
            problem = BrokerError(f"ledger {self.place}: {error!r}")
            self._lost += len(rows)
        if problem is not None:
            answers = [(ask.future, None, problem) for ask in writes]
        # reading goes by itself, since it works on a full disk as well
        for ask in asks:
            if not ask.write:
                try:
                    answers.append((ask.future, ask.call(self._store), None))
                except (apsw.Error, OSError, BrokerError) as error:
                    answers.append((ask.future, None, self._store.explain(error)))
        if answers:
            self._answer(answers)
        if problem is not None:
            self._failed(str(problem))
        elif rows or (writes and not self._rows):
            self._went_well()
        return problem is None, pruned

    def _take(self, most: int) -> list[Row]:
        with self._lock:
            rows = [self._rows.popleft() for _ in range(min(len(self._rows), most))]
            self._row_bytes -= sum(map(_size, rows))
        return rows

    def _put_back(self, rows: list[Row]) -> None:
        with self._lock:
            self._rows.extendleft(reversed(rows))
            self._row_bytes += sum(map(_size, rows))
            self._bound()

    def _failed(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            log.warning(
                "the ledger cannot be written: messages are handled all the same, duplicates go unnoticed",
                reason=problem,
            )

    def _went_well(self) -> None:
        if self._problem is not None:
            lost, self._lost = self._lost, 0
            log.info("the ledger is written again", ledger=self.place, outcomes_lost=lost)
            self._problem = None

    def _answer(self, answers: list[Answer]) -> None:
        def deliver() -> None:
            self._silent = False
            for future, value, error in answers:
                if future.done():  # whoever asked has given up
                    continue
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(deliver)

    def _end(self) -> None:
        lost = self._lost + len(self._rows)
        if lost:
            log.warning("outcomes could not be written to the ledger and are lost", ledger=self.place, outcomes=lost)
        closed = BrokerError(f"ledger {self.place}: is closed")
        left: list[Answer] = [(ask.future, None, closed) for ask in self._asks]
        try:
            self._store.close()
        except apsw.Error as error:
            log.warning(str(self._store.explain(error)))
        if left:
            self._answer(left)


def _size(row: Row) -> int:
    return len(row[6]) + (len(row[7]) if row[7] is not None else 0)


_open: weakref.WeakSet[SQLiteLedger] = weakref.WeakSet()


def _forked() -> None:
    for ledger in _open:
        ledger._store.drop_lock()


os.register_at_fork(after_in_child=_forked)
