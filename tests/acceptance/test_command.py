"""The command as a stranger uses it: scaffold, run, send, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PLATFORM, Project, alive, wait_for, zombies_of


def test_new_scaffolds_a_project_that_runs_as_it_is(project: Project) -> None:
    """In an empty folder `platform new demo` makes a project whose handler prints what `platform send` sends."""
    made = project.platform("new", "demo")
    assert made.returncode == 0, made.stderr
    demo = Project(project.root / "demo")

    worker = demo.worker()
    queue = next(iter(_bound_queues(demo)))
    demo.send(queue, {"n": 12345})

    try:
        worker.until_says("12345")
        assert worker.stop() == 0
    finally:
        demo.end_all()


def _bound_queues(project: Project) -> list[str]:
    done = project.platform("queues", "--json")
    assert done.returncode == 0, done.stderr
    return [row["queue"] for row in json.loads(done.stdout)]


def test_a_message_sent_by_the_command_is_handled(project: Project) -> None:
    """`platform send` and a running worker meet through queues.yaml alone."""
    project.lay().worker()

    project.send("quick", {"n": 7})

    project.until("end", 7)
    assert project.counts("start") == {7: 1}


def test_messages_wait_for_a_worker(project: Project) -> None:
    """What was sent while nothing ran is handled by the worker that comes later."""
    project.lay()
    project.send("quick", {"n": 1})
    assert project.depths("quick") == {"ready": 1, "delayed": 0, "active": 0, "dead": 0}

    project.worker("work")

    project.until("end", 1)
    wait_for(lambda: project.depths("quick")["ready"] == 0, "the queue is empty")


def test_app_code_sends_without_a_runtime(project: Project) -> None:
    """A plain script that imports `context` sends, hears that each message is safe, and ends."""
    project.lay()

    confirmed = project.sender("quick", range(50)).finish()

    assert confirmed == set(range(50))
    project.worker()
    project.until("end", *range(50))
    assert set(project.counts("start").values()) == {1}


def test_json_lines_are_sent_in_bulk(project: Project) -> None:
    """`platform send QUEUE -` takes one message a line."""
    project.lay().worker()

    project.send_lines("quick", ({"n": n} for n in range(200)))

    project.until("end", *range(200))
    assert set(project.counts("end").values()) == {1}


def test_user_code_never_enters_the_dispatcher(project: Project) -> None:
    """Handlers, what they import, the lifespan and middleware are all loaded in other processes than the one that was started."""
    project.lay(
        {
            "quick": {"handler": "work.quick", "middleware": ["around.each"]},
            "alone": {"handler": "cpu", "isolation": "process"},
        }
    )
    imported = "from journal import note\nnote('import')\n"
    project.write("handlers/cpu.py", imported + "def handler(message):\n    note('end', message['n'])\n")
    project.write(
        "handlers/around.py",
        imported + "async def each(job, call_next):\n    note('around', 1)\n    return await call_next()\n",
    )
    project.write(
        "handlers/_lifespan.py",
        imported + "async def lifespan():\n    note('enter')\n    yield {}\n    note('leave')\n",
    )
    worker = project.worker()
    project.send("quick", {"n": 1})
    project.send("alone", {"n": 2})
    project.until("end", 1, 2)
    assert worker.stop() == 0

    events = {entry.event for entry in project.entries()}
    pids = {entry.pid for entry in project.entries()}
    assert events >= {"import", "around", "enter", "leave", "end"}
    assert worker.pid not in pids


def test_a_second_run_in_the_same_project_says_so(project: Project) -> None:
    """`platform run` twice would handle everything twice on two reloads; the second ends with one line and its own code."""
    first = project.lay().worker()

    second = project.platform("run")

    assert second.returncode == 4
    assert str(first.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert first.process.poll() is None


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("queues:\n  quick: {handler: work.quick, attemps: 3}\n", "queues.yaml:2:", "attempts"),
        ("queues:\n  quick: nowhere\n", "queues.yaml:2:", "nowhere"),
        ("queues: [\n", "queues.yaml:", ""),
        ("", "queues.yaml:", ""),
        ("queues:\n  quick: ${NOT_SET_ANYWHERE}\n", "queues.yaml:2:", "NOT_SET_ANYWHERE"),
    ],
    ids=["unknown key", "missing handler", "bad YAML", "empty", "unset variable"],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_wrong_queues_yaml_is_one_line_with_its_place(
    project: Project, command: str, text: str, place: str, word: str
) -> None:
    """A start that cannot succeed exits 2 at once and says where, without a traceback."""
    project.lay()
    project.write("queues.yaml", text)

    done = project.platform(command)

    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert place in said
    assert word in said
    assert "Traceback" not in said


def test_a_handler_that_cannot_be_imported_ends_the_start(project: Project) -> None:
    """A worker whose handlers do not load exits non-zero at once, with the file and line."""
    project.lay({"quick": "broken"})
    project.write(
        "handlers/broken.py", "import no_such_module_anywhere\n\ndef handler(message, callback):\n    callback()\n"
    )

    done = project.platform("work")

    said = done.stdout + done.stderr
    assert done.returncode in (2, 5), said
    assert "broken.py:1" in said
    assert "no_such_module_anywhere" in said


def test_outside_of_a_project_the_command_says_what_to_do(project: Project) -> None:
    """Without a queues.yaml upward there is one line and exit code 2."""
    done = project.platform("run")

    assert done.returncode == 2
    assert "platform new" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_only_delays_is_refused_where_the_broker_needs_nobody_for_them(project: Project) -> None:
    """`work --only delays` on SQLite ends at once, and one line says why."""
    project.lay()

    done = project.platform("work", "--only", "delays")

    assert done.returncode != 0
    [line] = (done.stdout + done.stderr).strip().splitlines()
    assert "sqlite moves delayed messages on without `--only delays`" in line


def test_a_closed_stdout_kills_nothing(project: Project) -> None:
    """A worker started without stdout serves handlers that print."""
    project.lay({"loud": "loud", "quick": "work.quick"})
    project.write(
        "handlers/loud.py",
        "from journal import note\n\n"
        "def handler(message, callback):\n"
        "    print('x' * 10_000, flush=True)\n"
        "    note('end', message['n'])\n"
        "    callback()\n",
    )
    worker = project.start(shell=f"exec '{PLATFORM}' run >&-").until_ready()

    project.send_lines("loud", ({"n": n} for n in range(20)))

    project.until("end", *range(20))
    assert worker.stop() == 0
    assert project.counts("end") == dict.fromkeys(range(20), 1)


def test_a_reader_that_goes_away_kills_nothing(project: Project) -> None:
    """`platform run | head -1` leaves a worker that goes on when its stdout and stderr are broken pipes."""
    project.lay({"loud": "loud"})
    project.write(
        "handlers/loud.py",
        "from journal import note\n\n"
        "def handler(message, callback):\n"
        "    print('x' * 10_000, flush=True)\n"
        "    note('end', message['n'])\n"
        "    callback()\n",
    )
    with subprocess.Popen(
        [PLATFORM, "run"],
        cwd=project.root,
        env=project.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline()
            worker.stdout.close()

            project.send_lines("loud", ({"n": n} for n in range(20)))

            project.until("end", *range(20))
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
        finally:
            worker.kill()
    assert project.counts("end") == dict.fromkeys(range(20), 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
@pytest.mark.skipif(os.geteuid() != 0, reason="making a process namespace needs root")
def test_it_works_as_process_1_of_a_container(project: Project) -> None:
    """As process 1 it reaps the orphans that handlers leave, and SIGTERM drains it with exit code 0."""
    if subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not let us make a process namespace")
    project.lay({"orphan": "orphan", "held": "work.held"})
    project.write(
        "handlers/orphan.py",
        "import subprocess\nfrom journal import note\n\n"
        "def handler(message, callback):\n"
        "    # the shell ends at once; its child is then an orphan, which ends a moment later\n"
        "    subprocess.run(['sh', '-c', 'sleep 0.05 &'], check=True)\n"
        "    note('end', message['n'])\n"
        "    callback()\n",
    )
    container = project.start(shell=f"exec unshare --pid --fork --mount-proc '{PLATFORM}' run").until_ready()
    init = _child_of(container.pid)
    assert _namespace_pid(init) == 1

    for n in range(5):
        project.send("orphan", {"n": n})
    project.send("held", {"n": 9})
    project.until("end", *range(5))
    project.until("start", 9)
    wait_for(lambda: not zombies_of(init), "every orphan is reaped")
    os.kill(init, signal.SIGTERM)
    project.open_gate()

    wait_for(lambda: not alive(init), "it ended")
    assert container.process.wait(30) == 0
    assert project.counts("end")[9] == 1


def _child_of(pid: int) -> int:
    def child() -> int:
        return int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])

    return wait_for(child, "unshare has started the command")


def _namespace_pid(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("NSpid:")).split()[-1])
