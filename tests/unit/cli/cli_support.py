"""A project in a temporary folder, the real command run in it, and terminals. No test stands here."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLATFORM = Path(sys.executable).with_name("platform")
#: Seconds within which everything awaited must have happened; a bound for hangs.
PATIENCE = 30.0


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str]) -> Any:
    """The first true value of *condition*; *what* says what was waited for in vain, as it is by then where it is a function."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)
    return value


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(arguments[0], arguments, environment)
        self.text = ""
        self.code: int | None = None

    def read(self) -> str:
        """All that came so far."""
        while select.select([self.fd], [], [], 0)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            self.text += data.decode("utf-8", "replace")
        return self.text

    def until(self, word: str, times: int = 1) -> None:
        wait_for(lambda: self.read().count(word) >= times, lambda: f"{word!r} on the terminal; it shows:\n{self.text}")

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def ended(self) -> bool:
        if self.code is None:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.read()  # what it said between the two looks
        return self.code is not None

    def wait(self) -> int:
        wait_for(self.ended, lambda: f"its end; it shows:\n{self.text}")
        assert self.code is not None
        return self.code

    def close(self) -> None:
        # its whole session: what a shell put into the background has a process group of its own
        for pid in _session(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(self.ended, "its end")
        os.close(self.fd)


def _session(leader: int) -> list[int]:
    said = subprocess.run(["ps", "-A", "-o", "pid=,sess="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid, session in (line.split() for line in said.splitlines()) if session == str(leader)]


class Project:
    """A folder, and the command in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            key: value
            for key, value in os.environ.items()
            # a terminal tells its own size
            if not key.startswith("HANDRAIL_") and key not in ("NO_COLOR", "COLUMNS", "LINES")
        }
        self.environment["TERM"] = "xterm"
        self._started: list[subprocess.Popen[str]] = []
        self._terminals: list[Terminal] = []

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # at once, as editors do: whoever watches sees no half of it, however slow the disk is
        half = path.with_name(f".{path.name}.half")
        half.write_text(text, "utf-8")
        half.replace(path)

    def lay(self, queues: str = "  task: task\n", handler: str | None = None, top: str = "") -> Project:
        self.write("queues.yaml", f"{top}queues:\n{queues}")
        self.write(
            "handlers/task.py",
            handler or "def handler(message, callback):\n    print('got', message, flush=True)\n    callback()\n",
        )
        return self

    def run(
        self, *arguments: str, stdin: str | bytes | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The command to its end."""
        ran = subprocess.run(
            [PLATFORM, *arguments],
            cwd=cwd or self.root,
            env=self.environment,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=PATIENCE * 2,
            check=False,
        )
        return subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())

    def ok(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """The command's stdout; fails the test unless it exits with 0."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: str, code: int, stdin: str | bytes | None = None) -> str:
        """The one line with which the command refuses."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.returncode == code, ran.stdout + ran.stderr
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
        return ran.stderr

    def start(self, *arguments: str, shell: str | None = None) -> subprocess.Popen[str]:
        """The command in the background, its output in out.txt and err.txt."""
        with (self.root / "out.txt").open("w") as out, (self.root / "err.txt").open("w") as err:
            process = subprocess.Popen(
                ["sh", "-c", shell] if shell else [str(PLATFORM), *arguments],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def out(self) -> str:
        return (self.root / "out.txt").read_text()

    def err(self) -> str:
        return (self.root / "err.txt").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.err().splitlines(keepends=True) if line.endswith("}\n")]
        return [each for each in found if each["event"] == name]

    def ready(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        def look() -> list[dict[str, Any]]:
            assert process.poll() is None, self.err()
            return self.events("ready")

        return wait_for(look, "the worker is ready")[0]

    def terminal(self, *arguments: str) -> Terminal:
        made = Terminal([str(PLATFORM), *arguments], self.root, self.environment)
        self._terminals.append(made)
        return made

    def shell(self, line: str) -> Terminal:
        """A shell command on a terminal."""
        made = Terminal(["/bin/bash", "-c", line], self.root, self.environment)
        self._terminals.append(made)
        return made

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for terminal in self._terminals:
            terminal.close()
