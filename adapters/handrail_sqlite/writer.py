"""The writer: one thread an adapter, which does in one transaction whatever gathered since the last (group commit).

It owns the database, the lease and what is held. It calls nothing on the event loop but through ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from handrail.adapter import BrokerSettings, Delivery, QueueSpec, Role, Settlement, Verb
from handrail.errors import BrokerError, HandrailError, SendError
from handrail.logger import get_logger
from handrail_sqlite import rows
from handrail_sqlite import statements as sql
from handrail_sqlite.commands import Ask, Intake, Publish, Settle
from handrail_sqlite.faults import Kind, explain, kind_of
from handrail_sqlite.owners import Bell, Lease, network_file_system
from handrail_sqlite.place import Place
from handrail_sqlite.plan import Plan
from handrail_sqlite.store import CLEAR_AT_ONCE, StaleError, Store

log = get_logger("handrail.sqlite")

#: Seconds between two looks for what no datagram told of: ready messages, dead owners, a removed file, a jump of the clock.
TICK = 1.0
#: Messages published in one transaction: beyond some thousands nothing is gained, and others wait for their turn.
PUBLISH_AT_ONCE = 20_000
#: Messages claimed in one transaction.
CLAIM_AT_ONCE = 1000
#: Delayed messages made ready in one transaction.
PROMOTE_AT_ONCE = 2000
#: Seconds between two tries while the file cannot be written, first and last.
RETRY_FIRST, RETRY_LAST = 0.05, 1.0
#: Seconds within which the same trouble is told once, however often it comes and goes.
SAY_AGAIN = 30.0
#: Seconds for which closing goes on trying to write.
CLOSE_PATIENCE = 3.0
#: Seconds for which health tells of a file that was replaced.
TOLD_FOR = 60.0


class Writer(threading.Thread):
    """See the module's docstring. Other threads call :meth:`submit`, and read ``trouble``, ``beat`` and ``told``."""

    def __init__(
        self,
        settings: BrokerSettings,
        place: Place,
        role: Role,
        board: Path | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(name=f"handrail-sqlite-{settings.name}", daemon=True)
        self._place = place
        self._prefix = settings.prefix
        self._worker = role == "worker"
        self._board = board
        self._loop = loop
        self._store = Store(place)
        self._inbox: deque[Publish | Settle | Ask] = deque()
        self._publishes: deque[Publish] = deque()
        self._settles: list[Settle] = []
        self._asks: deque[Ask] = deque()
        self._done: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        #: Whether it waits for something to do.
        self.asleep = False
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)
        self._bell: Bell | None = None
        self._lease: Lease | None = None
        self._owner = 0
        self._intakes: list[Intake] = []
        self._held: dict[int, Delivery] = {}
        self._specs: dict[str, QueueSpec] = {}
        self._next_due: int | None = None
        self._next_tick = 0.0
        self._retry_at = 0.0
        self._retry = RETRY_FIRST
        self._opened: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._closing = threading.Event()
        self._was_open = False
        self._ended = False
        #: What is wrong, or empty. One line.
        self.trouble = ""
        #: Monotonic time at which it last looked round.
        self.beat = time.monotonic()
        #: When (monotonic) something happened to the file that its user should know of, and what.
        self.told: tuple[float, str] = (0.0, "")
        self._said: dict[str, float] = {}

    # --- called on the loop -------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start, and return when the file is open. Raises :class:`BrokerError` for what waiting does not mend."""
        self._opened = self._loop.create_future()
        self.start()
        await self._opened

    async def end(self, patience: float) -> None:
        """Finish what was submitted, give back what is held, end the lease; after *patience* seconds leave that to others."""
        if not self.is_alive():
            return  # it failed; its pipe goes with the process
        self._closed = self._loop.create_future()
        self._closing.set()
        self._wake()
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(self._closed)
        except TimeoutError:
            log.warning("not closed in time; what it held returns when this process ends", place=str(self._place))
        else:
            self.join()  # it has said its last
            os.close(self._wake_write)
            os.close(self._wake_read)

    def submit(self, command: Publish | Settle | Ask) -> None:
        self._inbox.append(command)
        if self.asleep:
            self._wake()
        elif self._ended:
            self._loop.call_soon(self._fail_all, BrokerError(f"{self._place}: closed"))

    def _wake(self) -> None:
        # a full pipe wakes as well as one more byte; a closed one belongs to a writer that has ended
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    def nudge(self) -> None:
        """Look at the subscriptions again: a credit or a pause changed."""
        if self.asleep:
            self._wake()

    # --- asked through Ask, on the thread -----------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        return self._store

    def declare(self, specs: Sequence[QueueSpec]) -> None:
        for spec in specs:
            self._specs[self._prefix + spec.name] = spec
        if self._store.is_open:
            self._declare_all()

    def _declare_all(self) -> None:
        store = self._store
        todo = {name: spec.order == "lifo" for name, spec in self._specs.items()}
        if all(store.declared(name, lifo=lifo) for name, lifo in todo.items()):
            return
        with store.transaction(durable=False):
            for name, lifo in todo.items():
                store.declare(name, lifo=lifo)

    def join_intake(self, intake: Intake) -> None:
        self._specs.setdefault(intake.name, intake.spec)
        self._intakes.append(intake)
        if self._store.is_open:  # else this is done when it opens
            self._declare_all()
            intake.queue = self._store.queues[intake.name]
            self._adopt()

    def _adopt(self) -> None:
        """A queue that bears the name of somebody's dead letters gets them, as it would on any other broker."""
        for intake in self._intakes:
            while self._store.has_dead(intake.name):
                with self._store.transaction(durable=True):
                    self._store.adopt(intake.name, intake.queue)
                intake.hungry = True

    def leave_intake(self, intake: Intake) -> None:
        if intake in self._intakes:
            self._intakes.remove(intake)

    def purge(self, name: str, state: int, ids: Sequence[str] | None, so_far: int) -> tuple[int, bool]:
        """One step of a purge; returns how many so far, and whether that was all."""
        with self._store.transaction(durable=True):
            count = self._store.purge(name, state, ids)
        return so_far + count, count < CLEAR_AT_ONCE

    def replay(self, name: str, ids: Sequence[str] | None, so_far: int) -> tuple[int, bool]:
        with self._store.transaction(durable=True):
            count, queues = self._store.replay(name, self._prefix, ids)
        if count:
            self._whet(queues)
            self._ring()
        return so_far + count, count < CLEAR_AT_ONCE

    # --- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            if not self._first_open():
                return
            while not self._closing.is_set():
                self._wait()
                self._round()
            self._shut()
        except BaseException as error:
            log.exception("the SQLite writer has failed; please report this as a bug in handrail")
            self.trouble = f"{self._place}: {error!r}"
            self._fail_all(BrokerError(f"{self._place}: the writer has failed: {error!r}"))
        finally:
            self._ended = True
            self._release_files(remove=False)
            self._fail_all(BrokerError(f"{self._place}: closed"))
            if self._closed is not None:
                self._finish(self._closed, None)
            self._post_done()

    def _first_open(self) -> bool:
        assert self._opened is not None
        try:
            self._connect()
        except Exception as error:  # noqa: BLE001 - judged here
            self._release_files(remove=True)
            if kind_of(error) is Kind.BROKEN:
                failure = error if isinstance(error, HandrailError) else BrokerError(explain(error, self._place.file))
                self.trouble = str(failure)
                self._finish(self._opened, None, failure)
                return False
            self._failed(error)
        self._finish(self._opened, None)
        self._post_done()
        return True

    def _connect(self) -> None:
        store = self._store
        store.open()
        self._declare_all()
        self._bell = Bell(self._place.owners)
        if self._worker:
            self._lease = Lease(self._place.owners, self._board, self._prefix)
            with store.transaction(durable=True):
                self._owner = store.add_owner(self._lease.name)
            self._bell.listen(self._lease.name)
            assert self._bell.socket is not None
            self._poll.register(self._bell.socket.fileno(), select.POLLIN)
            self._lease.sweep(store.owners())
            if not self._was_open and (kind := network_file_system(self._place.file.parent)) is not None:
                log.warning(
                    "the queue file lies on a network file system, where a lock proves nothing; "
                    "run the workers on one machine, or use another broker",
                    file=str(self._place.file),
                    kind=kind,
                )
            for intake in self._intakes:
                intake.queue = store.queues[intake.name]
                intake.hungry = True
            self._adopt()
        self._next_tick = 0.0
        self._was_open = True

    def _release_files(self, *, remove: bool) -> None:
        if self._bell is not None:
            if self._worker and self._bell.socket is not None:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._bell.socket.fileno())
            self._bell.end()
            self._bell = None
        if self._lease is not None:
            self._lease.end(remove=remove)
            self._lease = None
        self._store.close()

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Sleep until there is something to do. Times are looked at anew each second, so the clock may jump."""
        self.asleep = True
        try:
            timeout = self._timeout()
            events = self._poll.poll(None if timeout is None else math.ceil(timeout * 1000))
        finally:
            self.asleep = False
        self.beat = time.monotonic()
        for fd, _event in events:
            if fd == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 4096)
            elif self._bell is not None:
                self._bell.drain()
                self._look()

    def _timeout(self) -> float | None:
        if self._inbox or self._closing.is_set():
            return 0.0
        now = time.monotonic()
        waits: list[float] = []
        if self._worker:
            waits.append(self._next_tick - now)
        if self.trouble or not self._store.is_open:
            waits.append(self._retry_at - now)
            return max(0.0, min(waits))
        if self._publishes or self._asks or self._settles:
            return 0.0
        if any(self._wants(intake) for intake in self._intakes):
            return 0.0
        if self._worker and self._next_due is not None:
            waits.append(self._next_due / 1e6 - time.time())
        return max(0.0, min(waits)) if waits else None

    @staticmethod
    def _wants(intake: Intake) -> bool:
        return intake.hungry and not intake.paused and intake.credit > intake.held

    def _look(self) -> None:
        """Read what there is to do: somebody says that it changed, or a second has passed."""
        if not self._worker or not self._store.is_open:
            return
        try:
            self._next_due, ready = self._store.agenda()
        except Exception as error:  # noqa: BLE001 - judged there
            self._failed(error)
            return
        self._whet(ready)

    def _whet(self, queues: set[int]) -> None:
        for intake in self._intakes:
            if intake.queue in queues:
                intake.hungry = True

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    # --- one round ----------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._sort_inbox()
        if self._store.is_open and self._store.replaced():
            self._file_gone()
        now = time.monotonic()
        if not self._store.is_open and (now >= self._retry_at or self._publishes):
            try:
                self._connect()
            except Exception as error:  # noqa: BLE001 - judged there
                self._release_files(remove=True)
                publishes = list(self._publishes)
                self._publishes.clear()
                self._not_committed(error, publishes)
            else:
                self._recovered()
        if self._store.is_open:
            if self._worker and now >= self._next_tick:
                self._next_tick = now + TICK
                self._tick()
            self._write()
        self._answer()
        self._post_done()

    def _sort_inbox(self) -> None:
        inbox = self._inbox
        while inbox:
            match inbox.popleft():
                case Publish() as command:
                    self._publishes.append(command)
                case Settle() as command:
                    self._settles.append(command)
                case Ask() as command:
                    self._asks.append(command)

    def _write(self) -> None:
        """Settle, publish, promote and claim, in one transaction as long as nothing goes wrong."""
        settles = self._settles if not self.trouble or time.monotonic() >= self._retry_at else []
        publishes: list[Publish] = []
        count = 0
        while self._publishes and count < PUBLISH_AT_ONCE:
            command = self._publishes.popleft()
            if not command.abandoned:
                publishes.append(command)
                count += len(command.messages)
        now = time.time_ns() // 1000
        due = self._worker and self._next_due is not None and self._next_due <= now
        probe = bool(self.trouble) and time.monotonic() >= self._retry_at
        claims = (probe or not self.trouble) and any(self._wants(intake) for intake in self._intakes)
        if not (settles or publishes or claims or due or probe):
            return
        try:
            try:
                self._commit(settles, publishes, now, claims=claims, probe=probe)
            except StaleError:
                self._drop_stale()
                self._commit(settles, publishes, now, claims=claims, probe=probe)
        except Exception as error:  # noqa: BLE001 - judged there
            self._not_committed(error, publishes)
        else:
            if settles:
                self._settles = []
            for done in publishes:
                self._finish(done.future, done.errors)
            if self.trouble:
                self._recovered()

    def _not_committed(self, error: BaseException, publishes: list[Publish]) -> None:
        self._failed(error)
        if kind_of(error) is Kind.WAIT:
            # nobody's fault and soon over: the senders' own timeouts decide
            self._publishes.extendleft(reversed(publishes))
            return
        for command in publishes:
            failure = SendError(explain(error, self._place.file))
            self._finish(command.future, dict.fromkeys(range(len(command.messages)), failure))

    def _commit(self, settles: list[Settle], publishes: list[Publish], now: int, *, claims: bool, probe: bool) -> None:
        store = self._store
        claimed: list[tuple[Intake, list[Delivery], bool]] = []
        earliest: int | None = None
        promoted = 0
        plan = Plan(self._prefix, now)
        try:
            for command in settles:
                plan.take(command, self._held)
            names = {self._prefix + message.queue for publish in publishes for message in publish.messages}
            names |= plan.names
            with store.transaction(durable=bool(publishes) or plan.durable):
                if store.missing(names):
                    for name in names:
                        store.queue(name)
                batch = rows.Batch()
                ids = _Ids(store.queues, self._prefix)
                for publish in publishes:
                    if publish.abandoned:  # while this waited for its turn
                        continue
                    publish.errors = batch.add(publish.messages, ids)
                touched = plan.resolve(store.queues)
                store.settle(self._owner, plan)
                if batch.rows:
                    earliest = store.insert(batch, now)
                    touched.update(row[0] for row in batch.rows)
                if self._worker and self._next_due is not None and self._next_due <= now:
                    promoted, queues = store.promote(now, PROMOTE_AT_ONCE)
                    touched |= queues
                if claims or ((settles or touched) and not self.trouble):
                    self._claim(plan.freed, touched, claimed)
                if probe:
                    store.probe()
        except BaseException:
            for delivery in plan.taken:
                self._held[delivery.tag.seq] = delivery
            raise
        # committed: from here on nothing can fail
        for intake, count in plan.freed.items():
            intake.held -= count
        self._whet(touched)
        for intake, deliveries, more in claimed:
            intake.hungry = more
            intake.held += len(deliveries)
            for delivery in deliveries:
                self._held[delivery.tag.seq] = delivery
        given = [(intake, deliveries) for intake, deliveries, _more in claimed if deliveries]
        if given:
            self._post(functools.partial(self._arrive, given))
        for command in settles:
            self._finish(command.future, command.refused)
        for due in (earliest, *plan.delays):
            if due is not None and (self._next_due is None or due < self._next_due):
                self._next_due = due
        if touched or plan.delays or earliest is not None:
            self._ring()
        if plan.faults:
            self._next_tick = 0.0  # a queue of ours may be the place of these dead letters
        if promoted:
            self._look()

    def _claim(
        self, freed: dict[Intake, int], touched: set[int], claimed: list[tuple[Intake, list[Delivery], bool]]
    ) -> None:
        wanting = [
            (intake, intake.credit - intake.held + freed.get(intake, 0))
            for intake in self._intakes
            if (intake.hungry or intake.queue in touched) and not intake.paused
        ]
        wanting = [(intake, free) for intake, free in wanting if free > 0]
        if not wanting:
            return
        # whoever stood first stands last next time, and nobody takes more than a share while others want too
        share = max(1, CLAIM_AT_ONCE // len(wanting))
        for intake, free in wanting:
            deliveries, more = self._store.claim(self._owner, intake.queue, intake.spec.name, min(free, share), intake)
            claimed.append((intake, deliveries, more))
        if len(self._intakes) > 1:
            self._intakes.append(self._intakes.pop(0))

    def _drop_stale(self) -> None:
        """Some of what we thought we hold is not ours: forget it, so that settling it is refused."""
        owned = self._store.owned(self._owner, self._held)
        self._lose([delivery for seq, delivery in self._held.items() if seq not in owned])

    def _lose(self, deliveries: list[Delivery]) -> None:
        by_intake: dict[Intake, list[Delivery]] = {}
        for delivery in deliveries:
            del self._held[delivery.tag.seq]
            by_intake.setdefault(delivery.tag.subscription, []).append(delivery)
        for intake, lost in by_intake.items():
            intake.held -= len(lost)
            intake.hungry = True
            self._post(functools.partial(self._tell_lost, intake, lost))

    @staticmethod
    def _tell_lost(intake: Intake, lost: list[Delivery]) -> None:
        gone = {id(delivery) for delivery in lost}
        intake.waiting = [delivery for delivery in intake.waiting if id(delivery) not in gone]
        intake.lost(lost)

    # --- each second --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        try:
            self._keep_lease()
            self._inherit()
            self._adopt()
        except Exception as error:  # noqa: BLE001 - judged there
            self._failed(error)
            return
        self._look()

    def catch_up(self) -> None:
        """Notice at once when others thought us dead."""
        if self._lease is not None:
            self._inherit()

    def _keep_lease(self) -> None:
        assert self._lease is not None
        self._lease.keep()

    def _inherit(self) -> None:
        """Return at once what dead owners held; and take a new lease if others thought us dead."""
        store = self._store
        lease = self._lease
        assert lease is not None
        owners = store.owners()
        if (self._owner, lease.name) not in owners:
            log.warning("this worker was taken for dead; what it held is given out again", place=str(self._place))
            with store.transaction(durable=True):
                self._owner = store.add_owner(lease.name)
            self._lose(list(self._held.values()))
        for dead in lease.dead(owners):
            try:
                with store.transaction(durable=True):
                    # another worker may have buried it while we took its lock
                    if (dead.id, dead.name) not in store.owners():
                        count = crashed = 0
                    else:
                        count, crashed = store.inherit(dead)
            except BaseException:
                dead.leave()
                raise
            dead.bury(self._place.owners)
            if count:
                log.warning("a worker died; its messages are back", messages=count, running=crashed)
                self._whet({intake.queue for intake in self._intakes})
                self._ring()

    # --- trouble ------------------------------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        """Something could not be done: say so once, and try again a little later."""
        self._retry_at = time.monotonic() + self._retry
        self._retry = min(self._retry * 2, RETRY_LAST)
        text = explain(error, self._place.file)
        # a short wait for somebody else's lock is no news, nor is what was said half a minute ago
        if text != self.trouble and (kind_of(error) is not Kind.WAIT or self.trouble):
            now = time.monotonic()
            if now - self._said.get(text, -math.inf) > SAY_AGAIN:
                self._said[text] = now
                log.error(text)
        self.trouble = text

    def _recovered(self) -> None:
        if self.trouble:
            if self._retry > 4 * RETRY_FIRST:
                log.info("the queue file can be written again", file=str(self._place.file))
            self.trouble = ""
            self._look()
        self._retry = RETRY_FIRST
        self._retry_at = 0.0

    def _file_gone(self) -> None:
        """Somebody removed or replaced the file: nothing of the old one is ours any more; begin anew on what is there."""
        text = f"{self._place.file}: was removed or replaced while it was open; what it held is gone with it"
        log.error(text)
        self.told = (time.monotonic(), text)
        self._lose(list(self._held.values()))
        self._release_files(remove=True)
        self._retry_at = 0.0
        self._next_due = None

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        for _ in range(len(self._asks)):
            ask = self._asks.popleft()
            if ask.future.cancelled():
                continue
            if not (self._store.is_open or ask.offline):
                self._finish(ask.future, None, BrokerError(self.trouble or f"{self._place}: is not open"))
                continue
            try:
                result = ask.call(self)
            except Exception as error:  # noqa: BLE001 - goes to whoever asked
                if kind_of(error) is Kind.WAIT:
                    self._failed(error)
                    self._asks.append(ask)
                    continue
                failure = error if isinstance(error, HandrailError) else BrokerError(explain(error, self._place.file))
                self._finish(ask.future, None, failure)
            else:
                self._finish(ask.future, result)

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None = None) -> None:
        self._done.append((future, result, error))

    def _post_done(self) -> None:
        if self._done:
            done, self._done = self._done, []
            self._post(functools.partial(_resolve, done))

    def _post(self, call: Callable[[], None]) -> None:
        # the loop is closed: its program has ended without closing us, and nobody waits for this
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _arrive(self, given: list[tuple[Intake, list[Delivery]]]) -> None:
        for intake, deliveries in given:
            intake.arrive(deliveries, self.give_back)

    def give_back(self, deliveries: list[Delivery]) -> None:
        """On the loop: release what was claimed and never delivered."""
        future: asyncio.Future[list[Settlement]] = self._loop.create_future()
        future.add_done_callback(asyncio.Future.exception)  # closed meanwhile: then closing has given it back
        self.submit(Settle([Settlement(delivery, Verb.RELEASE) for delivery in deliveries], future))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _shut(self) -> None:
        """Finish what was submitted, give back what is held, and leave no trace of this owner."""
        until = time.monotonic() + CLOSE_PATIENCE
        for intake in self._intakes:
            intake.paused = True
        while True:
            self._round()
            waiting = self._inbox or self._publishes or self._settles or self._asks
            if not waiting or time.monotonic() > until:
                break
            time.sleep(min(RETRY_FIRST, max(0.0, self._retry_at - time.monotonic())))
        clean = self._store.is_open and self._resign()
        self._fail_all(BrokerError(f"{self._place}: closed"))
        self._release_files(remove=clean)

    def _resign(self) -> bool:
        if not self._worker:
            return True
        store = self._store
        plan = Plan()
        for delivery in self._held.values():
            plan.counts[delivery.tag.queue, sql.ACTIVE] -= 1
            plan.release(delivery.tag, None)
        try:
            with store.transaction(durable=False):
                store.settle(self._owner, plan)
                store.remove_owner(self._owner)
        except (StaleError, Exception) as error:  # noqa: BLE001 - said here
            # the lock file stays, free: the next worker to look returns what we held
            log.warning(
                "could not give back what was held; the next worker will", error=explain(error, self._place.file)
            )
            return False
        if plan.released:
            self._ring()
        self._held.clear()
        return True

    def _fail_all(self, error: BrokerError) -> None:
        self._sort_inbox()
        for publish in self._publishes:
            failure = SendError(self.trouble or str(error))
            self._finish(publish.future, dict.fromkeys(range(len(publish.messages)), failure))
        futures: list[asyncio.Future[Any]] = [one.future for one in self._settles]
        futures += [one.future for one in self._asks]
        for future in futures:
            self._finish(future, None, BrokerError(self.trouble or str(error)))
        if self._opened is not None:
            self._finish(self._opened, None, error)
        self._publishes.clear()
        self._settles = []
        self._asks.clear()
        self._post_done()


class _Ids(dict[str, int]):
    """Queue ids by the names that messages bear: without the prefix."""

    def __init__(self, queues: dict[str, int], prefix: str) -> None:
        super().__init__()
        self._queues = queues
        self._prefix = prefix

    def __missing__(self, name: str) -> int:
        number = self[name] = self._queues[self._prefix + name]
        return number


def _resolve(done: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in done:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
