"""The servers of brokers that have one: the user's own where a variable names it, else one brought up for the run alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


class UnavailableError(Exception):
    """The server cannot be had here; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that several brokers to measure may share, and whose data outlives a measured project."""

    #: Of its URLs, which the variable may leave out.
    scheme: str
    #: Names the user's own server.
    variable: str
    #: Brings one up: `SCRIPT up` prints its URL, `SCRIPT down` ends it and throws its data away.
    script: Path
    #: `SCRIPT --url URL --sweep PREFIX`, beside this file, deletes what a project with that prefix made.
    sweeper: str

    @contextlib.contextmanager
    def up(self, scratch: Path) -> Iterator[str]:
        """Its URL, for as long as it is needed. Raises :class:`UnavailableError`."""
        if named := os.environ.get(self.variable):
            yield self._url(named)
            return
        environment = {**os.environ, "HANDRAIL_BROKERS": str(scratch / "brokers")}
        done = self._run("up", environment)
        try:
            if done.returncode:
                why = (done.stderr.strip().splitlines() or [f"{self.script.name} failed with {done.returncode}"])[-1]
                raise UnavailableError(f"{why}; or name one of yours by {self.variable}")
            yield self._url(done.stdout.strip())
        finally:
            self._run("down", environment)

    def sweep(self, url: str, prefix: str) -> None:
        """Delete what a project with that prefix made on the server at *url*."""
        subprocess.run([sys.executable, str(HERE / self.sweeper), f"--url={url}", f"--sweep={prefix}"], check=True)

    def _run(self, what: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.script), what]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def _url(self, named: str) -> str:
        return named if "://" in named else f"{self.scheme}://{named}"


_SCRIPTS = HERE.parent / "scripts" / "brokers"
RABBITMQ = Server("amqp", "HANDRAIL_TEST_RABBITMQ", _SCRIPTS / "rabbitmq.py", "raw_rabbitmq.py")
KAFKA = Server("kafka", "HANDRAIL_TEST_KAFKA", _SCRIPTS / "kafka.py", "raw_kafka.py")
