"""Several processes on one file: who gets what, who wakes whom, and what becomes of the dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlite_bench import WAIT, WORK, Bench, eventually, message

from handrail.adapter import Depth, Verb
from handrail.board import COMPLETED, RUNNING, Board

CONSUMER = """
    await adapter.open("worker")
    await adapter.declare([WORK])
    pending = set()
    def deliver(batch):
        for one in batch:
            say(one.message.body.decode())
        task = asyncio.ensure_future(adapter.settle([Settlement(one, Verb.ACK) for one in batch]))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await adapter.subscribe(WORK, 50, deliver, lambda lost: None)
    say("ready")
    await line()
    await adapter.close()
"""

HOLDER = """
    if len(sys.argv) > 1:
        from pathlib import Path
        adapter.board = Path(sys.argv[1])
    await adapter.open("worker")
    await adapter.declare([WORK])
    await adapter.subscribe(WORK, 3, lambda batch: [say("got", one.message.body.decode()) for one in batch], lambda lost: None)
    await line()
    await adapter.close()
"""


def lines(process: Any, count: int) -> list[str]:
    return [process.stdout.readline().strip() for _ in range(count)]


async def test_two_processes_never_get_the_same_message(bench: Bench) -> None:
    """Thousands of messages handed to two workers: each goes to exactly one of them, and none is left."""
    first, second = bench.run(CONSUMER), bench.run(CONSUMER)
    assert lines(first, 1) == lines(second, 1) == ["ready"]
    shares: list[list[int]] = [[], []]

    def listen(process: Any, share: list[int]) -> None:
        share.extend(int(line) for line in process.stdout)

    listening = [threading.Thread(target=listen, args=one) for one in zip((first, second), shares, strict=True)]
    for thread in listening:
        thread.start()
    async with bench.client() as sender:
        sent = 0
        while sent < 6000 or not all(shares):
            assert await sender.publish([message(n) for n in range(sent, sent + 200)], WAIT) == {}
            sent += 200
        await eventually(lambda: _empty(sender))
    for process in (first, second):
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for thread in listening:
        await asyncio.to_thread(thread.join, WAIT)

    assert sorted(shares[0] + shares[1]) == list(range(sent))
    assert [process.wait(WAIT) for process in (first, second)] == [0, 0]


async def _empty(adapter: Any) -> bool:
    return bool(await adapter.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0))


async def test_a_datagram_wakes_a_worker_of_another_process(bench: Bench) -> None:
    """After a publish the worker does not wait for its next look: messages arrive far faster than one a second."""
    process = bench.run(CONSUMER)
    assert lines(process, 1) == ["ready"]
    async with bench.client() as sender:
        took = []
        for n in range(30):
            await sender.publish([message(n)], WAIT)
            began = time.monotonic()
            assert await asyncio.to_thread(process.stdout.readline) == f"{n}\n"  # type: ignore[union-attr]
            took.append(time.monotonic() - began)
        # by looking once a second alone each would take about a second
        assert statistics.median(took) < 0.5


async def test_a_worker_in_a_deep_folder_is_woken_too(tmp_path: Path) -> None:
    """A path longer than a unix socket's name may be changes nothing."""
    root = tmp_path.joinpath(*["a-rather-long-name-of-a-folder"] * 6)
    root.mkdir(parents=True)
    bench = Bench(root)
    async with bench.worker() as worker, bench.client() as sender:
        inbox = await bench.consume(worker)
        (bell,) = bench.owners.glob("*.sock")
        assert bell.is_socket()
        took = []
        for n in range(20):
            await sender.publish([message(n)], WAIT)
            began = time.monotonic()
            await inbox.take(1)
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.5


async def test_without_datagrams_the_next_look_finds_what_is_there(bench: Bench) -> None:
    """If no datagram arrives, a worker finds what was published within about a second."""
    async with bench.worker() as worker, bench.client() as sender:
        inbox = await bench.consume(worker)
        for bell in bench.owners.glob("*.sock"):
            bell.unlink()
        await sender.publish([message("x")], WAIT)
        await inbox.take(1)


async def test_a_dead_workers_messages_return_at_once(bench: Bench) -> None:
    """SIGKILL of a worker: what it held is back at the head, marked as redelivered, and its files are gone."""
    async with bench.worker() as worker:
        await worker.publish([message(n) for n in range(5)], WAIT)
        process = bench.run(HOLDER)
        assert lines(process, 3) == ["got 0", "got 1", "got 2"]
        assert len(list(bench.owners.glob("*.lock"))) == 2
        inbox = await bench.consume(worker, credit=2)
        await inbox.take(2)
        process.kill()

        await eventually(lambda: len(list(bench.owners.glob("*.lock"))) == 1)
        inbox.subscription.set_credit(5)
        back = await inbox.take(3)

        assert [(one.message.body, one.redelivered) for one in back] == [(b"0", True), (b"1", True), (b"2", True)]
        assert [one.message.crashes for one in back] == [0, 0, 0]
        assert len(list(bench.owners.glob("*.sock"))) == 1


async def test_what_a_dead_worker_had_completed_does_not_run_again(bench: Bench, tmp_path: Path) -> None:
    """By the dead worker's board, a message that was completed and not acknowledged yet is acknowledged in its name."""
    board = Board.create(tmp_path / "dead.board")
    async with bench.worker() as worker:
        await worker.publish([message(n, id=f"m{n}") for n in range(3)], WAIT)
        process = bench.run(HOLDER, str(board.path))
        lines(process, 3)
        board.mark(board.take("work", "m1", 0), COMPLETED)
        process.kill()

        inbox = await bench.consume(worker)
        back = await inbox.take(2)

        assert [one.message.id for one in back] == ["m0", "m2"]
        depth = await worker.depth("work")
        assert (depth.ready, depth.active) == (0, 2)
    board.close()


async def test_only_what_was_running_is_blamed_for_a_death(bench: Bench, tmp_path: Path) -> None:
    """By the dead worker's board, a message that ran counts a crash and a start more; what was handed over does not."""
    board = Board.create(tmp_path / "dead.board")
    async with bench.worker() as worker:
        sent = [message(n, id=f"m{n}") for n in range(3)]
        await worker.publish(sent, WAIT)
        process = bench.run(HOLDER, str(board.path))
        lines(process, 3)
        board.mark(board.take("work", "m1", 1), RUNNING)
        board.take("work", "m0", 0)
        process.kill()

        inbox = await bench.consume(worker)
        back = await inbox.take(3)

        counts = {one.message.id: (one.message.crashes, one.message.starts, one.redelivered) for one in back}
        assert counts == {"m0": (0, 0, True), "m1": (2, 1, True), "m2": (0, 0, True)}
        await eventually(lambda: not (tmp_path / "dead.board").exists())
    board.close()


async def test_a_worker_that_is_alive_keeps_its_messages(bench: Bench) -> None:
    """However long a stopped (SIGSTOP) worker takes, nobody else gets what it holds; when it goes on it can settle."""
    async with bench.worker() as worker:
        await worker.publish([message(n) for n in range(3)], WAIT)
        process = bench.run(HOLDER)
        lines(process, 3)
        process.send_signal(signal.SIGSTOP)
        inbox = await bench.consume(worker)
        # several looks of the living, each of which would take from the dead
        ticks = 0
        while ticks < 25:
            ticks += 1
            await worker.publish([message("other")], WAIT)
            (other,) = await inbox.take(1)
            assert other.message.body == b"other"
            await inbox.settle(Verb.ACK, other)
            await asyncio.sleep(0.1)
        assert (await worker.depth("work")).active == 3

        process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(process.communicate, "\n", WAIT)
        assert [one.message.body for one in await inbox.take(3)] == [b"0", b"1", b"2"]
        assert process.returncode == 0


async def test_a_forked_child_does_not_keep_its_dead_parent_alive(bench: Bench) -> None:
    """A child forked by a worker outlives it; the messages that the worker held return all the same."""
    async with bench.worker() as worker:
        await worker.publish([message(n) for n in range(3)], WAIT)
        code = """
            await adapter.open("worker")
            await adapter.declare([WORK])
            arrived = asyncio.Event()
            await adapter.subscribe(WORK, 3, lambda batch: arrived.set(), lambda lost: None)
            await arrived.wait()
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            say(child)
            await line()
        """
        process = bench.run(code)
        (child,) = lines(process, 1)
        try:
            process.kill()
            inbox = await bench.consume(worker)
            assert len(await inbox.take(3)) == 3
            os.kill(int(child), 0)
        finally:
            os.kill(int(child), signal.SIGKILL)


async def test_after_a_fork_the_child_is_told_to_open_its_own(bench: Bench) -> None:
    """An adapter used in a forked child fails in words, and the parent's goes on working."""
    async with bench.client() as sender:
        code = """
            await adapter.open("client")
            await adapter.publish([Message(queue="work", id="a", body=b"1")], 30)
            if os.fork() == 0:
                try:
                    await adapter.depth("work")
                except HandrailError as error:
                    say(error, adapter.health().up)
                os._exit(0)
            os.wait()
            await adapter.publish([Message(queue="work", id="b", body=b"2")], 30)
            await adapter.close()
        """
        process = bench.run(code)
        output, _error = await asyncio.to_thread(process.communicate, "", WAIT)

        assert "was opened before this process forked" in output
        assert output.strip().endswith("False")
        assert [one.id for one in await sender.peek("work", "ready", 10)] == ["a", "b"]


async def test_killing_a_publisher_loses_nothing_that_was_confirmed(bench: Bench) -> None:
    """SIGKILL between confirmations, several times: every message that was confirmed is there, whole and once."""
    code = """
        await adapter.open("client")
        for n in range(10**9):
            batch = [Message(queue="work", id=f"{sys.argv[1]}-{n}-{k}", body=b"x" * 200) for k in range(20)]
            if not await adapter.publish(batch, 20):
                say(n)
    """
    async with bench.client() as reader:
        for round_ in range(4):
            process = bench.run(code, str(round_))
            confirmed = [process.stdout.readline() for _ in range(5 + 20 * round_)]  # type: ignore[union-attr]
            process.kill()
            rest, _error = process.communicate()
            # a line cut short by the kill confirms nothing that can be read
            complete = (rest[: rest.rfind("\n") + 1]).split()
            last = int(complete[-1]) if complete else int(confirmed[-1])
            stored = [one.id for one in await reader.peek("work", "ready", 10**6) if one.id.startswith(f"{round_}-")]

            assert len(stored) == len(set(stored))
            assert {f"{round_}-{n}-{k}" for n in range(last + 1) for k in range(20)} <= set(stored)
        assert (await reader.depth("work")).ready == len(await reader.peek("work", "ready", 10**6))


async def test_closing_gives_back_what_never_started(bench: Bench) -> None:
    """After a clean close all that was held is ready in its old order, untouched, and nothing of the owner is left."""
    async with bench.client() as reader:
        async with bench.worker() as worker:
            await worker.publish([message(n) for n in range(5)], WAIT)
            inbox = await bench.consume(worker, credit=3)
            await inbox.take(3)
        assert await reader.depth("work") == Depth(ready=5, delayed=0, active=0, dead=0)
        assert [one.body for one in await reader.peek("work", "ready", 9)] == [b"0", b"1", b"2", b"3", b"4"]
        assert [path.name for path in bench.owners.iterdir()] == ["turn"]
    async with bench.worker() as worker:
        inbox = await bench.consume(worker)
        assert not any(one.redelivered for one in await inbox.take(5))


async def test_the_lock_file_says_who_holds_it(bench: Bench, tmp_path: Path) -> None:
    """A worker's lock file is JSON with its pid, its board and when it started."""
    async with bench.worker(tmp_path / "b.board"):
        (lock,) = bench.owners.glob("*.lock")
        content = json.loads(lock.read_bytes())

        assert content["pid"] == os.getpid()
        assert content["board"] == str(tmp_path / "b.board")
        assert abs(content["started"] - time.time()) < WAIT


async def test_a_worker_whose_lock_file_is_removed_makes_a_new_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody tidies the lock files away: the worker is not taken for dead, and keeps what it holds."""
    monkeypatch.setattr("handrail_sqlite.owners.MISSING_GRACE", 30.0)
    async with bench.worker() as first, bench.worker() as second:
        await first.publish([message("x")], WAIT)
        inbox = await bench.consume(first)
        (held,) = await inbox.take(1)
        names = {path.name for path in bench.owners.glob("*.lock")}
        for name in names:
            (bench.owners / name).unlink()
        other = await bench.consume(second)
        await eventually(lambda: {path.name for path in bench.owners.glob("*.lock")} == names)

        assert await inbox.settle(Verb.ACK, held) == []
        assert other.got == []


#: Takes every worker for dead: what they hold is given out again.
STRIKE = """
    import apsw
    db = apsw.Connection(sys.argv[1])
    db.set_busy_timeout(5000)
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE msg SET state = 0, owner = NULL; DELETE FROM owner;")
    db.execute("UPDATE queue SET ready = ready + active, active = 0")
    db.execute("COMMIT")
    db.close()
"""


async def strike(bench: Bench) -> None:
    process = bench.run(STRIKE, str(bench.file))
    await asyncio.to_thread(process.communicate, "", WAIT)


async def test_a_worker_that_was_struck_off_claims_nothing_before_it_knows(bench: Bench) -> None:
    """Between its end as an owner and its next look a worker takes no message by the old lease, where nobody would look."""
    async with bench.worker() as worker:
        await worker.publish([message("x")], WAIT)
        inbox = await bench.consume(worker)
        (held,) = await inbox.take(1)
        writer = worker._writer
        assert writer is not None
        look_round, writer._inherit = writer._inherit, lambda: None  # type: ignore[method-assign]
        await strike(bench)

        await worker.publish([message("y")], WAIT)  # for which it looks at what is ready
        await worker.depth("work")
        assert inbox.got == []
        writer._inherit = look_round  # type: ignore[method-assign]

        await eventually(lambda: inbox.lost == [held])
        both = await inbox.take(2)
        assert {one.message.body for one in both} == {b"x", b"y"}
        assert await inbox.settle(Verb.ACK, *both) == []
        assert await worker.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)


async def test_a_worker_that_catches_up_hears_at_once_that_it_was_struck_off(bench: Bench) -> None:
    """What was lost is told before `catch_up` returns, however long until the next look round."""
    async with bench.worker() as worker:
        await worker.publish([message("x")], WAIT)
        inbox = await bench.consume(worker)
        (held,) = await inbox.take(1)
        writer = worker._writer
        assert writer is not None
        writer._tick = lambda: None  # type: ignore[method-assign]
        await strike(bench)
        assert inbox.lost == []

        await worker.catch_up()

        assert inbox.lost == [held]


async def test_the_end_of_a_lease_is_told_and_late_outcomes_are_refused(bench: Bench) -> None:
    """A worker that was struck off is told which deliveries it lost; settling them is refused; it goes on working."""
    async with bench.worker() as worker:
        await worker.publish([message("x")], WAIT)
        inbox = await bench.consume(worker)
        (held,) = await inbox.take(1)
        await strike(bench)
        await eventually(lambda: inbox.lost == [held])

        assert [one.delivery for one in await inbox.settle(Verb.ACK, held)] == [held]
        (again,) = await inbox.take(1)
        assert await inbox.settle(Verb.ACK, again) == []
        assert await worker.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)


async def test_garbage_on_the_bell_harms_nothing(bench: Bench) -> None:
    """Whatever anybody writes to a worker's socket only makes it look."""
    async with bench.worker() as worker:
        inbox = await bench.consume(worker)
        (bell,) = bench.owners.glob("*.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.chdir(bench.owners):
            for _ in range(50):
                sock.sendto(os.urandom(100), bell.name)
        await worker.publish([message("x")], WAIT)
        await inbox.take(1)
        assert worker.health().up


async def test_an_idle_worker_uses_next_to_nothing(bench: Bench) -> None:
    """A worker with nothing to do looks round about once a second, and spins at no time."""
    async with bench.worker() as worker:
        await bench.consume(worker)
        await eventually(lambda: worker._writer is not None and worker._writer.asleep)
        before = time.process_time()
        await asyncio.sleep(2.5)

        # a spinning thread would have used all of it
        assert time.process_time() - before < 0.5


async def test_a_message_survives_the_round_trip_of_many_workers(bench: Bench) -> None:
    """Retries of a message by one worker and then another keep everything but what they changed."""
    sent = message("x", headers={"a": [1, {"b": None}]}, key="k", priority=9, send="s")
    async with bench.worker() as first, bench.worker() as second:
        await first.publish([sent], WAIT)
        for turn, worker in enumerate((first, second, first, second)):
            inbox = await bench.consume(worker, spec=WORK)
            (got,) = await inbox.take(1)
            assert msgspec.structs.replace(got.message, sent_at=0, attempts=0) == msgspec.structs.replace(
                sent, sent_at=0
            )
            assert got.message.attempts == turn
            await inbox.subscription.cancel()
            await inbox.settle(Verb.MOVE, got, message=msgspec.structs.replace(got.message, attempts=turn + 1))
