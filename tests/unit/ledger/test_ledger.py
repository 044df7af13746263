"""What the ledger remembers, whom it takes for a duplicate, and that nothing that befalls it stops handling."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from handrail.config.model import Settings
from handrail.errors import BrokerError, SchemaError
from handrail.ledger import CANCELLATION_KEPT, FINISHED_KEPT, HELD_KEPT, Cancelling, open_ledger, sqlite, store
from handrail.ledger.sqlite import SQLiteLedger
from handrail.outcome import Outcome

Q = "mail"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still lets no claim through, and nothing is pruned while a test looks."""
    monkeypatch.setattr(sqlite, "CLAIM_TIMEOUT", 50.0)
    monkeypatch.setattr(sqlite, "PRUNE_NEXT", 3600.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".platform" / "ledger.db"


@asynccontextmanager
async def opened(path: Path | None, clock: Callable[[], float] = time.time) -> AsyncIterator[SQLiteLedger]:
    ledger = SQLiteLedger(path, clock=clock)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await story()

    asyncio.run(main())


def with_ledger(path: Path | None, story: Callable[[SQLiteLedger], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(path) as ledger:
            await story(ledger)

    run(main)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


async def duplicate(ledger: SQLiteLedger, send: str, job: str = "1") -> bool:
    return await ledger.claim([(Q, job, send)]) == {0}


# -- duplicates --------------------------------------------------------------------------------------------------------


def test_first_sending_holds_the_id() -> None:
    """The first act of sending holds its id against others, from its first delivery until after it is finished."""

    async def story(ledger: SQLiteLedger) -> None:
        assert not await duplicate(ledger, "a")
        assert await duplicate(ledger, "b")
        ledger.finish(Q, "1", Outcome.COMPLETED, at=1.0)
        assert await duplicate(ledger, "b")

    with_ledger(None, story)


@pytest.mark.parametrize("outcome", [None, Outcome.FAILED, Outcome.INTERRUPTED, Outcome.DEAD, Outcome.COMPLETED])
def test_same_sending_again(outcome: Outcome | None) -> None:
    """A retry, redelivery or replay of the same message is no duplicate."""

    async def story(ledger: SQLiteLedger) -> None:
        assert not await duplicate(ledger, "a")
        if outcome is not None:
            ledger.finish(Q, "1", outcome, at=1.0)
        assert not await duplicate(ledger, "a")
        assert await duplicate(ledger, "b")

    with_ledger(None, story)


def test_foreign_sender() -> None:
    """A foreign message is a duplicate only of a finished id, and not of its own dead letter, which may be replayed."""

    async def story(ledger: SQLiteLedger) -> None:
        assert not await duplicate(ledger, "")
        assert not await duplicate(ledger, "")
        assert await duplicate(ledger, "b")
        ledger.finish(Q, "1", Outcome.DEAD, at=1.0)
        assert not await duplicate(ledger, "")
        ledger.finish(Q, "1", Outcome.COMPLETED, at=2.0)
        assert await duplicate(ledger, "")

        assert not await duplicate(ledger, "a", "2")
        assert not await duplicate(ledger, "", "2")
        ledger.finish(Q, "2", Outcome.DEAD, at=3.0)
        assert await duplicate(ledger, "", "2")
        assert not await duplicate(ledger, "a", "2")

    with_ledger(None, story)


def test_within_one_batch() -> None:
    """In one batch the first holds the id; the same id in another queue is another job."""

    async def story(ledger: SQLiteLedger) -> None:
        jobs = [(Q, "1", "a"), (Q, "1", "b"), ("other", "1", "c"), (Q, "1", "a"), (Q, "2", "")]
        assert await ledger.claim(jobs) == {1}
        assert await ledger.claim([]) == set()

    with_ledger(None, story)


def test_forgotten_ids() -> None:
    """A purge frees its ids for new messages, those it names or the whole queue's."""

    async def story(ledger: SQLiteLedger) -> None:
        await ledger.claim([(Q, str(number), "a") for number in range(5)])
        assert await ledger.forget(Q, ["1", "2", "absent"]) == 2
        assert not await duplicate(ledger, "b", "1")
        assert await duplicate(ledger, "b", "3")
        assert await ledger.forget(Q) == 4
        assert not await duplicate(ledger, "b", "3")

    with_ledger(None, story)


_CLAIMER = """
import asyncio, sys
from pathlib import Path
from handrail.ledger import sqlite
from handrail.ledger.sqlite import SQLiteLedger

sqlite.CLAIM_TIMEOUT = 50.0
path, name = Path(sys.argv[1]), sys.argv[2]

async def main():
    ledger = SQLiteLedger(path)
    await ledger.open()
    print("open", flush=True)
    sys.stdin.readline()
    for start in range(0, 2000, 50):
        jobs = [("mail", str(number), name) for number in range(start, start + 50)]
        duplicates = await ledger.claim(jobs)
        print(*(start + at for at in range(50) if at not in duplicates), flush=True)
    await ledger.close()

asyncio.run(main())
"""


def test_several_processes(path: Path) -> None:
    """Of several processes that claim the same ids at once, exactly one gets each, and each process gets some."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIMER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "abc"
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "open\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    shares = [worker.communicate(timeout=60)[0].split() for worker in workers]

    assert sorted(int(number) for share in shares for number in share) == list(range(2000))
    assert all(worker.returncode == 0 for worker in workers)


# -- records -----------------------------------------------------------------------------------------------------------


def test_record(path: Path) -> None:
    """A record tells outcome, result, error, time and attempts; it outlives the process that wrote it."""

    async def story() -> None:
        async with opened(path) as ledger:
            assert await ledger.get(Q, "1") is None
            await ledger.claim([(Q, "1", "a")])
            held = await ledger.get(Q, "1")
            assert held is not None
            assert (held.outcome, held.final, held.result) == (None, False, None)
            ledger.finish(Q, "1", Outcome.FAILED, error="ValueError: no", at=1.5, attempts=1)
            ledger.finish(Q, "2", Outcome.COMPLETED, result=b'{"n": 1}', at=2.5, attempts=2)
        async with opened(path) as ledger:
            failed, completed = await ledger.get(Q, "1"), await ledger.get(Q, "2")
            assert failed is not None
            assert (failed.outcome, failed.final, failed.error, failed.at, failed.attempts) == (
                Outcome.FAILED,
                False,
                "ValueError: no",
                1.5,
                1,
            )
            assert completed is not None
            assert (completed.outcome, completed.final, completed.result) == (Outcome.COMPLETED, True, b'{"n": 1}')

    run(story)


def test_read_after_write() -> None:
    """Whoever asks sees every outcome that was given before, however many wait."""

    async def story(ledger: SQLiteLedger) -> None:
        for number in range(5000):
            ledger.finish(Q, str(number), Outcome.COMPLETED, at=1.0)
        last = await ledger.get(Q, "4999")
        assert last is not None

    with_ledger(None, story)


def test_late_outcomes() -> None:
    """An outcome that was not the end does not undo a later end; a duplicate's or refused outcome leaves no trace."""

    async def story(ledger: SQLiteLedger) -> None:
        ledger.finish(Q, "1", Outcome.COMPLETED, result=b"1", at=5.0)
        ledger.finish(Q, "1", Outcome.INTERRUPTED, at=4.0)
        ledger.finish(Q, "1", Outcome.DUPLICATE, at=6.0)
        ledger.finish(Q, "2", Outcome.REFUSED, at=6.0)
        record = await ledger.get(Q, "1")
        assert record is not None
        assert (record.outcome, record.result) == (Outcome.COMPLETED, b"1")
        assert await ledger.get(Q, "2") is None

    with_ledger(None, story)


def test_any_error_text() -> None:
    """An error of any size and encoding is kept, cut, as valid text."""

    async def story(ledger: SQLiteLedger) -> None:
        ledger.finish(Q, "1", Outcome.DEAD, error="\ud800\0" + "x" * 1_000_000, at=1.0)
        record = await ledger.get(Q, "1")
        assert record is not None
        assert len(record.error.encode()) <= 8192
        assert record.error.startswith("\\ud800\0x")

    with_ledger(None, story)


def test_retention(path: Path) -> None:
    """Finished jobs are kept seven days, held ids thirty since their last delivery, and go in small batches."""
    clock = Clock()

    async def story() -> None:
        async with opened(path, clock) as ledger:
            await ledger.claim([(Q, f"held{number}", "a") for number in range(10)])
            for number in range(1200):
                ledger.finish(Q, str(number), Outcome.COMPLETED, at=clock.now)
            await ledger.get(Q, "0")
        clock.now += FINISHED_KEPT - 1
        one = store.Store(path, clock)
        one.open()
        try:
            assert one.prune() == 0
            clock.now += 2
            pruned = []
            while count := one.prune():
                pruned.append(count)
            assert pruned == [500, 500, 200]
            assert one.get(Q, "held1") is not None
            clock.now += HELD_KEPT
            assert one.prune() == 10
        finally:
            one.close()

    run(story)


def test_pruned_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open ledger prunes by itself."""
    clock = Clock()
    monkeypatch.setattr(sqlite, "PRUNE_EVERY", 0.02)
    monkeypatch.setattr(sqlite, "PRUNE_NEXT", 0.02)

    async def story() -> None:
        async with opened(path, clock) as ledger:
            ledger.finish(Q, "1", Outcome.COMPLETED, at=1.0)
            assert await ledger.get(Q, "1") is not None
            clock.now += FINISHED_KEPT + 1

            async def gone() -> bool:
                return await ledger.get(Q, "1") is None

            await until(gone)

    run(story)


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_cancelling(path: Path) -> None:
    """A cancellation is seen by all workers until it is carried out or taken back."""

    async def story() -> None:
        async with opened(path) as one, opened(path) as other:
            await one.claim([(Q, "1", "a")])
            assert await one.cancelled() == set()
            assert await one.cancel(Q, "1") is Cancelling.NOTED
            assert await one.cancel(Q, "2") is Cancelling.UNKNOWN
            assert await one.cancel(Q, "2") is Cancelling.UNKNOWN
            assert await other.cancelled() == await one.cancelled() == {(Q, "1"), (Q, "2")}
            assert await other.cancelled() is await other.cancelled()

            other.finish(Q, "1", Outcome.CANCELLED, at=1.0)
            await other.uncancel(Q, "2")
            await other.uncancel(Q, "never noted")
            assert await other.cancelled() == await one.cancelled() == set()
            assert await one.cancel(Q, "1") is Cancelling.FINISHED
            assert await other.cancelled() == set()

    run(story)


def test_unfinished_outcome_keeps_the_cancellation() -> None:
    """A failed attempt does not take the cancellation away; the end does, whatever it is."""

    async def story(ledger: SQLiteLedger) -> None:
        await ledger.cancel(Q, "1")
        ledger.finish(Q, "1", Outcome.FAILED, at=1.0)
        assert await ledger.cancelled() == {(Q, "1")}
        ledger.finish(Q, "1", Outcome.COMPLETED, at=2.0)
        assert await ledger.cancelled() == set()

    with_ledger(None, story)


def test_cancellation_of_nothing(path: Path) -> None:
    """A cancellation whose job never turns up is forgotten after a day, in memory and on disk."""
    clock = Clock()

    async def story() -> None:
        async with opened(path, clock) as ledger:
            await ledger.cancel(Q, "absent")
            clock.now += CANCELLATION_KEPT - 1
            assert await ledger.cancelled() == {(Q, "absent")}
            clock.now += 2
            assert await ledger.cancelled() == set()
        one = store.Store(path, clock)
        one.open()
        assert one.prune() == 1
        one.close()

    run(story)


def test_worker_that_slept(path: Path) -> None:
    """A worker that was stopped for hours learns on waking what was taken back meanwhile."""
    clock = Clock()

    async def story() -> None:
        async with opened(path, clock) as sleeper, opened(path, clock) as other:
            await other.cancel(Q, "1")
            await other.cancel(Q, "2")
            assert len(await sleeper.cancelled()) == 2
            await other.uncancel(Q, "1")
            clock.now += 7200
            one = store.Store(path, clock)
            one.open()
            one.prune()
            one.close()
            assert await sleeper.cancelled() == {(Q, "2")}

    run(story)


# -- mishaps -----------------------------------------------------------------------------------------------------------


def refused(path: Path, kind: type[BrokerError] = BrokerError) -> str:
    with pytest.raises(kind) as caught:
        with_ledger(path, lambda ledger: ledger.close())
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_damaged_file(path: Path) -> None:
    """A file that is no database is refused in one line and not touched."""
    path.parent.mkdir()
    path.write_bytes(b"not a database at all " * 500)

    assert "is damaged or no database" in refused(path)
    assert path.read_bytes() == b"not a database at all " * 500


def test_newer_schema(path: Path) -> None:
    """A file of a newer handrail is refused in one line that says so."""
    with_ledger(path, lambda ledger: ledger.forget(Q))
    db = apsw.Connection(str(path))
    db.pragma("user_version", 99)
    db.close()

    assert "written by a newer handrail (schema 99, this one knows 1)" in refused(path, SchemaError)


def test_foreign_database(path: Path) -> None:
    """Another program's database is refused and stays as it was."""
    path.parent.mkdir()
    db = apsw.Connection(str(path))
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()

    assert "made by something else" in refused(path, SchemaError)
    assert path.read_bytes() == before


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    """A place where no file can be made is refused in one line."""
    (tmp_path / "file").write_text("")

    refused(tmp_path / "file" / "ledger.db")


def test_opening_again_after_a_refusal(path: Path) -> None:
    """A ledger that could not be opened can be once the cause is mended."""
    path.parent.mkdir()
    path.write_bytes(b"rubbish " * 500)

    async def story() -> None:
        ledger = SQLiteLedger(path)
        with pytest.raises(BrokerError):
            await ledger.open()
        os.unlink(path)  # noqa: PTH108
        await ledger.open()
        assert not await duplicate(ledger, "a")
        await ledger.close()
        await ledger.close()
        with pytest.raises(BrokerError, match="is not open"):
            await ledger.get(Q, "1")

    run(story)


_READ_ONLY = """
import asyncio, os, sys
from pathlib import Path
from handrail.errors import BrokerError
from handrail.ledger.sqlite import SQLiteLedger

if os.geteuid() == 0:
    os.setuid(65534)  # root may write everywhere
try:
    asyncio.run(SQLiteLedger(Path(sys.argv[1])).open())
except BrokerError as error:
    print(error)
"""


def test_read_only(path: Path) -> None:
    """A file that may not be written is refused in one line that says what to mend."""
    with_ledger(path, lambda ledger: ledger.forget(Q))
    Path(f"{path}-lock").chmod(0o666)
    path.chmod(0o444)
    for folder in (path.parent, *path.parent.parents[:-2]):
        folder.chmod(0o555 if folder == path.parent else 0o755)

    done = subprocess.run(
        [sys.executable, "-c", _READ_ONLY, str(path)], check=False, capture_output=True, text=True, timeout=60
    )

    assert "cannot be written" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk claims let everything run and outcomes wait; it is said once, and once when it is over."""
    monkeypatch.setattr(sqlite, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(sqlite, "RETRY_LAST", 0.02)

    async def story(ledger: SQLiteLedger) -> None:
        db = ledger._store.db
        db.pragma("max_page_count", db.pragma("page_count"))
        for number in range(200):
            ledger.finish(Q, str(number), Outcome.COMPLETED, result=b"x" * 1000, at=1.0)
        with capture_logs() as said:

            async def noticed() -> bool:
                return ledger._problem is not None

            await until(noticed)
            assert await ledger.claim([(Q, f"{number:0>900}", "a") for number in range(20)]) == set()
            assert await ledger.get(Q, "7") is None

            async def cancel_many() -> None:
                for number in range(1000):
                    await ledger.cancel(Q, f"{number:0>900}")

            with pytest.raises(BrokerError, match="the disk is full; free some space"):
                await cancel_many()
            assert await ledger.cancelled() is not None
            # on the ledger's own thread, which tries again all the time: a connection serves one thread at once
            await ledger._ask(lambda store: store.db.pragma("max_page_count", 1 << 30), write=False)

            async def mended() -> bool:
                return ledger._problem is None and len(said) > 1

            await until(mended)
        assert [line["log_level"] for line in said] == ["warning", "info"]
        record = await ledger.get(Q, "7")
        assert record is not None

    with_ledger(path, story)


def test_bounded_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a full disk is bounded in number and bytes: the oldest outcomes are lost, and that is said."""
    monkeypatch.setattr(sqlite, "WAITING_ROWS", 50)
    monkeypatch.setattr(sqlite, "WAITING_BYTES", 10_000)

    async def story(ledger: SQLiteLedger) -> None:
        db = ledger._store.db
        db.pragma("max_page_count", db.pragma("page_count"))
        for number in range(100):
            ledger.finish(Q, str(number), Outcome.COMPLETED, at=1.0)
        assert len(ledger._rows) <= 50
        for number in range(100):
            ledger.finish(Q, str(number), Outcome.COMPLETED, result=b"x" * 1000, at=1.0)
        assert ledger._row_bytes <= 10_000

        with capture_logs() as said:
            await ledger.close()
        assert said[-1]["outcomes"] >= 190

    with_ledger(path, story)


def test_removed_under_a_worker(path: Path) -> None:
    """When the folder is removed under a worker it goes on with a new file, which is said once."""

    async def story(ledger: SQLiteLedger) -> None:
        await ledger.claim([(Q, "1", "a")])
        shutil.rmtree(path.parent)
        with capture_logs() as said:
            assert not await duplicate(ledger, "b")
            assert await duplicate(ledger, "c")
        assert [line["event"] for line in said] == [
            "the ledger's file was removed under this process: a new one was made"
        ]
        async with opened(path) as other:
            assert await duplicate(other, "c")

    with_ledger(path, story)


_HOLDER = """
import os, signal, sys
from pathlib import Path
from handrail.ledger.store import Store

store = Store(Path(sys.argv[1]))
store.open()
with store.transaction():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_stopped_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stops while it writes delays the others' claims for a bounded time, said once; then all is well."""
    monkeypatch.setattr(sqlite, "CLAIM_TIMEOUT", 0.2)

    async def story(ledger: SQLiteLedger) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
            with capture_logs() as said:
                assert await ledger.claim([(Q, "1", "a")]) == set()
                assert await ledger.claim([(Q, "2", "a")]) == set()
            assert len(said) == 1
            os.kill(holder.pid, signal.SIGKILL)

        async def well() -> bool:
            return await duplicate(ledger, "b") and await duplicate(ledger, "b", "2")

        await until(well)

    with_ledger(path, story)


_KILLED = """
import asyncio, os, signal, sys, time
from pathlib import Path
from handrail.ledger.sqlite import SQLiteLedger
from handrail.outcome import Outcome

async def main():
    ledger = SQLiteLedger(Path(sys.argv[1]))
    await ledger.open()
    await ledger.claim([("mail", str(number), "a") for number in range(100)])
    ledger.finish("mail", "1", Outcome.COMPLETED, at=1.0)
    await ledger.get("mail", "1")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_sigkill(path: Path) -> None:
    """What was claimed, and what could be read back, is still there after SIGKILL."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL

    async def story(ledger: SQLiteLedger) -> None:
        assert await ledger.claim([(Q, str(number), "b") for number in range(101)]) == set(range(100))
        record = await ledger.get(Q, "1")
        assert record is not None
        assert record.outcome is Outcome.COMPLETED

    with_ledger(path, story)


# -- opening by settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("sqlite:.platform/ledger.db", "/srv/app/.platform/ledger.db"),
        ("sqlite:/var/lib/l.db", "/var/lib/l.db"),
        ("sqlite:///var/lib/l.db", "/var/lib/l.db"),
        ("sqlite::memory:", ":memory:"),
    ],
)
def test_place(written: str, place: str) -> None:
    """A relative path counts from the project."""
    ledger = open_ledger(Settings(path="/srv/app/queues.yaml", root="/srv/app", brokers={}, queues={}, ledger=written))

    assert ledger is not None
    assert ledger.place == place


def test_off_and_unknown() -> None:
    """``off`` is no ledger; another kind is refused, its password masked."""
    off = Settings(path="/q.yaml", root="/", brokers={}, queues={}, ledger=None)
    assert open_ledger(off) is None

    other = Settings(path="/q.yaml", root="/", brokers={}, queues={}, ledger="postgresql://u:secret@h/db")
    with pytest.raises(BrokerError, match=r"ledger 'postgresql://u:\*\*\*@h/db': write sqlite:PATH, or off"):
        open_ledger(other)
