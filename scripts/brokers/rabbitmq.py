#!/usr/bin/env python3
"""Brings up a real RabbitMQ for tests, of its own, on loopback only: ``up``, ``down``, ``url``, ``kill``, ``ctl ARGS…``.

It needs the distribution's package (Debian: ``apt-get install rabbitmq-server``), neither Docker nor an init system, and
touches no server that was there before: node name, ports, cookie and data folder are all its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
#: Where the server's data, log and cookie lie; one server a checkout.
FOLDER = Path(
    os.environ.get("HANDRAIL_BROKERS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "handrail"
    / hashlib.sha256(str(HERE).encode()).hexdigest()[:8],
    "rabbitmq",
)
STATE = FOLDER / "state.json"
#: Debian's wrappers in /usr/sbin insist on one user and one folder; the scripts behind them do not.
BINARIES = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
#: Seconds for the server to accept clients. It takes about five on a machine with nothing else to do.
PATIENCE = 120.0

#: What this process started: kept, for the server is meant to outlive it.
_started: list[subprocess.Popen[bytes]] = []


class UnavailableError(Exception):
    """The server cannot be had here; the text says why, and what to do."""


def program(name: str) -> str:
    for folder in BINARIES:
        if Path(folder, name).exists():
            return str(Path(folder, name))
    raise UnavailableError("rabbitmq-server is not installed (Debian, Ubuntu: apt-get install rabbitmq-server)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load() -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return found


def environment(state: dict[str, int]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
    return kept | {
        "HOME": str(FOLDER),
        "LC_ALL": "C.UTF-8",
        "RABBITMQ_NODENAME": f"handrail{state['port']}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(state["port"]),
        "RABBITMQ_DIST_PORT": str(state["dist"]),
        "RABBITMQ_MNESIA_BASE": str(FOLDER / "data"),
        "RABBITMQ_LOG_BASE": str(FOLDER / "log"),
        "RABBITMQ_CONFIG_FILE": str(FOLDER / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(FOLDER / "advanced"),
        "RABBITMQ_CONF_ENV_FILE": str(FOLDER / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(FOLDER / "enabled_plugins"),
        # the distribution between Erlang nodes and its port mapper are as private as the server itself
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(state["epmd"]),
    }


def answers(state: dict[str, int]) -> bool:
    """Whether a server speaks AMQP on the port: it answers a wrong protocol header with the right one."""
    try:
        with socket.create_connection(("127.0.0.1", state["port"]), 2.0) as probe:
            probe.settimeout(2.0)
            probe.sendall(b"AMQP\x09\x09\x09\x09")
            return probe.recv(4) == b"AMQP"
    except OSError:
        return False


def alive(state: dict[str, int]) -> bool:
    try:
        os.kill(state["pid"], 0)
    except (ProcessLookupError, KeyError):
        return False
    return True


def url(state: dict[str, int]) -> str:
    return f"amqp://guest:guest@127.0.0.1:{state['port']}/"


def up() -> str:
    """The server's URL; starts it unless it runs. Data of an earlier start is kept, and so are the ports."""
    state = load()
    if state and alive(state) and answers(state):
        return url(state)
    server = program("rabbitmq-server")
    for folder in ("data", "log"):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
    if not state:
        state = {name: free_port() for name in ("port", "dist", "epmd")}
        cookie = FOLDER / ".erlang.cookie"
        cookie.unlink(missing_ok=True)
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)
    (FOLDER / "rabbitmq.conf").write_text(
        "loopback_users.guest = true\nlog.console = false\nvm_memory_high_watermark.absolute = 2GB\n"
        "disk_free_limit.absolute = 50MB\n"
    )
    (FOLDER / "enabled_plugins").write_text("[].\n")
    with (FOLDER / "log" / "console").open("ab") as console:
        process = subprocess.Popen(
            [server],
            env=environment(state),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    _started.append(process)
    state["pid"] = process.pid
    STATE.write_text(json.dumps(state))
    end = time.monotonic() + PATIENCE
    while not answers(state):
        if process.poll() is not None:
            raise UnavailableError(f"rabbitmq-server ended at once; see {FOLDER}/log")
        if time.monotonic() > end:
            raise UnavailableError(f"rabbitmq-server did not come up within {PATIENCE:g} s; see {FOLDER}/log")
        time.sleep(0.1)
    return url(state)


def send(what: signal.Signals) -> None:
    """Send a signal to every process of the server. For tests of what workers do then."""
    state = load()
    if state:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state["pid"], what)


def down() -> None:
    """Stop the server and throw its data away."""
    state = load()
    if state:
        send(signal.SIGCONT)
        send(signal.SIGTERM)
        end = time.monotonic() + 20
        while alive(state) and time.monotonic() < end:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(state["pid"], os.WNOHANG)
            time.sleep(0.1)
        send(signal.SIGKILL)
        for process in _started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if epmd := shutil.which("epmd"):
            subprocess.run([epmd, "-kill"], env=environment(state), check=False, capture_output=True)
    shutil.rmtree(FOLDER, ignore_errors=True)


def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run rabbitmqctl against this server."""
    return subprocess.run(
        [program("rabbitmqctl"), *arguments], env=environment(load()), check=False, capture_output=True, text=True
    )


def main(arguments: list[str]) -> int:
    what = arguments[0] if arguments else ""
    try:
        if what == "up":
            print(up())
        elif what == "url":
            state = load()
            if not (state and answers(state)):
                raise UnavailableError("the server is not up; python scripts/brokers/rabbitmq.py up")
            print(url(state))
        elif what == "down":
            down()
        elif what == "kill":
            send(signal.SIGKILL)
        elif what == "ctl":
            done = ctl(*arguments[1:])
            print(done.stdout + done.stderr, end="")
            return done.returncode
        else:
            print(__doc__)
            return 2
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
