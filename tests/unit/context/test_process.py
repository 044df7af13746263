"""Sending from processes as they come: scripts, forks, pools, and their ends; on the embedded broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from handrail import adapter as port
from handrail import config, transport

PRELUDE = """
import asyncio, atexit, os, sys, threading, time
from handrail import context
send, send_bulk = context.queues.send_to_queue, context.queues.send_bulk
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project on an SQLite file."""
    (tmp_path / "queues.yaml").write_text("queues:\n  email: mail\n  other: mail\n")
    transport.install(None)
    return tmp_path


def run(project: Path, code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run *code* as a script of its own, outside any worker."""
    script = project / "app.py"
    script.write_text(PRELUDE + textwrap.dedent(code))
    return subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        cwd=cwd or project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def bodies(project: Path, queue: str = "email") -> list[str]:
    """What stands in *queue*, in its order."""
    settings = config.load(project / "queues.yaml", check_handlers=False)

    async def read() -> list[str]:
        adapter = port.load(settings.brokers["default"])
        await adapter.open("client")
        try:
            await adapter.declare([queue.spec for queue in settings.queues.values()])
            return [message.body.decode() for message in await adapter.peek(queue, "ready", 100_000)]
        finally:
            await adapter.close()

    return asyncio.run(read())


def test_a_script_that_ends_at_once_loses_nothing(project):
    """What was accepted is flushed when the interpreter exits, callbacks included, and nothing is printed."""
    done = run(
        project,
        """
        send_bulk("email", range(2000))
        send("email", "last", lambda error: print("sent", error))
        """,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "sent None\n", "")
    assert bodies(project) == [*map(str, range(2000)), '"last"']


@pytest.mark.parametrize(
    ("ending", "codes"),
    [("raise RuntimeError('boom')", {1}), ("sys.exit(3)", {3}), ("raise KeyboardInterrupt", {1, 130, -2})],
)
def test_every_ordinary_end_flushes(project, ending, codes):
    """An error, sys.exit and an interrupt flush as well, and the exit code says how it ended."""
    done = run(project, f"send('email', 1)\n{ending}\n")

    assert done.returncode in codes
    assert bodies(project) == ["1"]


def test_threads_and_exit_functions_may_send_last(project):
    """Sends from threads that outlive the main one, and from functions registered with atexit, are flushed too."""
    done = run(
        project,
        """
        def late():
            threading.main_thread().join()
            send("email", "thread")
        threading.Thread(target=late).start()
        atexit.register(lambda: send("email", "atexit"))
        send("email", "main")
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(bodies(project)) == ['"atexit"', '"main"', '"thread"']


def test_an_exit_is_bounded_and_says_what_was_lost(project):
    """When the broker takes nothing, the exit waits no longer than send_timeout and tells of it in one line."""
    (project / "queues.yaml").write_text("send_timeout: 300ms\nqueues:\n  email: mail\n")
    done = run(
        project,
        """
        from handrail import adapter
        opened = []
        class Never:
            def __init__(self, settings): pass
            async def open(self, role):
                opened.append(role)
                raise ConnectionRefusedError("connection refused")
            async def close(self): pass
        adapter.load = Never
        from handrail.context import callbacks
        callbacks._FOLD = 60
        while not opened:  # until it is known why: only then does every error name it
            try: send("email", 0).wait(10)
            except Exception: pass
        kept = [send("email", n) for n in range(7)]
        send_bulk("email", range(3))
        """,
    )

    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "10 messages were not sent, and nobody looked at the receipt or gave a callback queue='email'"
    )
    assert "connection refused" in line


def test_the_project_is_found_upward_or_by_name(project, tmp_path_factory):
    """The project is found from the working directory upward, by HANDRAIL_CONFIG, or told by configure()."""
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    assert run(project, "send('email', 1)", cwd=inner).returncode == 0
    assert (
        run(
            project,
            f"os.environ['HANDRAIL_CONFIG'] = {str(project / 'queues.yaml')!r}\nsend('email', 2)",
            cwd=elsewhere,
        ).returncode
        == 0
    )
    assert (
        run(project, f"context.configure({str(project / 'queues.yaml')!r})\nsend('email', 3)", cwd=elsewhere).returncode
        == 0
    )
    lost = run(project, "send('email', 4)", cwd=elsewhere)
    assert lost.returncode == 1
    assert "NoProjectError" in lost.stderr
    assert bodies(project) == ["1", "2", "3"]


def test_forked_workers_each_send(project):
    """Pre-forked workers, forked before or after the parent's first send, each connect for themselves and flush at their end."""
    done = run(
        project,
        """
        from handrail.context import publisher
        publisher._FORKING = publisher._CLOSING = 20.0  # a disk may take its time
        send("email", "before").wait(10)
        children = []
        for number in range(4):
            pid = os.fork()
            if not pid:
                receipts = [send("email", [number, n]) for n in range(50)]
                receipts[0].wait(10)
                sys.exit(0)
            children.append(pid)
        send_bulk("email", ["parent"] * 50)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert codes == [0] * 4, codes
        send("email", "after").wait(10)
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    found = bodies(project)
    assert len(found) == 4 * 50 + 52
    for number in range(4):
        assert [b for b in found if b.startswith(f"[{number},")] == [f"[{number},{n}]" for n in range(50)]
    assert (found[0], found[-1]) == ('"before"', '"after"')


def test_a_send_on_its_way_at_a_fork_is_the_parent_s_alone(project):
    """What is on its way when a process forks is sent once, by the parent; the child is told that it will not learn of it."""
    done = run(
        project,
        """
        from handrail.errors import SendError
        receipt = send("email", "warm"); receipt.wait(10)
        told = []
        receipts = [send("email", n, told.append) for n in range(500)]
        pid = os.fork()
        if not pid:
            assert receipt.wait(0) is None
            unknown = 0
            for pending in receipts:
                try:
                    pending.wait(0.5)
                except SendError as error:
                    assert "only it learns what became of it" in str(error)
                    unknown += 1
            context.queues.flush(1)
            assert len(told) + unknown <= 500
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert context.queues.flush(10)
        assert told == [None] * 500
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert bodies(project) == ['"warm"', *map(str, range(500))]


def test_a_fork_amid_sends_locks_nothing(project):
    """However a fork falls among the sends of other threads, the child can send and end."""
    done = run(
        project,
        """
        from handrail.context import publisher
        publisher._FORKING = publisher._CLOSING = 20.0  # a disk may take its time
        stop = threading.Event()
        def work():
            while not stop.is_set():
                send("other", 1).wait(10)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads: thread.start()
        for number in range(20):
            pid = os.fork()
            if not pid:
                try:
                    send("email", number).wait(10)
                    code = 0
                except BaseException as error:
                    print(error, file=sys.stderr)
                    code = 1
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stop.set()
        for thread in threads: thread.join()
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert bodies(project) == [str(number) for number in range(20)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_flush_at_their_end(project, method):
    """A child of multiprocessing, which runs no atexit functions, flushes what it sent all the same."""
    done = run(
        project,
        """
        import multiprocessing
        def child(number):
            for n in range(20):
                send("email", [number, n])
        if __name__ == "__main__":
            from handrail.context import publisher
            publisher._FORKING = publisher._CLOSING = 20.0  # a disk may take its time
            ways = multiprocessing.get_context(sys.argv[1])
            send("email", "parent")
            children = [ways.Process(target=child, args=(number,)) for number in range(3)]
            for one in children: one.start()
            for one in children: one.join()
            assert [one.exitcode for one in children] == [0, 0, 0]
        """,
        method,
    )

    assert (done.returncode, done.stderr) == (0, "")
    found = bodies(project)
    assert len(found) == 61
    for number in range(3):
        assert [b for b in found if b.startswith(f"[{number},")] == [f"[{number},{n}]" for n in range(20)]


def test_an_asyncio_application_awaits_its_receipts(project):
    """An asyncio application awaits receipts on the real broker, with asyncio's debug mode finding nothing slow."""
    done = run(
        project,
        """
        async def main():
            await asyncio.gather(*(send("email", n) for n in range(300)))
            await send_bulk("email", range(300, 600))
        asyncio.run(main(), debug=True)
        """,
    )

    assert done.returncode == 0
    assert bodies(project) == [str(n) for n in range(600)]


def test_options_survive_the_broker(project):
    """Delays, priorities, ids and headers are in the broker as they were given."""
    run(
        project,
        """
        send("email", 1, priority=1)
        send("email", 2, priority=9, headers={"a": "ä", "raw": b"x"}, id="mine", key="k", attempts=2)
        send("email", 3, delay="1h")
        """,
    )
    settings = config.load(project / "queues.yaml", check_handlers=False)

    async def read():
        adapter = port.load(settings.brokers["default"])
        await adapter.open("client")
        try:
            return await adapter.peek("email", "ready", 10), await adapter.peek("email", "delayed", 10)
        finally:
            await adapter.close()

    ready, delayed = asyncio.run(read())
    assert [message.body for message in ready] == [b"2", b"1"]
    assert [message.body for message in delayed] == [b"3"]
    assert ready[0].headers == {"a": "ä", "raw": b"x"}
    assert (ready[0].id, ready[0].key, bool(ready[0].send), ready[0].options.attempts) == ("mine", "k", True, 2)
    assert delayed[0].due == pytest.approx(delayed[0].sent_at + 3600)


def test_the_process_is_left_alone(project):
    """Sending starts two daemon threads at most, and leaves signals and the event loop policy as they were."""
    done = run(
        project,
        """
        import signal
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        send("email", 1, lambda error: None).wait(10)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        ours = [t for t in threading.enumerate() if t.name.startswith("handrail")]
        assert all(t.daemon for t in ours), ours
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_killed_at_any_instant_what_was_confirmed_stays(project):
    """A sender that dies without any farewell loses nothing that a receipt had confirmed."""
    done = run(
        project,
        """
        for n in range(100):
            send("email", n).wait(10)
        os.kill(os.getpid(), 9)
        """,
    )

    assert done.returncode == -9
    assert bodies(project) == [str(n) for n in range(100)]


def test_an_adapter_can_use_the_loops_threads_at_exit(project):
    """A script that sends and ends at once is served by adapters that look up names on the loop's threads."""
    done = run(
        project,
        """
        import asyncio
        from handrail import adapter

        load = adapter.load
        def slow(settings):
            made = load(settings)
            opened = made.open
            async def open(role):
                await asyncio.sleep(0.3)  # the script has ended by now
                await asyncio.get_running_loop().run_in_executor(None, int)
                await opened(role)
            made.open = open
            return made
        adapter.load = slow
        send("email", 1)
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert bodies(project) == ["1"]
