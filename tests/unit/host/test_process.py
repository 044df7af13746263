"""A host in a process of its own, over a real socket pair."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handrail.board import COMPLETED, RUNNING
from handrail.pipe import End, ToDispatcher, ToHost


def test_handlers_run_in_the_child_and_not_here(project, child):
    """Async and plain handlers complete there; nothing of the user's is imported in this process."""
    project.write("myapp/__init__.py", "")
    project.write("myapp/who.py", "import os\ndef pid(): return os.getpid()")
    project.handler("from myapp.who import pid\nasync def handler(message): return pid()", name="a", file="a.py")
    project.handler("from a import pid\ndef handler(message, callback): callback(None, pid())", name="b", file="b.py")

    async def test():
        async with child(board=True) as host:
            for queue in ("a", "b"):
                assert await host.call(queue=queue) == [End.COMPLETED, str(host.pid).encode()]
            assert not any(name.startswith("myapp") for name in sys.modules)
        assert host.process.returncode == 0

    asyncio.run(test())


def test_the_board_outlives_a_crash(project, child):
    """After a segmentation fault the board tells what was running from what had ended."""
    project.handler("""
        import asyncio, ctypes
        async def handler(message, callback):
            if message == "crash":
                ctypes.string_at(0)
            callback()
        """)

    async def test():
        async with child(board=True, stderr=subprocess.DEVNULL) as host:
            await host.call(b'"fine"')
            host.run(b'"crash"')
            await host.until(lambda: host.process.poll() is not None)
            states = [host.board.state(slot) for slot in (0, 1)]
            assert states == [COMPLETED, RUNNING]
            assert host.process.returncode == -signal.SIGSEGV

    asyncio.run(test())


def test_it_ends_with_everything_it_started_when_the_pipe_closes(project, child, wait_gone):
    """The dispatcher's death reaches the host and the processes of its handlers."""
    project.handler("""
        import subprocess
        def handler(message): return subprocess.Popen(["sleep", "600"]).pid
        """)

    async def test():
        async with child() as host:
            _end, result = await host.call()
            host._pipe.close()
            assert await asyncio.to_thread(host.process.wait, 10) == -signal.SIGKILL
            await asyncio.to_thread(wait_gone, int(result))

    asyncio.run(test())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_dies_with_its_parent_even_while_a_handler_holds_the_loop(project, tmp_path, wait_gone):
    """A handler that blocks everything cannot keep a host alive after its parent was killed."""
    ready = tmp_path / "ready"
    script = tmp_path / "parent.py"
    script.write_text(
        "import socket, subprocess, sys, time\n"
        "from handrail.host import process\n"
        "p = subprocess.Popen([sys.executable, '-c', 'from handrail.host import process; process.settle_in(); "
        'print(__import__("os").getpid(), flush=True); __import__("time").sleep(600)\'], stdout=subprocess.PIPE)\n'
        f"open({str(ready)!r}, 'wb').write(p.stdout.readline())\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        while not (ready.exists() and ready.read_text().strip()):
            assert parent.poll() is None
            time.sleep(0.01)
        parent.kill()
        parent.wait()
        wait_gone(int(ready.read_text()))
    finally:
        parent.kill()
        parent.wait()


def test_it_ignores_interrupts_and_its_children_do_not(project, child):
    """SIGINT and SIGTERM are the dispatcher's affair; programs and forked children of handlers obey them as ever."""
    project.handler("""
        import multiprocessing, signal, subprocess, time
        def handler(message):
            program = subprocess.Popen(["sleep", "600"])
            program.terminate()
            forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            forked.start()
            forked.terminate()
            forked.join(20)
            return [program.wait(20), forked.exitcode]
        """)

    async def test():
        async with child() as host:
            os.kill(host.pid, signal.SIGINT)
            os.kill(host.pid, signal.SIGTERM)
            assert await host.call() == [End.COMPLETED, b"[-15,-15]"]

    asyncio.run(test())


def test_prints_show_at_once_and_a_closed_stdout_fails_nothing(project, child):
    """Each line leaves when it is written; when nobody reads any more, handlers go on."""
    project.handler("""
        import sys
        def handler(message):
            print("line", message, "\\ud800")
            print("x" * 100_000)
            sys.stdout.flush()
            return sys.stdin.read()
        """)

    async def test():
        read, write = os.pipe()
        async with child(stdout=write) as host:
            os.close(write)
            stream = os.fdopen(read, encoding="utf-8")
            token = host.run(b"1")
            assert await asyncio.to_thread(stream.readline) == "line 1 \\ud800\n"
            await asyncio.to_thread(stream.readline)
            assert await host.done(token) == [End.COMPLETED, b'""']
            stream.close()
            for number in (b"2", b"3"):
                assert await host.call(number) == [End.COMPLETED, b'""']

    asyncio.run(test())


def test_a_handler_that_blocks_the_loop_answers_no_ping_until_it_is_done(project, child):
    """That is how the dispatcher tells a blocked host from a busy one."""
    project.handler("""
        import os, time
        async def handler(message):
            open("entered", "w")
            while not os.path.exists("go"): time.sleep(0.01)
        """)

    async def test():
        async with child() as host:
            host.run()
            await host.until((Path(project.root) / "entered").exists)
            host.send(ToHost.PING, 77)
            await asyncio.sleep(0.05)
            assert [int(ToDispatcher.PONG), 77] not in host.heard
            (Path(project.root) / "go").touch()
            await host.until(lambda: [int(ToDispatcher.PONG), 77] in host.heard)

    asyncio.run(test())


def test_users_exit_functions_run_and_stuck_threads_keep_nothing_alive(project, child):
    """STOP ends the process cleanly although an abandoned handler never returns."""
    project.handler("""
        import atexit, sys, time
        sys.modules["__main__"].EXIT = 600.0
        atexit.register(lambda: open("exited", "w"))
        def handler(message): time.sleep(3600)
        """)

    async def test():
        async with child() as host:
            token = host.run()
            await host.ping()
            host.send(ToHost.CANCEL, token, "drain")
            await host.until(lambda: host.has(ToDispatcher.ABANDONED, token))
        assert host.process.returncode == 0
        assert (Path(project.root) / "exited").exists()

    asyncio.run(test())


def test_process_pools_of_handlers_find_the_project(project, child):
    """A spawned worker process imports the handler, its neighbour and the project's modules."""
    project.write("handlers/tools.py", "FACTOR = 2")
    project.write("myapp.py", "OFFSET = 1")
    project.handler("""
        import multiprocessing
        import myapp, tools
        def work(n): return n * tools.FACTOR + myapp.OFFSET
        def handler(message):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map(work, message)
        """)

    async def test():
        async with child() as host:
            assert await host.call(b"[1,2]") == [End.COMPLETED, b"[3,5]"]

    asyncio.run(test())


def test_problems_cross_the_pipe_and_the_host_waits_for_its_stop(project, child):
    """A broken handler file is told; the process does not crash over it."""
    project.handler("import nowhere\n")

    async def test():
        async with child() as host:
            assert host.problems[0].startswith("handlers/h.py:1: ModuleNotFoundError: No module named 'nowhere'")
            assert not host.ready
        assert host.process.returncode == 0

    asyncio.run(test())


def test_it_is_not_for_people():
    """Run by hand it says what to run instead."""
    done = subprocess.run([sys.executable, "-m", "handrail.host"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "platform run" in done.stderr
