"""The database of one broker: every operation as one or few statements, all on the thread that opened it.

It decides nothing about when; the writer does. Every method but :meth:`Store.open` and the reads runs within
:meth:`Store.transaction`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import apsw.bestpractice

from handrail.adapter import Delivery, Depth
from handrail.board import completed_at, running_at
from handrail.errors import BrokerError
from handrail.message import Message
from handrail.outcome import Fault
from handrail_sqlite import rows
from handrail_sqlite import statements as sql
from handrail_sqlite.commands import Intake
from handrail_sqlite.faults import foreign, newer
from handrail_sqlite.owners import Dead, Turn, in_child, is_folder
from handrail_sqlite.place import Place
from handrail_sqlite.plan import Plan, Tag

#: Pages of WAL after which a commit copies them into the file: 32 MB, so that bulk work pays for it seldom.
CHECKPOINT_PAGES = 8000
#: KB of page cache.
CACHE_KB = 32_000
#: Milliseconds that SQLite itself waits for other programs' locks before the writer looks round again.
BUSY_MS = 500
#: Bytes of bodies that one claim takes at most (one message is always taken), for a claim comes back as one value.
CLAIM_BYTES = 16 << 20
#: Dead or waiting messages purged or replayed in one transaction, so that nobody waits long for their turn.
CLEAR_AT_ONCE = 5000


class StaleError(Exception):
    """A row that was to be settled is no longer this owner's."""


class Store:
    """One connection to the database at *place*."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._db: apsw.Connection | None = None
        self._turn: Turn | None = None
        self._identity = (0, 0)
        self._synchronous = ""
        self._queues: dict[str, int] = {}
        self._new_queues: list[str] = []
        self._counts: dict[tuple[int, int], int] = defaultdict(int)

    # --- opening ------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def open(self) -> None:
        """Open the file, making it and its schema where they are missing.

        Raises :class:`BrokerError` and :class:`SchemaError` for what is wrong with the file, and apsw's errors for the rest.
        """
        file = self.place.file
        if is_folder(file):
            raise BrokerError(f"{file}: is a folder; name a file in it")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.place.owners.mkdir(exist_ok=True)
            for path in (file, file.parent, self.place.owners):
                if path.exists() and not os.access(path, os.W_OK):
                    raise PermissionError(path)
            self._turn = Turn(self.place.owners)
            db = apsw.Connection(str(file))
        except BaseException:
            self.close()
            raise
        try:
            with self._turn:
                self._prepare(db, file)
            found = file.stat()
        except BaseException:
            db.close()
            self.close()
            raise
        self._db = db
        in_child(self)
        self._identity = found.st_dev, found.st_ino

    def _prepare(self, db: apsw.Connection, file: Path) -> None:
        db.set_busy_timeout(BUSY_MS)
        # only on this connection, not by hooks: other users of apsw in a sender's process keep their own ways
        apsw.bestpractice.connection_dqs(db)
        application, version = db.pragma("application_id"), db.pragma("user_version")
        if application == sql.APPLICATION:
            if version > sql.VERSION:
                raise newer(file, version, sql.VERSION)
        elif db.execute(sql.TABLES).get:
            raise foreign(file)
        if db.readonly("main"):
            raise apsw.ReadOnlyError(str(file))
        db.pragma("journal_mode", "wal")
        db.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        db.pragma("journal_size_limit", 2 * CHECKPOINT_PAGES * 4096)
        db.pragma("cache_size", -CACHE_KB)
        db.pragma("temp_store", 2)
        if application != sql.APPLICATION:
            db.pragma("synchronous", 2)
            db.execute("BEGIN IMMEDIATE")
            try:
                # between our look and our turn another process may have made it
                if not db.execute(sql.TABLES).get:
                    db.execute(sql.SCHEMA)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        self._synchronous = ""

    def forget(self) -> None:
        """In a forked child: never close this, not even at the end, for SQLite's locks and log belong to the parent."""
        if self._db is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))

    def close(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._turn = None
        if self._db is not None:
            self._db.close()
            self._db = None
        self._queues.clear()
        self._new_queues.clear()
        self._counts.clear()

    def replaced(self) -> bool:
        """Whether the path no longer leads to the file that is open: somebody removed or replaced it."""
        try:
            found = os.stat(self.place.file)  # noqa: PTH116 - before each transaction
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    @property
    def db(self) -> apsw.Connection:
        assert self._db is not None
        return self._db

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, durable: bool) -> Iterator[None]:
        """One write transaction in our turn; with *durable* a power cut cannot undo it once it is committed."""
        db = self.db
        assert self._turn is not None
        with self._turn:
            level = "OFF" if self.place.memory else "FULL" if durable else "NORMAL"
            if level != self._synchronous:
                db.execute(f"PRAGMA synchronous = {level}")
                self._synchronous = level
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._write_counts()
                db.execute("COMMIT")
            except BaseException:
                self._counts.clear()
                for name in self._new_queues:
                    self._queues.pop(name, None)
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                self._new_queues.clear()

    def _count(self, queue: int, state: int, by: int) -> None:
        self._counts[queue, state] += by

    def _write_counts(self) -> None:
        by_queue: dict[int, list[int]] = {}
        for (queue, state), by in self._counts.items():
            if by:
                by_queue.setdefault(queue, [0, 0, 0, 0])[state] += by
        for queue, changes in by_queue.items():
            self.db.execute(sql.COUNT, (queue, *changes))
        self._counts.clear()

    def _advance(self, by: int) -> int:
        """Take *by* numbers of the counter; returns the one before the first."""
        before: int = self.db.execute(sql.ADVANCE, (by,)).get
        return before

    # --- queues -------------------------------------------------------------------------------------------------------

    def missing(self, names: Iterable[str]) -> bool:
        """Whether one of *names* has to be added by :meth:`queue` first."""
        known = self._queues
        return any(name not in known for name in names)

    @property
    def queues(self) -> dict[str, int]:
        """The ids of the queues met so far, by name. A caller may not change it."""
        return self._queues

    def queue(self, name: str) -> int:
        """The id of queue *name*, which is added where it is missing."""
        number = self._queues.get(name)
        if number is None:
            self.db.execute(sql.ADD_QUEUE, (name,))
            number = self._queues[name] = self.db.execute(sql.QUEUE_ID, (name,)).get
            self._new_queues.append(name)
        return number

    def declare(self, name: str, *, lifo: bool) -> None:
        self.db.execute(sql.SET_ORDER, (self.queue(name), int(lifo)))

    def declared(self, name: str, *, lifo: bool) -> bool:
        """Whether :meth:`declare` has nothing to do. A read."""
        number = self._queues.get(name) or self.db.execute(sql.QUEUE_ID, (name,)).get
        if number is None:
            return False
        self._queues[name] = number
        return bool(self.db.execute(sql.GET_ORDER, (number,)).get) == lifo

    def agenda(self) -> tuple[int | None, set[int]]:
        """The next due time (microseconds) and the ids of the queues that have ready messages. A read."""
        due, ready = self.db.execute(sql.AGENDA).get
        return due, {int(one) for one in ready.split(",")} if ready else set()

    # --- publishing ---------------------------------------------------------------------------------------------------

    def insert(self, batch: rows.Batch, now: int) -> int | None:
        """Store *batch*; returns the earliest due time of what was delayed."""
        db = self.db
        last: int = db.execute(sql.LAST_SEQ).get
        db.execute(sql.INSERT, (last, now, rows.to_json(batch.rows)))
        db.execute(sql.INSERT_BODIES, (last, apsw.carray(tuple(batch.bodies))))
        first = last + 1
        if batch.extras:
            db.executemany(sql.PUT_EXTRA, [(first + at, data) for at, data in batch.extras])
        for at, attempts, starts, crashes in batch.counts:
            db.execute(sql.SET_COUNTS, (first + at, attempts, starts, crashes))
        for at, fault in batch.faults:
            self._put_fault(first + at, "", fault)
        earliest = None
        for queue, _priority, due, *_rest in batch.rows:
            if due is not None and due > now:
                self._count(queue, sql.DELAYED, 1)
                earliest = due if earliest is None else min(earliest, due)
            else:
                self._count(queue, sql.READY, 1)
        return earliest

    def _put_fault(self, seq: int, place: str, fault: Fault) -> None:
        self.db.execute(sql.PUT_FAULT, (seq, place, fault.queue, rows.micros(fault.at), fault.reason, fault.traceback))

    # --- claiming -----------------------------------------------------------------------------------------------------

    def claim(self, owner: int, queue: int, name: str, limit: int, subscription: Intake) -> tuple[list[Delivery], bool]:
        """Up to *limit* ready messages of *queue*, now held by *owner*; and whether there may be more.

        Nothing when *owner* was taken for dead and does not know it yet: nobody would look for what it holds.
        """
        db = self.db
        if db.execute(sql.IS_OWNER, (owner,)).get is None:
            return [], False
        found = rows.decode_rows(db.execute(sql.CANDIDATES, (queue, limit)).get)
        if not found:
            return [], False
        more = len(found) == limit
        sizes = [row.size for row in found]
        total = sum(sizes)
        if total > CLAIM_BYTES:
            total = 0
            for count, size in enumerate(sizes):
                if count and total + size > CLAIM_BYTES:
                    del found[count:]
                    more = True
                    break
                total += size
        seqs = rows.numbers([row.seq for row in found])
        bodies: bytes = db.execute(sql.BODIES, (apsw.carray(seqs),)).get if total else b""
        db.execute(sql.CLAIM, (owner, apsw.carray(seqs)))
        deliveries = []
        at = 0
        extended = False
        for row in found:
            end = at + row.size
            body = bodies[at:end]
            at = end
            due = row.due
            message = Message(
                queue=name,
                id=row.id,
                body=body,
                priority=row.priority,
                sent_at=row.sent / 1e6,
                due=None if due is None else due / 1e6,
                attempts=row.attempts,
                starts=row.starts,
                crashes=row.crashes,
            )
            if row.more:
                extended = True
            deliveries.append(
                Delivery(message, Tag(row.seq, queue, row.more, body, subscription), row.redelivered != 0)
            )
        if at != len(bodies):
            raise apsw.CorruptError("bodies do not have the sizes that were stored with them")
        if extended:
            self._complete({delivery.tag.seq: delivery.message for delivery in deliveries if delivery.tag.more})
            if subscription.spec.order == "key":
                for delivery in deliveries:
                    delivery.sequence = delivery.message.key
        self._count(queue, sql.READY, -len(deliveries))
        self._count(queue, sql.ACTIVE, len(deliveries))
        return deliveries, more

    def _complete(self, messages: dict[int, Message]) -> None:
        seqs = rows.numbers(list(messages))
        for seq, data in self.db.execute(sql.EXTRAS, (apsw.carray(seqs),)):
            rows.apply(messages[seq], data)
        for seq, reason, traceback, at, queue in self.db.execute(sql.FAULTS, (apsw.carray(seqs),)):
            messages[seq].fault = Fault(reason=reason, traceback=traceback, at=at / 1e6, queue=queue)

    # --- settling -----------------------------------------------------------------------------------------------------

    def owned(self, owner: int, seqs: Collection[int]) -> set[int]:
        """Which of *seqs* this owner still holds. A read."""
        if not seqs:
            return set()
        return {seq for (seq,) in self.db.execute(sql.OWNED, (owner, apsw.carray(rows.numbers(list(seqs)))))}

    def settle(self, owner: int, plan: Plan) -> None:
        """Carry out *plan*. Raises :class:`StaleError` when *owner* does not hold all of it: roll back then."""
        db = self.db
        if plan.acks:
            seqs = rows.numbers(plan.acks)
            self._exactly(len(seqs), sql.DELETE, (owner, apsw.carray(seqs)))
            db.execute(sql.DELETE_BODIES, (apsw.carray(seqs),))
        if plan.held:
            self._exactly(len(plan.held), sql.HOLD, (owner, rows.to_json(plan.held)))
        if plan.released:
            self._exactly(len(plan.released), sql.RELEASE, (owner, apsw.carray(rows.numbers(plan.released))))
        if plan.given_back:
            self._exactly(len(plan.given_back), sql.GIVE_BACK, (owner, rows.to_json(plan.given_back)))
        if plan.heads:
            self._to_head(plan.heads)
        if plan.moves:
            before = self._advance(len(plan.moves))
            self._exactly(len(plan.moves), sql.MOVE, (owner, before, rows.to_json(plan.moves)))
        if plan.no_extra:
            db.execute(sql.DELETE_EXTRAS, (apsw.carray(rows.numbers(plan.no_extra)),))
        if plan.no_fault:
            db.execute(sql.DELETE_FAULTS, (apsw.carray(rows.numbers(plan.no_fault)),))
        if plan.extras:
            db.executemany(sql.PUT_EXTRA, plan.extras)
        if plan.bodies:
            db.executemany(sql.PUT_BODY, plan.bodies)
        for seq, place, fault in plan.faults:
            self._put_fault(seq, place, fault)
        for (queue, state), by in plan.counts.items():
            self._count(queue, state, by)

    def _to_head(self, seqs: list[int]) -> None:
        last = self._advance(len(seqs)) + len(seqs)
        self.db.execute(sql.TO_HEAD, (rows.to_json(seqs), last))

    def _exactly(self, expected: int, statement: str, arguments: tuple[Any, ...]) -> None:
        self.db.execute(statement, arguments)
        if self.db.changes() != expected:
            raise StaleError

    # --- delays -------------------------------------------------------------------------------------------------------

    def promote(self, now: int, limit: int) -> tuple[int, set[int]]:
        """Make ready up to *limit* of what fell due; returns how many, and the ids of their queues."""
        text: str = self.db.execute(sql.FALLEN_DUE, (now, limit)).get
        due: list[tuple[int, int]] = rows.from_json(text)
        if not due:
            return 0, set()
        self.db.execute(sql.PROMOTE, (self._advance(len(due)), text))
        for _seq, queue in due:
            self._count(queue, sql.DELAYED, -1)
            self._count(queue, sql.READY, 1)
        return len(due), {queue for _seq, queue in due}

    # --- owners -------------------------------------------------------------------------------------------------------

    def add_owner(self, name: str) -> int:
        number: int = self.db.execute(sql.ADD_OWNER, (name,)).get
        return number

    def owners(self) -> list[tuple[int, str]]:
        """A read."""
        return [(number, name) for number, name in self.db.execute(sql.OWNERS)]

    def remove_owner(self, number: int) -> None:
        self.db.execute(sql.REMOVE_OWNER, (number,))

    def inherit(self, dead: Dead) -> tuple[int, int]:
        """Put back at the head what *dead* held; returns how many, and how many of them were running.

        What its board says was completed is acknowledged in its name: only the word of it was missing.
        """
        running = running_at(dead.board) if dead.board is not None else {}
        completed = Counter(completed_at(dead.board) if dead.board is not None else ())
        returned: list[tuple[int, int, int, int, int]] = []
        finished: list[int] = []
        heads: list[int] = []
        crashed = 0
        for seq, queue, name, lifo, id_, attempts, starts, crashes, _again in self.db.execute(sql.HELD_BY, (dead.id,)):
            known = name.removeprefix(dead.prefix), id_
            if completed[known]:
                completed[known] -= 1
                finished.append(seq)
                self._count(queue, sql.ACTIVE, -1)
                continue
            before = running.get(known)
            if before is not None:
                crashed += 1
                returned.append((seq, attempts, starts + 1, max(crashes, before) + 1, 1))
            else:
                returned.append((seq, attempts, starts, crashes, 1))
            if lifo:
                heads.append(seq)
            self._count(queue, sql.ACTIVE, -1)
            self._count(queue, sql.READY, 1)
        if finished:
            seqs = apsw.carray(rows.numbers(finished))
            self._exactly(len(finished), sql.DELETE, (dead.id, seqs))
            for statement in (sql.DELETE_BODIES, sql.DELETE_EXTRAS, sql.DELETE_FAULTS):
                self.db.execute(statement, (seqs,))
        if returned:
            self._exactly(len(returned), sql.GIVE_BACK, (dead.id, rows.to_json(returned)))
        if heads:
            self._to_head(heads)
        self.remove_owner(dead.id)
        return len(returned), crashed

    # --- looking at and clearing --------------------------------------------------------------------------------------

    def depth(self, name: str) -> Depth:
        """A read."""
        found = self.db.execute(sql.DEPTH, (name,)).get
        ready, delayed, active, dead = found or (0, 0, 0, 0)
        return Depth(ready=ready, delayed=delayed, active=active, dead=dead)

    def peek(self, name: str, shown: str, state: int, limit: int, offset: int) -> list[Message]:
        """A read. *shown* is the queue's name as its messages shall have it."""
        found = self.db.execute(sql.peek(state), (name, limit, offset))
        return [rows.from_peek(row, shown) for row in found]

    def find(self, name: str, shown: str, state: int, message_id: str) -> Message | None:
        """A read."""
        row = self.db.execute(sql.find(state), (name, message_id)).fetchone()
        return None if row is None else rows.from_peek(row, shown)

    def purge(self, name: str, state: int, ids: Sequence[str] | None) -> int:
        """Delete up to CLEAR_AT_ONCE messages; returns how many, and is to be called again until that is 0."""
        queue = self.queue(name)
        seqs = self._select(queue, state, ids)
        if not seqs:
            return 0
        numbers = rows.numbers(seqs)
        self._exactly(len(seqs), sql.delete(state), (apsw.carray(numbers),))
        for statement in (sql.DELETE_BODIES, sql.DELETE_EXTRAS, sql.DELETE_FAULTS):
            self.db.execute(statement, (apsw.carray(numbers),))
        self._count(queue, state, -len(seqs))
        return len(seqs)

    def replay(self, name: str, prefix: str, ids: Sequence[str] | None) -> tuple[int, set[int]]:
        """Make ready up to CLEAR_AT_ONCE dead letters; as :meth:`purge`. Returns the ids of the queues too."""
        queue = self.queue(name)
        seqs = self._select(queue, sql.DEAD, ids)
        if not seqs:
            return 0, set()
        numbers = rows.numbers(seqs)
        origin: dict[Any, Any] = dict(self.db.execute(sql.DIED_IN, (apsw.carray(numbers),)))
        targets = [(seq, self.queue(prefix + origin[seq]) if origin.get(seq) else queue) for seq in seqs]
        now = time.time_ns() // 1000
        self._exactly(len(seqs), sql.REPLAY, (self._advance(len(seqs)), now, rows.to_json(targets)))
        self.db.execute(sql.DELETE_FAULTS, (apsw.carray(numbers),))
        self._count(queue, sql.DEAD, -len(seqs))
        for _seq, target in targets:
            self._count(target, sql.READY, 1)
        return len(seqs), {target for _seq, target in targets}

    def has_dead(self, place: str) -> bool:
        """Whether dead letters stand under the name *place*. A read."""
        return bool(self.db.execute(sql.HAS_DEAD, (place,)).get)

    def adopt(self, place: str, queue: int) -> None:
        """Make dead letters that stand under the name *place* ready in the queue that bears it."""
        text: str = self.db.execute(sql.DEAD_AT, (place, CLEAR_AT_ONCE)).get
        found: list[tuple[int, int]] = rows.from_json(text)
        if not found:
            raise StaleError
        self._exactly(len(found), sql.ADOPT, (queue, self._advance(len(found)), text))
        self.db.execute(sql.LEAVE_PLACE, (place, apsw.carray(rows.numbers([seq for seq, _queue in found]))))
        for _seq, origin in found:
            self._count(origin, sql.DEAD, -1)
            self._count(queue, sql.READY, 1)

    def probe(self) -> None:
        """Write something, to learn whether anything can be written."""
        self.db.execute(sql.PROBE)

    def _select(self, queue: int, state: int, ids: Sequence[str] | None) -> list[int]:
        arguments: tuple[Any, ...] = (queue, CLEAR_AT_ONCE)
        if ids is not None:
            arguments = (*arguments, rows.to_json(list(ids)))
        found: list[int] = rows.from_json(self.db.execute(sql.select(state, by_id=ids is not None), arguments).get)
        return found
