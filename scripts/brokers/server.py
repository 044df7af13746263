"""What the real servers for tests share: a folder of their own, ports, start and end, and the command line. It knows no broker.

A server listens on loopback only, touches no server that was there before, and all it makes lies in one folder. Needs only
Python's standard library, and what it starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

#: What may be thrown away and fetched again, of any checkout.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "handrail")
#: Seconds for a server to accept clients. It takes five to ten on a machine with nothing else to do.
PATIENCE = 120.0
#: Seconds for which a port that was given out is given to nobody else.
RESERVED = 300.0
#: Seconds for a server to end by itself.
GRACE = 20.0


class UnavailableError(Exception):
    """The server cannot be had here; the text says why, and what to do."""


def own_folder(name: str) -> Path:
    """Where the data, log and state of this checkout's server of that name lie. ``HANDRAIL_BROKERS`` says another place."""
    checkout = hashlib.sha256(str(Path(__file__).resolve()).encode()).hexdigest()[:8]
    return Path(os.environ.get("HANDRAIL_BROKERS") or CACHE / checkout, name)


class Server:
    """One server in one folder. ``up`` twice changes nothing; its ports and data stay until ``down``."""

    name: ClassVar[str]
    #: What of the ports is chosen at the first start and kept from then on; ``port`` is the one for clients.
    ports: ClassVar[tuple[str, ...]] = ("port",)

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or own_folder(self.name)
        self._started: subprocess.Popen[bytes] | None = None

    # --- what each kind of server says --------------------------------------------------------------------------------

    def obtain(self) -> None:
        """Have the programs, installed where that may be done. Raises :class:`UnavailableError`."""
        raise NotImplementedError

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        """Write the configuration; *fresh* says that there is no data yet."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def url_of(self, state: dict[str, int]) -> str:
        raise NotImplementedError

    def answers(self, port: int) -> bool:
        """Whether the server takes clients on that port."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        return False

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def state(self) -> dict[str, int]:
        """Ports and the process; empty when there is none."""
        try:
            found: dict[str, int] = json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    @property
    def running(self) -> bool:
        """Whether the process lives, frozen or not."""
        return alive(self.state.get("pid", 0), self.folder)

    @property
    def url(self) -> str:
        """Raises :class:`UnavailableError` when the server is not up."""
        if not self.running:
            raise UnavailableError(f"{self.name} is not up; `make brokers` starts it")
        return self.url_of(self.state)

    def up(self) -> str:
        """Start the server unless it runs; its URL. Raises :class:`UnavailableError`."""
        with locked(self._lock):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.running and self.answers(self.state["port"]):
                return self.url
            self.obtain()
            if self.state:
                end = time.monotonic() + GRACE
                # a server that was killed may have lost its first process before the one that holds the port
                while not self.running and not is_free(self.state["port"]):
                    if time.monotonic() > end:
                        raise UnavailableError(
                            f"{self.name}: port {self.state['port']} is taken by another program; `down`, and `up` takes another"
                        )
                    time.sleep(0.05)
                self._start(self.state, fresh=False)
                return self.url
            for chances in (2, 1, 0):
                try:
                    self._start(dict(zip(self.ports, free_ports(len(self.ports)), strict=True)), fresh=True)
                except UnavailableError:
                    # somebody may have taken one of the ports in this very moment
                    if not chances or self.running:
                        raise
                    (self.folder / "state.json").unlink(missing_ok=True)
                else:
                    break
            return self.url

    @property
    def _lock(self) -> Path:
        # beside the folder: `down` takes the folder away while others wait
        return self.folder.with_name(f"{self.folder.name}.lock")

    def _start(self, state: dict[str, int], *, fresh: bool) -> None:
        self.prepare(state, fresh=fresh)
        if not self.running:
            with self.log.open("ab") as out:
                self._started = subprocess.Popen(
                    self.command(),
                    env=self.environment() | {MARK: str(self.folder)},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            state["pid"] = self._started.pid
            half = self.folder / "state.json.new"
            half.write_text(json.dumps(state))
            half.replace(self.folder / "state.json")
        end = time.monotonic() + PATIENCE
        while True:
            answers = self.answers(state["port"])
            # looked at after the answer, which may be that of somebody else who has the port
            died = self._started is not None and self._started.poll() is not None
            if answers and not died:
                return
            if died or time.monotonic() > end:
                raise UnavailableError(f"{self.name} did not start; {self.log} says why")
            time.sleep(0.05)

    def send(self, what: signal.Signals) -> None:
        """Send a signal to every process of the server; after SIGKILL they are gone when this returns, after SIGSTOP still."""
        state = self.state
        if not self.running:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state["pid"], what)
        if what is signal.SIGKILL:
            self._gone(GRACE)
        elif what is signal.SIGSTOP:
            end = time.monotonic() + GRACE
            while not stands_still(state["pid"]) and time.monotonic() < end:
                time.sleep(0.005)

    def stop(self) -> None:
        """End the server in its own way, or by force; the data stays."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if not self._gone(GRACE):
            self.send(signal.SIGKILL)

    def _gone(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        if self._started is not None:
            self._started.wait(seconds)  # a child that ended stays a process until it is asked
            self._started = None
        return True

    def down(self) -> None:
        """Stop the server and throw its data away."""
        with locked(self._lock):
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)


#: Stands in the environment of every server, so that a process id of long ago is not taken for one.
MARK = "HANDRAIL_BROKER_FOLDER"


def alive(pid: int, folder: Path) -> bool:
    """Whether that process runs and is the server of *folder*, as far as the system tells."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    process = Path("/proc", str(pid))
    if not process.parent.joinpath("self").exists():
        return True
    try:
        ended = (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        return not ended and f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def stands_still(group: int) -> bool:
    """Whether every thread of that process group is stopped, as far as the system tells."""
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "TtZX":
                return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody else who asked here got within :data:`RESERVED` seconds: it takes a server some to listen.

    They lie below those that systems give to outgoing connections: any of these could have one before the next start.
    """
    drawn = Path(tempfile.gettempdir(), f"handrail-ports-{os.getuid()}")
    with locked(drawn.with_suffix(".lock")):
        now = time.time()
        try:
            taken = {int(port): at for port, at in json.loads(drawn.read_text()).items() if now - RESERVED < at <= now}
        except (OSError, ValueError):
            taken = {}
        candidates = (port for port in random.sample(range(10_000, 32_000), 2_000) if port not in taken)
        ports = list(itertools.islice(filter(is_free, candidates), count))
        drawn.write_text(json.dumps(taken | dict.fromkeys(ports, now)))
    return ports


def is_free(port: int) -> bool:
    """Whether nobody listens on that port of the loopback."""
    with socket.socket() as probe:
        # connections of a server before, which wait for their end, are in nobody's way
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among all processes that lock *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run *command* to its end; all that it said is in ``stdout``."""
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def persist(attempt: Callable[[], subprocess.CompletedProcess[str]]) -> subprocess.CompletedProcess[str]:
    """The outcome of *attempt*, which is made up to three times: a network may refuse once what it grants a moment later."""
    for _ in range(2):
        if (done := attempt()).returncode == 0:
            return done
        time.sleep(5)
    return attempt()


def install(package: str, there: Callable[[], object]) -> None:
    """Install a package of Debian or Ubuntu unless it is *there*. Raises :class:`UnavailableError` where that cannot be done."""
    if there():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UnavailableError(f"{package} not installed (Debian, Ubuntu: apt-get install {package})")
    # RUNLEVEL=1: a package that brings a service does not start it; ours is another
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "-qq"]

    def attempt() -> subprocess.CompletedProcess[str]:
        # without a fresh list the package may be had all the same
        run([*apt, "update"], environment)
        return run([*apt, "install", "-y", "--no-install-recommends", package], environment)

    # one at a time: apt waits for who installs, but not for who fetches the lists, and without lists it finds nothing
    with locked(CACHE / "apt.lock"):
        if not there() and (done := persist(attempt)).returncode:
            last = done.stdout.strip().splitlines() or ["apt-get failed"]
            raise UnavailableError(f"apt-get could not install {package}: {last[-1]}")


def main(server: Server, arguments: Sequence[str], usage: str | None) -> int:
    """The command line of a server."""
    command = arguments[0] if arguments else ""
    try:
        match command:
            case "up":
                print(server.up())
            case "url":
                print(server.url)
            case "down":
                server.down()
            case "stop":
                server.stop()
            case "kill":
                server.send(signal.SIGKILL)
            case _:
                print(usage, file=sys.stderr)
                return 2
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
