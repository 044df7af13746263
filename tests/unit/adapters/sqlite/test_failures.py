"""What goes wrong with a file: one clear line, nothing damaged, and what was confirmed survives."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_bench import WAIT, Bench, eventually, message

from handrail.adapter import BrokerSettings, Delivery, Depth, Settlement, Verb
from handrail.errors import BrokerError, SchemaError, SendTimeoutError
from handrail_sqlite import SQLiteAdapter
from handrail_sqlite import statements as sql
from handrail_sqlite.owners import network_file_system

# files are looked into by processes of their own: one SQLite library a file and process


def outside(file: Path, *statements: str) -> list[object]:
    """Execute *statements* on *file* in a process of its own; returns the first value of each."""
    code = (
        "import apsw, json, sys\n"
        "db = apsw.Connection(sys.argv[1]); db.set_busy_timeout(5000)\n"
        "print(json.dumps([db.execute(one).get for one in sys.argv[2:]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, file, *statements], capture_output=True, text=True, check=True)
    found: list[object] = json.loads(done.stdout)
    return found


async def refused(bench: Bench, kind: type[BrokerError] = BrokerError) -> str:
    adapter = bench.adapter()
    with pytest.raises(kind) as caught:
        await adapter.open("worker")
    await adapter.close()
    assert not adapter.health().up
    text = str(caught.value)
    assert "\n" not in text
    assert str(bench.file) in text
    return text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:", "names no file"),
        ("sqlite://host/file.db", "a SQLite file has none"),
        ("sqlite:data/", "is a folder"),
        ("sqlite:a.db?mode=ro", "takes none"),
        ("sqlite:a\0b", "NUL"),
    ],
)
def test_urls_that_cannot_work_are_refused_without_io(url: str, says: str) -> None:
    """A URL that names no file is refused with the forms that work."""
    with pytest.raises(BrokerError, match=says):
        SQLiteAdapter(BrokerSettings(name="default", url=url, root="/nowhere"))


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("sqlite:.platform/queues.db", "/project/.platform/queues.db"),
        ("sqlite:/abs/q.db", "/abs/q.db"),
        ("sqlite:///abs/q.db", "/abs/q.db"),
        ("sqlite:../q.db", "/q.db"),
        ("sqlite::memory:", "memory of this process"),
    ],
)
def test_urls_name_their_place(url: str, place: str) -> None:
    """Relative paths count from the project; the place shown is an absolute path."""
    assert SQLiteAdapter(BrokerSettings(name="default", url=url, root="/project")).place == place


def test_options_are_refused() -> None:
    """A SQLite broker has no options, and says so."""
    with pytest.raises(BrokerError, match="no options, but got heartbeat"):
        SQLiteAdapter(BrokerSettings(name="default", url="sqlite:a", root="/", options={"heartbeat": 3}))


async def test_a_folder_in_place_of_the_file(bench: Bench) -> None:
    """A path that is a folder is named as such."""
    bench.file.mkdir()
    assert "is a folder" in await refused(bench)


async def test_a_file_in_place_of_the_folder(bench: Bench) -> None:
    """A path through a file is named as such."""
    (bench.root / "plain").write_text("x")
    adapter = bench.adapter("sqlite:plain/queues.db")
    with pytest.raises(BrokerError, match="part of its path is a file"):
        await adapter.open("client")


async def test_something_else_in_place_of_a_database(bench: Bench) -> None:
    """A file that is no database is left as it is."""
    content = b"this is not a database, but somebody's notes\n" * 100
    bench.file.write_bytes(content)
    assert "is not a SQLite database" in await refused(bench)
    assert bench.file.read_bytes() == content


async def test_a_database_of_another_program(bench: Bench) -> None:
    """A database with other tables gets none of ours."""
    outside(bench.file, "CREATE TABLE theirs (a)")
    assert "another program" in await refused(bench, SchemaError)
    assert outside(bench.file, "SELECT group_concat(name) FROM sqlite_schema") == ["theirs"]


async def test_a_newer_schema(bench: Bench) -> None:
    """A file that a newer handrail wrote is not touched, and the mend is named."""
    async with bench.client() as adapter:
        await adapter.publish([message("x")], WAIT)
    outside(bench.file, f"PRAGMA user_version = {sql.VERSION + 1}")
    assert "upgrade handrail" in await refused(bench, SchemaError)
    assert outside(bench.file, "SELECT count(*) FROM msg") == [1]


async def test_a_damaged_file(bench: Bench) -> None:
    """Damage within the file is said in one line with the mend; senders get it as their error; health is down."""
    async with bench.client() as adapter:
        await adapter.publish([message("x" * 5000) for _ in range(50)], WAIT)
    data = bytearray(bench.file.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    bench.file.write_bytes(data)

    adapter = bench.adapter()
    try:
        await adapter.open("client")
        errors = await adapter.publish([message("y")], WAIT)
        text = str(errors[0])
        assert not adapter.health().up
    except BrokerError as error:
        text = str(error)
    finally:
        await adapter.close()

    assert "is damaged" in text
    assert "\n" not in text


READ_ONLY = """
    os.setuid(int(sys.argv[1]))  # after the imports, for the tree of the project may be private
    try:
        await adapter.open("client")
        errors = await adapter.publish([Message(queue="work", id="b", body=b"2")], WAIT)
        say(errors[0])
    except HandrailError as error:
        say(error)
    await adapter.close()
"""


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_what_may_not_be_written(bench: Bench, nobody: int, what: str) -> None:
    """A read-only file or folder is said in one line at open, and its messages are untouched."""
    async with bench.client() as adapter:
        await adapter.publish([message("x", id="a")], WAIT)
    _open_path_to(bench.root)
    for path in (bench.root, bench.owners):
        path.chmod(0o555 if what == "folder" else 0o777)
    bench.file.chmod(0o444)
    try:
        process = bench.run(READ_ONLY, str(nobody))
        output, _error = await asyncio.to_thread(process.communicate, "", WAIT)
    finally:
        for path in (bench.root, bench.owners):
            path.chmod(0o755)
        bench.file.chmod(0o644)

    assert output.count("\n") == 1
    assert "cannot be written; give this user the right" in output
    async with bench.client() as adapter:
        assert [one.id for one in await adapter.peek("work", "ready", 9)] == ["a"]


def _open_path_to(path: Path) -> None:
    # pytest's folders are private, and the process in the test is another user's
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Bench]:
    """A project on a file system of its own that holds 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no right to mount a file system: {done.stderr.strip()}")
    bench = Bench(place)
    try:
        yield bench
    finally:
        bench.end()
        subprocess.run(["umount", "--lazy", place], check=True)


async def test_a_full_disk_and_its_recovery(small_disk: Bench) -> None:
    """While the disk is full, sends fail in words and outcomes wait; with room again all goes on, and nothing is lost."""
    async with small_disk.worker() as adapter:
        await adapter.publish([message(n) for n in range(20)], WAIT)
        inbox = await small_disk.consume(adapter, credit=10)
        held = await inbox.take(10)
        inbox.subscription.pause()
        ballast = small_disk.root / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        confirmed = 20
        while True:
            errors = await adapter.publish([message(b"y" * 20_000)], WAIT)
            if errors:
                break
            confirmed += 1

        assert "the disk is full" in str(errors[0])
        health = adapter.health()
        assert not health.up
        assert "the disk is full" in health.detail
        settling = asyncio.ensure_future(adapter.settle(moves(*held)))
        ballast.unlink()

        assert await asyncio.wait_for(settling, WAIT) == []
        await eventually(lambda: adapter.health().up)
        assert await adapter.publish([message("after")], WAIT) == {}
        depth = await adapter.depth("work")
        assert depth == Depth(ready=confirmed + 1, delayed=0, active=0, dead=0)
        assert len(await adapter.peek("work", "ready", 10**6)) == depth.ready


def moves(*held: Delivery) -> list[Settlement]:
    return [Settlement(one, Verb.MOVE, one.message) for one in held]


async def test_a_start_on_a_full_disk_waits_for_room(small_disk: Bench) -> None:
    """A worker that starts while the disk is full says so, and works once there is room, without another start."""
    ballast = small_disk.root / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    async with small_disk.worker() as adapter:
        assert not adapter.health().up
        inbox = await small_disk.consume(adapter)
        errors = await adapter.publish([message("x")], WAIT)
        assert "full" in str(errors[0])
        ballast.unlink()
        await eventually(lambda: adapter.health().up)

        assert await adapter.publish([message("x")], WAIT) == {}
        await inbox.take(1)


LOCK = """
    import apsw
    db = apsw.Connection(sys.argv[1])
    db.execute("BEGIN EXCLUSIVE")
    say("locked")
    await line()
    db.execute("COMMIT")
    db.close()
"""


async def test_a_locked_file_is_waited_for(bench: Bench) -> None:
    """While another program holds the file, a publish waits up to its timeout and says why; then all goes on."""
    async with bench.worker() as adapter:
        await adapter.publish([message("held")], WAIT)
        inbox = await bench.consume(adapter)
        (held,) = await inbox.take(1)
        process = bench.run(LOCK, str(bench.file))
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"

        waiting = asyncio.ensure_future(adapter.publish([message("c")], WAIT))
        await eventually(lambda: "is locked" in adapter.health().detail)
        errors = await adapter.publish([message("a"), message("b")], 1.5)
        assert [type(error) for error in errors.values()] == [SendTimeoutError] * 2
        assert "is locked by another program" in str(errors[0])
        settling = asyncio.ensure_future(adapter.settle(acks(held)))
        await asyncio.to_thread(process.communicate, "\n", WAIT)

        assert await asyncio.wait_for(settling, WAIT) == []
        assert await asyncio.wait_for(waiting, WAIT) == {}
        (arrived,) = await inbox.take(1)
        assert arrived.message.body == b"c"
        await eventually(lambda: adapter.health().up)


def acks(*held: Delivery) -> list[Settlement]:
    return [Settlement(one, Verb.ACK) for one in held]


async def test_a_writer_that_stands_still_is_named(bench: Bench) -> None:
    """If another process holds its turn and does not go on, a publish still ends in time, with the reason."""
    async with bench.client() as adapter:
        await adapter.publish([message("x")], WAIT)
        code = """
            import fcntl
            fd = os.open(sys.argv[1], os.O_RDWR)
            fcntl.flock(fd, fcntl.LOCK_EX)
            say("holds")
            await line()
        """
        process = bench.run(code, str(bench.owners / "turn"))
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"

        began = time.monotonic()
        errors = await adapter.publish([message("y")], 0.5)
        assert time.monotonic() - began < 15
        assert isinstance(errors[0], SendTimeoutError)
        assert "another process is writing" in str(errors[0])
        await asyncio.to_thread(process.communicate, "\n", WAIT)
        assert await adapter.publish([message("z")], WAIT) == {}


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_a_file_removed_under_a_running_worker(bench: Bench, what: str) -> None:
    """Worker and sender both notice that their file is gone, say so once, and meet again on a new one."""
    project = bench.root / "project"
    project.mkdir()
    here = Bench(project)
    async with (
        here.worker(url="sqlite:.platform/queues.db") as worker,
        here.client(url="sqlite:.platform/queues.db") as sender,
    ):
        await sender.publish([message("old")], WAIT)
        inbox = await here.consume(worker)
        (held,) = await inbox.take(1)
        folder = project / ".platform"
        if what == "folder":
            # at once: what is made anew meanwhile is nothing to remove
            folder.rename(project / "gone")
            shutil.rmtree(project / "gone", ignore_errors=True)  # the worker takes its own away beside this
        else:
            # the database last, for what is made anew has files of the same names
            for path in sorted(folder.glob("queues.db*"), reverse=True):
                if path.is_file():
                    path.unlink()
        assert await sender.publish([message("new")], WAIT) == {}
        (arrived,) = await inbox.take(1)

        assert arrived.message.body == b"new"
        await eventually(lambda: inbox.lost == [held])
        assert len(await worker.settle(acks(held))) == 1
        assert await worker.settle(acks(arrived)) == []
        health = worker.health()
        assert health.up
        assert "was removed or replaced" in health.detail
        assert await sender.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)


async def test_closing_is_safe_twice_and_after_a_failed_open(bench: Bench) -> None:
    """Close may come at any time and again; afterwards every call says that the adapter is not open."""
    adapter = bench.adapter()
    await adapter.close()
    bench.file.mkdir()
    with pytest.raises(BrokerError):
        await adapter.open("client")
    await adapter.close()
    bench.file.rmdir()
    await adapter.open("client")
    await adapter.close()
    await adapter.close()
    with pytest.raises(BrokerError, match="is not open"):
        await adapter.depth("work")


def test_network_file_systems_are_told_apart() -> None:
    """A local file system is not taken for one over the network."""
    assert network_file_system(Path("/proc")) is None


def test_the_plan_of_every_settlement_starts_at_the_row() -> None:
    """No statement that names rows by their seq walks an index instead: that would cost the square of a batch."""
    code = """
import apsw, array, re
from handrail_sqlite import statements as sql
db = apsw.Connection("")
db.execute(sql.SCHEMA)
numbers = apsw.carray(array.array("q", [1]))
texts = [value for name, value in vars(sql).items() if isinstance(value, str) and name.isupper()]
texts += [sql.delete(state) for state in range(4)]
for text in texts:
    if not re.match(r"\\s*(UPDATE|DELETE|SELECT)", text) or not re.search(r"(carray|json_each)\\(", text):
        continue
    count = max(map(int, re.findall(r"\\?(\\d)", text)))
    values = [numbers if f"carray(?{n})" in text else "[]" if f"json_each(?{n})" in text else 1 for n in range(1, count + 1)]
    plan = [row[3] for row in db.execute("EXPLAIN QUERY PLAN " + text, values)]
    assert any(re.search(r"(USING INTEGER PRIMARY KEY|rowid=)", step) for step in plan), (text, plan)
    assert not any("msg_" in step for step in plan), (text, plan)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
