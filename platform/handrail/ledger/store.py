"""The ledger's SQL on one SQLite file. Blocking, for one thread; it does not retry and logs nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import apsw

from handrail import duration
from handrail.errors import BrokerError, SchemaError
from handrail.ledger.port import CANCELLATION_KEPT, FINISHED_KEPT, HELD_KEPT, Cancelling, Record
from handrail.outcome import Outcome

SCHEMA_VERSION = 1
#: Marks the file as ours (``PRAGMA application_id``): "hrlg".
APPLICATION = 0x68726C67
#: Seconds to wait for a process that does not take part in our lock, such as the sqlite3 command.
BUSY_TIMEOUT = 5.0
#: Rows that one pruning transaction deletes at most: a few milliseconds.
PRUNE_ROWS = 500
#: Seconds for which a cancellation that no longer stands is kept, for workers to see that it went.
WITHDRAWN_KEPT = 600.0

#: queue, id, outcome, final, attempts, at, error, result
Row = tuple[str, str, str, bool, int, float, str, bytes | None]

# A row comes back when the id is ours to run. The outcome of a finished run gives way: the job is under way again.
_CLAIM = """
INSERT INTO job (queue, id, send, touched) VALUES (?, ?, ?, ?)
ON CONFLICT (queue, id) DO UPDATE SET
    touched = excluded.touched, final = 0, result = NULL,
    outcome = iif(final, NULL, outcome), error = iif(final, '', error)
WHERE iif(excluded.send = '', NOT final OR (send = '' AND outcome = 'dead'), send = excluded.send)
RETURNING 1
"""
# A worker that is late with an outcome which was not the end does not undo one that was.
_FINISH = """
INSERT INTO job (queue, id, outcome, final, attempts, at, error, result, touched) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (queue, id) DO UPDATE SET
    outcome = excluded.outcome, final = excluded.final, at = excluded.at, error = excluded.error,
    result = excluded.result, touched = excluded.touched, attempts = iif(excluded.attempts, excluded.attempts, attempts)
WHERE excluded.final OR NOT final OR excluded.at > at
"""
_NOTE = "INSERT OR REPLACE INTO cancellation (queue, id, at, standing) VALUES (?, ?, ?, ?)"


class Store:
    """One open file, or a private database in memory for ``path=None``."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._db: apsw.Connection | None = None
        self._lock_fd = -1
        self._inode: tuple[int, int] | None = None
        #: All standing cancellations; replaced, never changed, by :meth:`refresh`.
        self.cancelled: set[tuple[str, str]] = set()
        self._standing: dict[tuple[str, str], float] = {}
        self._seen = 0
        self._refreshed = float("-inf")

    @property
    def place(self) -> str:
        return ":memory:" if self.path is None else str(self.path)

    @property
    def db(self) -> apsw.Connection:
        if self._db is None:
            raise BrokerError(f"ledger {self.place}: is not open")
        return self._db

    # -- opening -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create the file. Raises :class:`BrokerError` or :class:`SchemaError`; then nothing was changed."""
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock_fd = os.open(f"{self.path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._db = apsw.Connection(":memory:" if self.path is None else str(self.path))
            self._db.set_busy_timeout(round(BUSY_TIMEOUT * 1000))
            with self._locked():
                self._check()
            if self.path is not None:
                found = self.path.stat()
                self._inode = found.st_dev, found.st_ino
        except (apsw.Error, OSError) as error:
            self.close()
            raise self.explain(error) from error
        except BrokerError:
            self.close()
            raise

    def _check(self) -> None:
        db = self.db
        version, application = db.pragma("user_version"), db.pragma("application_id")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone() or (0,)
        if tables and application != APPLICATION:
            raise SchemaError(
                f"ledger {self.place}: this database was made by something else; give the ledger a file of its own"
            )
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"ledger {self.place}: written by a newer handrail (schema {version}, this one knows {SCHEMA_VERSION}); "
                "upgrade handrail, or name another file"
            )
        if db.readonly("main"):
            raise BrokerError(
                f"ledger {self.place}: cannot be written; mend the permissions of the file and its folder"
            )
        if self.path is not None and (mode := db.pragma("journal_mode", "wal")) != "wal":
            raise BrokerError(
                f"ledger {self.place}: its file system has no shared memory (journal mode {mode}); put it on a local disk"
            )
        # a power cut may take the last commits: dedup and results then know less, no message is lost
        db.pragma("synchronous", "normal")
        db.pragma("journal_size_limit", 64 << 20)
        if not tables:
            with self._begun():
                db.execute(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
                db.pragma("application_id", APPLICATION)
                db.pragma("user_version", SCHEMA_VERSION)

    def close(self) -> None:
        self._refreshed = float("-inf")
        try:
            if self._db is not None:
                self._db.close()
        finally:
            self._db = None
            self.drop_lock()

    def drop_lock(self) -> None:
        """Let go of the lock file alone: for a forked child, which would keep its parent's lock alive."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def follow(self) -> bool:
        """Open anew when somebody removed or replaced the file under us; whether it was so. Raises as :meth:`open`."""
        if self.path is None:
            return False
        try:
            found = self.path.stat()
            if self._db is not None and (found.st_dev, found.st_ino) == self._inode:
                return False
        except FileNotFoundError:
            pass  # removed: the same as replaced
        # SQLite notices that its file has moved and does not touch the new file's journal on closing
        self.close()
        self.open()
        return True

    def explain(self, error: Exception) -> BrokerError:
        """*error* as one line that says what to do."""
        where = f"ledger {self.place}"
        match error:
            case BrokerError():
                return error
            case apsw.FullError():
                return BrokerError(f"{where}: the disk is full; free some space")
            case apsw.ReadOnlyError() | apsw.PermissionsError() | apsw.CantOpenError() | PermissionError():
                return BrokerError(
                    f"{where}: cannot be written ({error}); mend the permissions of the file and its folder"
                )
            case apsw.CorruptError() | apsw.NotADBError():
                return BrokerError(
                    f"{where}: is damaged or no database ({error}); move it away, a new one is made; no message is in it"
                )
            case apsw.BusyError() | apsw.LockedError():
                wait = duration.text(BUSY_TIMEOUT)
                return BrokerError(f"{where}: another program has held it for {wait}; close what has it open")
            case OSError():
                return BrokerError(f"{where}: {error.strerror or error}")
            case _:
                return BrokerError(f"{where}: {error}")

    # -- transactions --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # SQLite lets processes poll for its write lock, which starves some; the kernel queues them fairly
        if self._lock_fd >= 0:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if self._lock_fd >= 0:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _begun(self) -> Iterator[None]:
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            # what was read of our own changes is not true any more
            self._refreshed = float("-inf")
            if db.in_transaction:  # a full disk rolls back by itself
                db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction in which the other processes are waited for in turn."""
        with self._locked(), self._begun():
            yield

    # -- inside a transaction ------------------------------------------------------------------------------------------

    def claim(self, jobs: Iterable[tuple[str, str, str]]) -> set[int]:
        now, execute = self._clock(), self.db.execute
        return {
            index for index, job in enumerate(jobs) if not execute(_CLAIM, (*job, now)).fetchall()
        }  # fetchall, since a statement that is not read to its end is not done

    def finish(self, rows: Sequence[Row]) -> None:
        now = self._clock()
        self.db.executemany(_FINISH, [(*row, now) for row in rows])
        self.refresh()
        if self.cancelled:
            done = {(row[0], row[1]) for row in rows if row[3]} & self.cancelled
            for queue, job in done:
                self.uncancel(queue, job)

    def cancel(self, queue: str, job: str) -> Cancelling:
        record = self.get(queue, job)
        if record is not None and record.final:
            return Cancelling.FINISHED
        self.db.execute(_NOTE, (queue, job, self._clock(), 1))
        return Cancelling.UNKNOWN if record is None else Cancelling.NOTED

    def uncancel(self, queue: str, job: str) -> None:
        known = "SELECT 1 FROM cancellation WHERE queue = ? AND id = ? AND standing"
        if self.db.execute(known, (queue, job)).fetchall():
            self.db.execute(_NOTE, (queue, job, self._clock(), 0))

    def forget(self, queue: str, ids: Sequence[str] | None) -> int:
        if ids is None:
            self.db.execute("DELETE FROM job WHERE queue = ?", (queue,))
            return self.db.changes()
        count = 0
        for job in ids:
            self.db.execute("DELETE FROM job WHERE queue = ? AND id = ?", (queue, job))
            count += self.db.changes()
        return count

    def prune(self) -> int:
        """Delete some of what is too old; returns how many rows, :data:`PRUNE_ROWS` or more when there may be others."""
        now, db = self._clock(), self.db
        count = 0
        for final, kept in ((1, FINISHED_KEPT), (0, HELD_KEPT)):
            db.execute(
                "DELETE FROM job WHERE seq IN (SELECT seq FROM job WHERE final = ? AND touched < ? LIMIT ?)",
                (final, now - kept, PRUNE_ROWS),
            )
            count += db.changes()
        # the withdrawn are the newer ones in this order, so the standing that expired do not hide them for long
        db.execute(
            "DELETE FROM cancellation WHERE change IN (SELECT change FROM cancellation "
            "WHERE at < ? AND (NOT standing OR at < ?) LIMIT ?)",
            (now - WITHDRAWN_KEPT, now - CANCELLATION_KEPT, PRUNE_ROWS),
        )
        return count + db.changes()

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, queue: str, job: str) -> Record | None:
        row = self.db.execute(
            "SELECT outcome, final, result, error, at, attempts FROM job WHERE queue = ? AND id = ?", (queue, job)
        ).fetchone()
        if row is None:
            return None
        outcome, final, result, error, at, attempts = row
        known = None if outcome is None else Outcome(outcome)
        return Record(queue, job, known, bool(final), result, error, at, attempts)

    def refresh(self) -> set[tuple[str, str]]:
        """Bring :attr:`cancelled` up to date by what changed since the last time."""
        now = self._clock()
        # one that slept past the withdrawals' retention has missed some; a clock set back explains nothing either
        if not 0 <= now - self._refreshed < WITHDRAWN_KEPT / 2:
            self._standing, self._seen, self.cancelled = {}, 0, set()
        self._refreshed = now
        changed = False
        for change, queue, job, at, standing in self.db.execute(
            "SELECT change, queue, id, at, standing FROM cancellation WHERE change > ? ORDER BY change", (self._seen,)
        ):
            changed = True
            self._seen = change
            if standing:
                self._standing[queue, job] = at
            else:
                self._standing.pop((queue, job), None)
        for key in [key for key, at in self._standing.items() if at <= now - CANCELLATION_KEPT]:
            changed = True
            del self._standing[key]
        if changed:
            self.cancelled = set(self._standing)
        return self.cancelled
