#!/usr/bin/env python3
"""A real RabbitMQ for tests: ``up`` prints its URL, ``url``, ``stop``, ``kill``, ``down`` throws it away, ``ctl ARGS…``.

It is the distribution's (Debian: ``rabbitmq-server``), which is installed where that may be done. Neither Docker nor an init
system is needed: node name, ports, cookie and data folder are all its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from server import Server, UnavailableError, install, main

#: Debian's wrappers in /usr/sbin insist on one user and one folder; the scripts behind them do not.
BINARIES = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")

CONFIG = """\
loopback_users.guest = true
log.console = false
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 50MB
"""


def program(name: str) -> str | None:
    return next((str(Path(folder, name)) for folder in BINARIES if Path(folder, name).exists()), None)


class RabbitMQ(Server):
    """A node of its own."""

    name = "rabbitmq"
    ports = ("port", "dist", "epmd")

    def __init__(self, folder: Path | None = None, config: str = "") -> None:
        """*config*: further lines of its ``rabbitmq.conf``."""
        super().__init__(folder)
        self.config = config

    def obtain(self) -> None:
        install("rabbitmq-server", lambda: program("rabbitmq-server"))
        if program("rabbitmq-server") is None:
            raise UnavailableError(f"rabbitmq-server is in none of {', '.join(BINARIES)}")

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        for folder in ("data", "log"):
            (self.folder / folder).mkdir(exist_ok=True)
        if fresh:
            cookie = self.folder / ".erlang.cookie"
            cookie.unlink(missing_ok=True)
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)
        (self.folder / "rabbitmq.conf").write_text(CONFIG + self.config)
        (self.folder / "enabled_plugins").write_text("[].\n")
        self._ports = state

    def command(self) -> list[str]:
        return [str(program("rabbitmq-server"))]

    def environment(self) -> dict[str, str]:
        state = self.state or self._ports
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_NODENAME": f"handrail{state['port']}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(state["port"]),
            "RABBITMQ_DIST_PORT": str(state["dist"]),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            # the distribution between Erlang nodes and its port mapper are as private as the server itself
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(state["epmd"]),
        }

    def url_of(self, state: dict[str, int]) -> str:
        return f"amqp://guest:guest@127.0.0.1:{state['port']}/"

    def answers(self, port: int) -> bool:
        """Whether it speaks AMQP there: it answers a wrong protocol header with the right one."""
        try:
            with socket.create_connection(("127.0.0.1", port), 2.0) as probe:
                probe.settimeout(2.0)
                probe.sendall(b"AMQP\x09\x09\x09\x09")
                return probe.recv(4) == b"AMQP"
        except OSError:
            return False

    def down(self) -> None:
        self.stop()
        # the port mapper has a session of its own
        if self.state and (epmd := shutil.which("epmd")):
            subprocess.run([epmd, "-kill"], env=self.environment(), check=False, capture_output=True)
        super().down()

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run rabbitmqctl against this server."""
        return subprocess.run(
            [str(program("rabbitmqctl")), *arguments],
            env=self.environment(),
            check=False,
            capture_output=True,
            text=True,
        )


if __name__ == "__main__":
    rabbitmq = RabbitMQ()
    if sys.argv[1:2] == ["ctl"]:
        if not rabbitmq.running:
            sys.exit("rabbitmq is not up; `make brokers` starts it")
        done = rabbitmq.ctl(*sys.argv[2:])
        sys.stdout.write(done.stdout + done.stderr)
        sys.exit(done.returncode)
    sys.exit(main(rabbitmq, sys.argv[1:], __doc__))
