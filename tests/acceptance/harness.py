"""A temporary project, the real command run in it, and a journal kept by its handlers to judge by. No test stands here."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

#: The command as a user runs it.
PLATFORM = Path(sys.executable).with_name("platform")
REPOSITORY = Path(__file__).resolve().parents[2]
#: Seconds within which anything that a test waits for must have happened; a bound for hangs, not a claim of speed.
PATIENCE = 30.0

T = TypeVar("T")

# Handlers import this. One write with O_APPEND is whole, whoever else writes and whoever is killed.
_JOURNAL = """
import asyncio, os, time
from pathlib import Path

JOURNAL, GATES = os.environ["TEST_JOURNAL"], Path(os.environ["TEST_GATES"])


def note(event, n=0, run=0):
    line = f"{event} {n} {os.getpid()} {time.monotonic_ns()} {run}\\n".encode()
    fd = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def is_open(gate):
    return (GATES / str(gate)).exists()


def wait_at(gate, n=0):
    while not is_open(gate):
        note("beat", n)
        time.sleep(0.01)


async def await_at(gate, n=0):
    while not is_open(gate):
        note("beat", n)
        await asyncio.sleep(0.01)
"""

# Handlers that most tests need. Every run notes its start, that it lives, and its end, with its pid.
_WORK = """
import asyncio, time
from journal import await_at, note, wait_at


async def quick(message, callback):
    note("start", message["n"])
    await asyncio.sleep(message.get("seconds", 0))
    note("end", message["n"])
    callback()


def threaded(message, callback):
    note("start", message["n"])
    time.sleep(message.get("seconds", 0))
    note("end", message["n"])
    callback()


async def held(message, callback):
    note("start", message["n"])
    await await_at(message.get("gate", "gate"), message["n"])
    note("end", message["n"])
    callback()


def held_thread(message, callback):
    note("start", message["n"])
    wait_at(message.get("gate", "gate"), message["n"])
    note("end", message["n"])
    callback()
"""

# Sends through the public API in a process of its own. It notes when it sends a message and when its fate is known, each
# note in one write: print would write it in pieces where Python does not buffer, between which handrail's lines may come.
_SENDER = """
import json, os, sys, time
from handrail import context

queue, pace, first, last, extra = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
notes = os.open(sys.argv[6], os.O_WRONLY | os.O_APPEND)


def note(what, n):
    os.write(notes, f"{what} {n} {time.monotonic_ns()}\\n".encode())


def on_sent(n):
    def fate(error):
        note("failed" if error else "confirmed", n)
        if error:
            print("failed", n, error, file=sys.stderr)

    return fate


receipts = []
for n in range(first, last):
    note("sending", n)
    receipts.append(context.queues.send_to_queue(queue, {"n": n, **json.loads(extra)}, on_sent(n)))
    if pace:
        time.sleep(pace)
for receipt in receipts:
    receipt.wait(timeout=30)
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    event: str
    n: int
    pid: int
    #: Monotonic seconds, comparable between the processes of one machine.
    at: float
    #: Tells the runs of one message in one process apart, where a handler says it.
    run: int = 0


@dataclass(slots=True)
class Run:
    """One call of a handler, as the journal tells it."""

    n: int
    pid: int
    begun: float
    #: When it last showed that it lives.
    seen: float
    #: Whether it came to its end.
    ended: bool = False


def wait_for(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """The first true value of *condition*; fails the test, naming *what* was awaited, when none comes in *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.01)


def _processes() -> dict[int, tuple[int, str]]:
    """Every process there is: pid → parent and the letter of its state."""
    found = {}
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            pid, parent, state = line.split()
            found[int(pid)] = (int(parent), state[0])
        return found
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = (int(fields[1]), fields[0])
    return found


def alive(pid: int) -> bool:
    """Whether *pid* runs. A zombie does not: it only waits for whoever inherited it."""
    return _processes().get(pid, (0, "X"))[1] not in "ZX"


def command_of(pid: int) -> str:
    """The command line of *pid*, for messages."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip() or str(pid)


def zombies_of(pid: int) -> list[int]:
    """The children of *pid* that ended and that it has not reaped."""
    return [child for child, (parent, state) in _processes().items() if parent == pid and state == "Z"]


def tree(root: int) -> list[int]:
    """The living processes descended from *root*, itself first."""
    children: dict[int, list[int]] = {}
    for pid, (parent, state) in _processes().items():
        if state not in "ZX":
            children.setdefault(parent, []).append(pid)
    found = [root] if alive(root) else []
    for pid in found:
        found += children.get(pid, [])
    return found


class Running:
    """One started command, its output going to files."""

    def __init__(
        self,
        arguments: list[str],
        project: Project,
        *,
        name: str,
        shell: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.stdout = project.logs / f"{name}.stdout"
        self.stderr = project.logs / f"{name}.stderr"
        command = ["sh", "-c", shell] if shell else arguments
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=project.root,
                env=environment or project.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._seen: set[int] = set()

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """Everything said so far, logs and handlers' prints."""
        return self.stdout.read_text(errors="replace") + self.stderr.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The JSON log lines so far whose event is *name*."""
        found = []
        for line in self.output().splitlines():
            if line.startswith("{"):
                with contextlib.suppress(json.JSONDecodeError):
                    record = json.loads(line)
                    if isinstance(record, dict) and record.get("event") == name:
                        found.append(record)
        return found

    def until_ready(self, timeout: float = PATIENCE) -> Running:
        """Return once the log says ready; fail at once when the command ends before."""

        def ready() -> bool:
            if self.process.poll() is not None and not self.events("ready"):
                raise AssertionError(f"ended with {self.process.returncode} before it was ready:\n{self.output()}")
            return bool(self.events("ready"))

        wait_for(ready, f"{self.name} is ready", timeout)
        return self

    def until_says(self, text: str, timeout: float = PATIENCE) -> str:
        """The first line of its output that holds *text*."""

        def found() -> str:
            return next((line for line in self.output().splitlines() if text in line), "")

        return wait_for(found, f"{self.name} says {text!r}", timeout)

    def tree(self) -> list[int]:
        """Its processes now; remembered, so that :meth:`end` finds those that lost their parent too."""
        found = tree(self.pid)
        self._seen.update(found)
        return found

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL for the whole tree, as a machine that goes away does it: nobody gets to notice another's death first."""
        pids = self.tree()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.signal()
        return self.process.wait(timeout)

    def end(self) -> None:
        """Make sure nothing of it runs."""
        self.tree()
        for pid in self._seen:
            if alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


class Project:
    """A project in a temporary folder: queues.yaml, handlers and, outside of it, the journal they keep."""

    def __init__(self, root: Path, broker: Mapping[str, Any] | None = None) -> None:
        self.root = root
        #: Settings that say where the messages lie, for every queues.yaml; none for the embedded SQLite.
        self.broker = dict(broker or {})
        # beside the project, not in it: what is written there must not look like a change of the project
        self.logs = root.parent / f"{root.name}-logs"
        self.gates = root.parent / f"{root.name}-gates"
        self.journal = root.parent / f"{root.name}-journal"
        for folder in (root, self.logs, self.gates):
            folder.mkdir(parents=True, exist_ok=True)
        self.journal.touch()
        self._entries: list[Entry] = []
        self._read = 0
        self.running: list[Running] = []
        #: Further variables of the environment in which its commands run.
        self.more: dict[str, str] = {}

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HANDRAIL_", "PYTEST_", "MAKE", "MFLAGS"))
        }
        return {**kept, "TEST_JOURNAL": str(self.journal), "TEST_GATES": str(self.gates), **self.more}

    # files

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project, the way editors do: a new file that takes the old one's place."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.write_text(text)
        new.replace(target)
        return target

    def lay(self, queues: Mapping[str, Any] | None = None, **settings: Any) -> Project:
        """The project most tests use: handlers/work.py with ``quick``, ``threaded``, ``held`` and ``held_thread``."""
        self.write("journal.py", _JOURNAL)
        self.write("handlers/work.py", _WORK)
        self.configure(queues or {"quick": "work.quick", "held": "work.held"}, **settings)
        return self

    def configure(self, queues: Mapping[str, Any], **settings: Any) -> None:
        # YAML takes JSON as it is
        self.write(
            "queues.yaml",
            json.dumps({"send_timeout": "40s", **self.broker, **settings, "queues": queues}, indent=2) + "\n",
        )

    def open_gate(self, name: str | int = "gate") -> None:
        """Let the handlers that wait at this gate go on."""
        (self.gates / str(name)).touch()

    # commands

    def start(self, *arguments: str, shell: str | None = None, environment: Mapping[str, str] | None = None) -> Running:
        """``platform ARGUMENTS``, or a line for the shell, in the background, in a session of its own."""
        words = "-".join(argument.strip("-") for argument in arguments if "/" not in argument) or "command"
        made = Running(
            [str(PLATFORM), *arguments],
            self,
            name=f"{len(self.running):02}-{words}",
            shell=shell,
            environment=environment,
        )
        self.running.append(made)
        return made

    def worker(self, *arguments: str) -> Running:
        """``platform run`` (or the command given), ready."""
        return self.start(*(arguments or ("run",))).until_ready()

    def platform(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """``platform ARGUMENTS`` to its end."""
        return subprocess.run(
            [PLATFORM, *arguments],
            cwd=self.root,
            env=self.environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    def send(self, queue: str, message: Any, *options: str) -> None:
        """``platform send``, which returns when the broker has the message safely."""
        done = self.platform("send", queue, json.dumps(message), *options)
        assert done.returncode == 0, done.stdout + done.stderr

    def send_lines(self, queue: str, messages: Iterable[Any], *options: str) -> None:
        """``platform send QUEUE -``: one JSON line a message."""
        done = self.platform("send", queue, "-", *options, stdin="".join(json.dumps(m) + "\n" for m in messages))
        assert done.returncode == 0, done.stdout + done.stderr

    def sender(self, queue: str, numbers: range, *, pace: float = 0.0, **message: Any) -> Sender:
        """A process of app code that sends ``{"n": number, **message}`` through ``context``, *pace* seconds apart."""
        return Sender(self, queue, numbers, pace, message)

    def depths(self, queue: str) -> dict[str, int | None]:
        """What ``platform queues --json`` says of *queue*; None where the broker cannot say."""
        for _ in range(3):  # a server that stands still for a moment is asked again
            done = self.platform("queues", "--json")
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        [found] = [row for row in json.loads(done.stdout) if row.get("queue", row.get("name")) == queue]
        return {state: found[state] for state in ("ready", "delayed", "active", "dead")}

    # the journal

    def entries(self, event: str | None = None) -> list[Entry]:
        """What the handlers noted so far, in the order of their notes."""
        with self.journal.open("rb") as file:
            file.seek(self._read)
            # a note is written whole, but this may read in the middle of the next
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        for line in whole.decode().splitlines():
            name, n, pid, at, run = line.split()
            self._entries.append(Entry(name, int(n), int(pid), int(at) / 1e9, int(run)))
        return [entry for entry in self._entries if event in (None, entry.event)]

    def counts(self, event: str) -> Counter[int]:
        """How often each message noted *event*."""
        return Counter(entry.n for entry in self.entries(event))

    def until(self, event: str, *numbers: int, timeout: float = PATIENCE) -> None:
        """Wait until each of these messages noted *event*."""
        wanted = set(numbers)
        wait_for(lambda: wanted <= set(self.counts(event)), f"{event} of {sorted(wanted)}", timeout)

    def until_more(self, event: str, number: int, timeout: float = PATIENCE) -> None:
        """Wait until *number* more notes of *event* than there are now."""
        before = len(self.entries(event))
        wait_for(lambda: len(self.entries(event)) >= before + number, f"{number} more of {event}", timeout)

    def runs(self) -> dict[int, list[Run]]:
        """The runs of each message, in the order of their beginnings."""
        found: dict[int, list[Run]] = {}
        current: dict[tuple[int, int, int], Run] = {}
        for entry in self.entries():
            where = entry.n, entry.pid, entry.run
            if entry.event == "start":
                current[where] = Run(entry.n, entry.pid, entry.at, entry.at)
                found.setdefault(entry.n, []).append(current[where])
            elif entry.event in ("beat", "end") and where in current:
                current[where].seen = entry.at
                current[where].ended = entry.event == "end"
        for runs in found.values():
            runs.sort(key=lambda run: run.begun)
        return found

    def overlaps(self) -> list[int]:
        """The messages that ran in two places at once: a run showed life after the next run of its message had begun."""
        return [
            n
            for n, runs in self.runs().items()
            for earlier, later in itertools.pairwise(runs)
            if later.begun < earlier.seen
        ]

    # the end

    def end_all(self) -> None:
        for running in self.running:
            running.end()

    def transcript(self) -> str:
        """The last of what every started command said."""
        return "\n".join(f"--- {each.name}\n{each.output()[-6000:]}" for each in self.running)


class Sender:
    """App code that sends, in a process of its own."""

    def __init__(self, project: Project, queue: str, numbers: range, pace: float, message: Mapping[str, Any]) -> None:
        self.log = project.logs / f"sender-{queue}-{numbers.start}"
        self._notes = self.log.with_suffix(".notes")
        self._notes.touch()
        arguments = [queue, str(pace), str(numbers.start), str(numbers.stop), json.dumps(message), str(self._notes)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SENDER, *arguments],
                cwd=project.root,
                env=project.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def notes(self, what: str) -> dict[int, float]:
        """The messages it noted *what* of so far (``sending``, ``confirmed``, ``failed``), and when, in monotonic seconds."""
        # the last line may be half written
        lines = [line.split() for line in self._notes.read_text().rpartition("\n")[0].splitlines()]
        return {int(n): int(at) / 1e9 for event, n, at in lines if event == what}

    def confirmed(self) -> set[int]:
        """The messages of which the broker has said that it has them, so far."""
        return set(self.notes("confirmed"))

    def finish(self, timeout: float = PATIENCE * 2) -> set[int]:
        """Wait for its end; everything it confirmed."""
        assert self.process.wait(timeout) == 0, self.log.read_text()[-4000:]
        return self.confirmed()

    def kill(self) -> set[int]:
        """SIGKILL it; what it had confirmed by then."""
        self.process.kill()
        self.process.wait(PATIENCE)
        return self.confirmed()
