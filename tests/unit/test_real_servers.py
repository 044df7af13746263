"""The servers that tests bring up: started once however many ask, and never in another's way."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server, UnavailableError, free_ports, is_free

import real_servers  # noqa: F401 - it makes the scripts importable

SERVE = """
import socket, sys
open("starts", "a").write("x")
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].close()
"""


class Tiny(Server):
    """A server that starts at once and does nothing."""

    name = "tiny"
    #: Start attempts that fail, as with a port that somebody took.
    failures = 0

    def obtain(self) -> None:
        pass

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        self.port = state["port"]

    def command(self) -> list[str]:
        if self.failures:
            self.failures -= 1
            return [sys.executable, "-c", "raise SystemExit(1)"]
        return [sys.executable, "-c", SERVE, str(self.port)]

    def url_of(self, state: dict[str, int]) -> str:
        return f"tiny:{state['port']}"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Tiny]:
    made = Tiny(tmp_path / "tiny")
    yield made
    made.down()


def test_two_that_start_it_at_once_start_one(tiny: Tiny) -> None:
    """`up` from several processes or threads gives one server, and its URL to all."""
    urls: list[str] = []
    several = [Tiny(tiny.folder) for _ in range(4)]
    threads = [threading.Thread(target=lambda one=one: urls.append(one.up())) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts = (tiny.folder / "starts").read_text()
    for one in several:
        one.stop()

    assert len(urls) == 4
    assert len(set(urls)) == 1
    assert starts == "x"


def test_a_process_id_of_long_ago_is_not_the_server(tiny: Tiny) -> None:
    """A state file whose process is another program's by now, or that is damaged, is no running server, and nothing is killed."""
    tiny.up()
    tiny.send(signal.SIGKILL)
    state = tiny.state
    (tiny.folder / "state.json").write_text(json.dumps(state | {"pid": os.getpid()}))

    assert not tiny.running
    assert tiny.up() == f"tiny:{state['port']}"
    tiny.stop()
    (tiny.folder / "state.json").write_text('{"port": 1')
    assert not tiny.running
    assert tiny.up() == tiny.url


def test_a_port_that_is_taken_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps its port between `stop` and `up`; when another program has it by then, one line says so."""
    tiny.up()
    tiny.stop()
    monkeypatch.setattr("server.GRACE", 1.0)
    with socket.create_server(("127.0.0.1", tiny.state["port"])):
        assert not is_free(tiny.state["port"])
        with pytest.raises(UnavailableError, match=f"port {tiny.state['port']} is taken"):
            tiny.up()
    assert tiny.up() == tiny.url


def test_a_port_that_is_lost_while_starting_is_replaced(tiny: Tiny) -> None:
    """A first start that fails is tried again with other ports."""
    tiny.failures = 2

    assert tiny.up() == tiny.url
    tiny.down()
    tiny.failures = 9
    with pytest.raises(UnavailableError, match="did not start"):
        tiny.up()


def test_a_port_is_given_to_one_alone() -> None:
    """What was drawn is drawn by nobody else for minutes, though nobody listens there yet."""
    drawn: list[int] = []

    def draw() -> None:
        drawn.extend(port for _ in range(10) for port in free_ports(20))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(drawn)) == len(drawn) == 800
