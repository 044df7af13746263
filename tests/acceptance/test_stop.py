"""How a worker ends: drained, hurried, killed or frozen; and what becomes of what it held."""

from __future__ import annotations

import os
import signal

import pytest
from harness import Project, Running, alive, command_of, wait_for

_HELD = {"held": "work.held", "thread": "work.held_thread", "quick": "work.quick"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["run", "work"])
def test_a_signal_drains(project: Project, command: str, number: signal.Signals) -> None:
    """What runs finishes, what comes later waits for the next worker, and the exit code is 0."""
    worker = project.lay(_HELD).worker(command)
    project.send("held", {"n": 1})
    project.send("thread", {"n": 2})
    project.until("start", 1, 2)

    worker.signal(number)
    worker.until_says("taking nothing new")
    project.send("quick", {"n": 3})
    project.open_gate()

    assert worker.process.wait(30) == 0
    assert project.counts("end") == {1: 1, 2: 1}
    assert project.depths("held") == {"ready": 0, "delayed": 0, "active": 0, "dead": 0}
    assert project.depths("quick") == {"ready": 1, "delayed": 0, "active": 0, "dead": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(project: Project, number: signal.Signals) -> None:
    """The drain is cut short, what ran goes back to its queue uncounted, and the exit code says so."""
    worker = project.lay(_HELD, drain_timeout="10m").worker()
    project.send("held", {"n": 1})
    project.until("start", 1)
    worker.signal(number)
    worker.until_says("taking nothing new")
    assert worker.process.poll() is None

    worker.signal(number)

    assert worker.process.wait(30) == 128 + number
    assert project.depths("held") == {"ready": 1, "delayed": 0, "active": 0, "dead": 0}
    assert project.counts("end") == {}


def test_a_drain_ends_at_its_timeout(project: Project) -> None:
    """What does not finish within `drain_timeout` goes back, uncounted, and the next worker runs it."""
    worker = project.lay(_HELD, drain_timeout="200ms").worker()
    project.send("held", {"n": 1})
    project.send("thread", {"n": 2})
    project.until("start", 1, 2)

    assert worker.stop() == 0

    assert project.depths("held")["ready"] == 1
    assert project.depths("thread")["ready"] == 1
    project.open_gate()
    project.worker()
    project.until("end", 1, 2)
    assert project.overlaps() == []


def test_a_killed_dispatcher_takes_everything_with_it(project: Project) -> None:
    """After SIGKILL of the dispatcher no host runs on, nor a process that isolates a job, nor a child that a handler started."""
    project.lay({**_HELD, "alone": {"handler": "alone", "isolation": "process"}})
    project.write(
        "handlers/alone.py",
        "from journal import note, wait_at\n\n"
        "def handler(message, callback):\n"
        "    note('start', message['n'])\n"
        "    wait_at('gate', message['n'])\n"
        "    callback()\n",
    )
    project.write(
        "handlers/pool.py",
        "import concurrent.futures, journal, multiprocessing\n\n"
        "def handler(message, callback):\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:\n"
        "        pool.submit(journal.wait_at, 'gate', message['n']).result()\n"
        "    callback()\n",
    )
    project.configure({**_HELD, "alone": {"handler": "alone", "isolation": "process"}, "pool": "pool"})
    worker = project.worker("work", "--processes", "2")
    project.send("thread", {"n": 1})
    project.send("alone", {"n": 2})
    project.send("pool", {"n": 3})
    project.until("beat", 1, 2, 3)
    pids = set(worker.tree())
    assert {entry.pid for entry in project.entries()} <= pids

    os.kill(worker.pid, signal.SIGKILL)

    try:
        wait_for(lambda: not any(alive(pid) for pid in pids), "the whole tree is gone")
    except AssertionError as error:
        raise AssertionError(f"still there: {[command_of(pid) for pid in pids if alive(pid)]}") from error


def test_a_dead_workers_messages_return_at_once(project: Project) -> None:
    """What a killed worker was running is run by the next one as soon as it is there, and never by both."""
    project.lay(_HELD)
    first = project.worker()
    project.send("held", {"n": 1})
    project.send("thread", {"n": 2})
    project.until("start", 1, 2)

    os.kill(first.pid, signal.SIGKILL)
    project.worker("work")

    # one at a time: either may be what killed the worker, and the other must not be blamed for it again
    wait_for(lambda: sum(project.counts("start").values()) == 3, "one of them runs again")
    project.open_gate()
    project.until("end", 1, 2)
    assert project.overlaps() == []
    assert project.counts("end") == {1: 1, 2: 1}


def test_a_killed_host_is_replaced_and_its_messages_run_again(project: Project) -> None:
    """The worker outlives its hosts: the messages that ran in a killed one run again, in another process."""
    project.lay(_HELD)
    worker = project.worker()
    project.send("held", {"n": 1})
    project.until("start", 1)
    host = project.entries("start")[0].pid

    os.kill(host, signal.SIGKILL)

    wait_for(lambda: project.counts("start")[1] == 2, "it runs again")
    project.open_gate()
    project.until("end", 1)
    assert project.entries("end")[-1].pid != host
    assert worker.process.poll() is None
    assert worker.stop() == 0


def test_a_poison_message_dies_and_its_neighbours_live(project: Project) -> None:
    """A message that kills its process is dead-lettered after `max_crashes`; those that ran beside it are handled."""
    project.lay({"mixed": "mixed"})
    project.write(
        "handlers/mixed.py",
        "import os, signal, asyncio\nfrom journal import note\n\n"
        "async def handler(message, callback):\n"
        "    note('start', message['n'])\n"
        "    await asyncio.sleep(0.05)\n"
        "    if message['n'] == 13:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    note('end', message['n'])\n"
        "    callback()\n",
    )
    project.worker()
    project.send_lines("mixed", ({"n": n} for n in range(40)))

    wait_for(
        lambda: project.depths("mixed") == {"ready": 0, "delayed": 0, "active": 0, "dead": 1},
        "one is dead, all others done",
    )

    assert set(project.counts("end")) == set(range(40)) - {13}
    assert project.counts("start")[13] == 3


def test_a_frozen_worker_keeps_what_it_holds(project: Project) -> None:
    """SIGSTOP is no death: another worker takes only what waits, and after SIGCONT each finishes its own, once."""
    project.lay(_HELD)
    frozen = project.worker("work")
    project.send("held", {"n": 1})
    project.send("thread", {"n": 2})
    project.until("start", 1, 2)
    _signal_all(frozen, signal.SIGSTOP)
    other = project.worker("work")

    project.send_lines("quick", ({"n": n} for n in range(10, 60)))
    project.until("end", *range(10, 60))
    _signal_all(frozen, signal.SIGCONT)
    project.open_gate()

    project.until("end", 1, 2)
    assert frozen.stop() == 0
    assert other.stop() == 0
    assert set(project.counts("start").values()) == {1}


def _signal_all(worker: Running, number: signal.Signals) -> None:
    for pid in worker.tree():
        os.kill(pid, number)
