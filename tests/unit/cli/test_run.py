"""`platform run` and `work`: what they say, the lock, signals, reloads and keys."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import termios

import pytest
from cli_support import PLATFORM, wait_for
from rich.console import Console

from handrail import config
from handrail.cli import report
from handrail.pipe import Found


def test_ready_is_one_json_event_away_from_a_terminal(project) -> None:
    """After it is true, one line holds every bound queue, the broker's place, pid and a line to paste."""
    project.lay("  task: {handler: task, timeout: 5s}\n")
    worker = project.start("run")

    line = project.ready(worker)

    (queue,) = line["queues"]
    assert (queue["queue"], queue["handler"], queue["kind"]) == ("task", "handlers/task.py:handler", "thread")
    assert (queue["timeout"], queue["at_timeout"]) == (5.0, "only abandons the thread")
    assert line["pid"] == worker.pid
    assert line["brokers"]["default"].endswith(".platform/queues.db")
    assert line["send"].endswith("""send task '{"n": 1}'""")


def test_the_line_to_paste_works(project) -> None:
    """Run by a shell as it stands, the handler gets the message."""
    project.lay()
    line = project.ready(project.start("run"))

    subprocess.run(line["send"], shell=True, cwd=project.root, env=project.environment, check=True, timeout=60)

    wait_for(lambda: "got {'n': 1}" in project.out(), "the handler prints it")


def test_a_terminal_gets_a_table(project) -> None:
    """For people: queue, handler, what the timeout can do, place, pid, keys."""
    project.lay()
    terminal = project.terminal("run")
    terminal.until("q quit")

    said = re.sub(r"\x1b\[[0-9;]*m", "", terminal.text)
    for word in (
        "task",
        "handlers/task.py:handler",
        "only abandons the thread",
        "queues.db",
        "pid",
        "send task '{\"n\": 1}'",
    ):
        assert word in said
    assert '{"timestamp' not in said


@pytest.mark.parametrize(
    ("columns", "words", "missing"),
    [(140, "abandons the thread", ""), (95, "attempts", "abandons"), (70, "15m", "attempts")],
)
def test_a_narrow_terminal_gets_fewer_columns_and_whole_words(project, columns, words, missing) -> None:
    """A table that does not fit leaves out what is needed least; nothing is folded into syllables."""
    project.lay("  a-queue-with-a-name: task\n")
    settings = config.load(project.root / "queues.yaml")
    found = [Found("a-queue-with-a-name", "handlers/task.py:handler", "thread", callback=True, type="")]
    screen = Console(width=columns, file=io.StringIO())
    screen.print(report.bound_table(settings, found, columns))
    shown = screen.file.getvalue()

    assert words in shown
    assert not missing or missing not in shown
    assert len(shown.splitlines()) == 3
    assert "handlers/task.py:handler" in shown


def test_it_names_the_folder_that_is_run_already(project) -> None:
    """The second `run` in a folder is told which one that is, and the command that does what was wanted."""
    project.lay()
    project.ready(project.start("run"))

    assert f"({project.root})" in project.refused("run", code=4)


def test_work_serves_only_the_queues_it_is_told(project) -> None:
    """--queues picks; a name that is not there is refused with the nearest."""
    project.lay("  a: task\n  b: task\n")
    worker = project.start("work", "--queues", "b", "--processes", "2")

    line = project.ready(worker)

    assert ([each["queue"] for each in line["queues"]], line["processes"]) == (["b"], 2)
    assert "there is no queue 'c'" in project.refused("work", "--queues", "a,c", code=2)
    assert "names no queue" in project.refused("work", "--queues", ",", code=2)


def test_a_second_run_names_the_first_and_exits_4(project) -> None:
    """One watcher a project; workers beside it are welcome."""
    project.lay()
    first = project.start("run")
    project.ready(first)

    assert f"pid {first.pid}" in project.refused("run", code=4)
    first.terminate()
    assert first.wait(30) == 0
    second = project.start("run")
    project.ready(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_good_end(project, number) -> None:
    """Drained after a signal: exit code 0 and a last line that says so."""
    project.lay()
    worker = project.start("work")
    project.ready(worker)

    worker.send_signal(number)

    assert worker.wait(30) == 0
    assert project.events("stopped")[0]["interrupted_and_given_back"] == 0


def test_a_signal_while_it_starts_is_a_good_end_too(project) -> None:
    """Handlers that take long to import do not keep the worker from ending."""
    project.lay(handler="import time\nopen('importing', 'w').close()\ntime.sleep(600)\ndef handler(m):\n    pass\n")
    worker = project.start("run")
    wait_for((project.root / "importing").exists, "the import has begun")

    worker.terminate()

    assert worker.wait(30) == 0
    assert project.events("stopped before it was ready")


def test_the_level_switches_job_lines_off(project) -> None:
    """--log-level warning leaves only what went wrong, in dispatcher and hosts."""
    project.lay()
    project.start("work", "--log-level", "warning")
    project.ok("send", "task", "1")
    wait_for(lambda: "got 1" in project.out(), "it was handled")

    # a machine that stood still is told of, and rightly
    assert {json.loads(line)["level"] for line in project.err().splitlines()} <= {"warning", "error"}
    assert "use one of debug" in project.refused("work", "--log-level", "loud", code=2)


def test_handlers_that_do_not_load_end_the_start(project) -> None:
    """Exit code not 0, the place on stderr, no traceback of ours."""
    project.lay(handler="import no_such_module\n\ndef handler(message):\n    pass\n")

    ran = project.run("work")

    assert ran.returncode == 5
    assert "task.py:1" in ran.stderr
    assert "handrail/" not in ran.stderr


def test_a_broken_file_is_shown_once_with_its_lines_and_its_mending_in_one(project) -> None:
    """The block marks the line; the old code serves on; the mended file is one line that says so."""
    project.lay()
    terminal = project.terminal("run")
    terminal.until("q quit")
    good = (project.root / "handlers/task.py").read_text()

    project.write("handlers/task.py", "x = 1\ny = (\nz = 2\n")
    terminal.until("not reloaded")
    terminal.until("> ")
    project.ok("send", "task", "7")
    terminal.until("got 7")
    project.write("handlers/task.py", good.replace("got", "now"))
    terminal.until("mended and reloaded")
    project.ok("send", "task", "8")
    terminal.until("now 8")

    assert terminal.text.count("not reloaded") == 1
    assert "Traceback" not in terminal.text


def test_a_broken_import_shows_its_line_once(project) -> None:
    """What the host shows of a file that fails while it is imported is not shown a second time."""
    project.lay()
    terminal = project.terminal("run")
    terminal.until("ready in")
    project.write("handlers/task.py", "import no_such_module\n\n\ndef handler(message):\n    pass\n")
    terminal.until("the old code serves on")
    terminal.until("import no_such_module")
    project.write("handlers/task.py", "def handler(message):\n    pass\n")
    terminal.until("mended and reloaded")

    assert terminal.text.count("import no_such_module") == 1


def test_the_reload_line_says_file_change_time_and_messages_in_flight(project) -> None:
    """A saved queues.yaml is told by what it changed."""
    project.lay("  task: {handler: task, attempts: 3}\n")
    project.ready(project.start("run"))

    project.lay("  task: {handler: task, attempts: 5}\n")

    line = wait_for(lambda: project.events("reloaded"), "it reloads")[0]
    assert line["files"] == ["queues.yaml"]
    assert line["changes"] == ["task: attempts 3 → 5"]
    assert line["in_flight"] == "none in flight"
    assert line["seconds"] > 0


class TestKeys:
    def test_s_sends_the_last_message_again(self, project) -> None:
        """As a new message with an id of its own."""
        project.lay()
        terminal = project.terminal("run")
        terminal.until("q quit")
        terminal.press("s")
        terminal.until("no message has been handled yet")
        project.ok("send", "task", '"hello"')
        terminal.until("got hello")
        terminal.until("completed")  # only from then on it is the last one handled

        terminal.press("s")

        terminal.until("sent the last message again")
        terminal.until("got hello", 2)

    def test_p_pauses_and_goes_on(self, project) -> None:
        """While paused nothing new starts."""
        project.lay()
        terminal = project.terminal("run")
        terminal.until("q quit")
        terminal.press("p")
        terminal.until("paused")
        project.ok("send", "task", '"waits"')
        wait_for(lambda: project.json("queues")[0]["ready"] + project.json("queues")[0]["active"] == 1, "it waits")
        assert "got waits" not in terminal.read()

        terminal.press("p")

        terminal.until("got waits")

    def test_r_reloads_though_nothing_changed(self, project) -> None:
        """A forced reload, for what no file tells."""
        project.lay()
        terminal = project.terminal("run")
        terminal.until("q quit")
        terminal.press("r")
        terminal.until("reloaded")

    def test_c_clears_and_the_question_mark_helps(self, project) -> None:
        """The screen is cleared and the bar shown again; ? explains each key."""
        project.lay()
        terminal = project.terminal("run")
        terminal.until("q quit")
        terminal.press("?")
        terminal.until("let running handlers finish")
        terminal.press("c")
        terminal.until("\x1b[2J")
        terminal.until("q quit", 2)

    def test_q_quits_and_the_terminal_is_as_it_was(self, project) -> None:
        """Echo and line editing are back after q."""
        project.lay()
        master, slave = os.openpty()
        before = termios.tcgetattr(master)
        os.close(master)
        os.close(slave)
        terminal = project.terminal("run")
        terminal.until("q quit")
        assert not termios.tcgetattr(terminal.fd)[3] & termios.ICANON

        terminal.press("q")

        assert terminal.wait() == 0
        assert termios.tcgetattr(terminal.fd) == before

    def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(self, project) -> None:
        """The shell gets its terminal in order, and after SIGCONT keys work again."""
        project.lay()
        terminal = project.terminal("run")
        terminal.until("q quit")

        terminal.press("\x1a")
        wait_for(lambda: _stopped(terminal.pid), "it is stopped")
        assert termios.tcgetattr(terminal.fd)[3] & termios.ICANON
        os.kill(terminal.pid, signal.SIGCONT)
        wait_for(lambda: not termios.tcgetattr(terminal.fd)[3] & termios.ICANON, "keys are taken again")
        terminal.press("?")
        terminal.until("let running handlers finish")

    def test_a_job_in_the_background_takes_no_keys(self, project) -> None:
        """Started with & it leaves the terminal alone and is not stopped for reading it."""
        project.lay()
        shell = f"set -m; {PLATFORM} run & echo shell; cat"
        terminal = project.shell(shell)
        terminal.until("ready in")
        assert termios.tcgetattr(terminal.fd)[3] & termios.ICANON
        terminal.press("quiet\n")
        # the terminal's echo and cat's; what the worker still has to say may come between them
        terminal.until("quiet", 2)
        project.ok("send", "task", '"alive"')
        terminal.until("got alive")

    def test_without_a_terminal_there_are_no_keys(self, project) -> None:
        """stdin that is no terminal is not read."""
        project.lay()
        with (project.root / "err.txt").open("w") as err:
            ran = subprocess.Popen(
                [PLATFORM, "run"],
                cwd=project.root,
                env=project.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=err,
                text=True,
            )
        try:
            project.ready(ran)
            assert ran.stdin is not None
            ran.stdin.write("q\n")
            ran.stdin.flush()
            project.ok("send", "task", "1")
            wait_for(lambda: project.events("job"), "it serves on")
            assert ran.poll() is None
        finally:
            ran.terminate()
            assert ran.wait(30) == 0
            ran.stdin.close()


def _stopped(pid: int) -> bool:
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return said.stdout.startswith("T")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_process_1_passes_signals_on_and_exits_as_its_child(project) -> None:
    """In a container the first process is an init of two lines: the code of the work is its own."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us make a process namespace")
    ran = subprocess.run(
        [*unshare, PLATFORM, "queues"],
        cwd=project.root,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
