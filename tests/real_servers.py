"""The real servers that tests run on: one a broker for all of them, brought up when a test needs it and nobody named another.

A server of the user's own is named by ``HANDRAIL_TEST_RABBITMQ`` or ``HANDRAIL_TEST_KAFKA``. Else one that `make brokers`
started is used, and stays; else one is started here, and is thrown away at the end.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "brokers"))

from kafka import Kafka
from rabbitmq import RabbitMQ
from server import Server, UnavailableError

__all__ = ["Kafka", "RabbitMQ", "Server", "UnavailableError", "bring_down", "bring_up", "need", "url"]

#: Read when the module is loaded: the tests themselves run without the environment's own settings.
NAMED = {name: os.environ.get(f"HANDRAIL_TEST_{name.upper()}", "") for name in ("rabbitmq", "kafka")}
if NAMED["kafka"] and not NAMED["kafka"].startswith("kafka:"):
    NAMED["kafka"] = f"kafka://{NAMED['kafka']}"

_servers: dict[str, Server] = {"rabbitmq": RabbitMQ(), "kafka": Kafka()}
_found: dict[str, str | UnavailableError] = {}
#: Those that ran before, and so are nobody's of this run.
_stay = {name for name, server in _servers.items() if server.running}


def url(name: str) -> str:
    """Where the server is, started if need be. Raises :class:`UnavailableError`, each time for the same reason."""
    if name not in _found:
        _found[name] = _obtain(name)
    found = _found[name]
    if isinstance(found, UnavailableError):
        raise found
    return found


def _obtain(name: str) -> str | UnavailableError:
    if NAMED[name]:
        return NAMED[name]
    try:
        return _servers[name].up()
    except UnavailableError as error:
        return error


def need(name: str) -> str:
    """As :func:`url`; where the server cannot be had the test is skipped, and fails when CI is set."""
    try:
        return url(name)
    except UnavailableError as reason:
        unavailable(name, reason)


def unavailable(name: str, reason: UnavailableError) -> NoReturn:
    """End the test: without its server it says nothing."""
    if os.environ.get("CI"):
        pytest.fail(f"{name}: {reason}")
    pytest.skip(f"{name}: {reason}")


def bring_up(names: Iterable[str]) -> None:
    """Start what the tests will need, all at once and before any test's time runs."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for name, found in pool.map(lambda name: (name, _found.get(name) or _obtain(name)), names):
            _found[name] = found


def bring_down() -> None:
    """End what was started for this run. Where tests run in several processes, only the one that began them may."""
    for name, server in _servers.items():
        if name not in _stay:
            server.down()
    _found.clear()
