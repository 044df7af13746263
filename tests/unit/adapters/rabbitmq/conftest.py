"""A RabbitMQ of its own for tests that kill, freeze and starve it."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Project
from server import install

from handrail.adapter import BrokerSettings
from real_servers import RabbitMQ, UnavailableError


@pytest.fixture
def server(own_rabbitmq: RabbitMQ) -> RabbitMQ:
    """A server that belongs to these tests, up."""
    own_rabbitmq.up()
    return own_rabbitmq


@pytest.fixture(scope="session")
def iptables() -> str:
    """The program that makes packets vanish, installed where that may be done; for root alone."""
    if os.geteuid() != 0:
        pytest.skip("only root can make packets vanish")
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    try:
        install("iptables", lambda: shutil.which("iptables", path=path))
    except UnavailableError as reason:
        pytest.skip(str(reason))
    found = shutil.which("iptables", path=path)
    assert found is not None
    return found


@pytest.fixture
def bench(server: RabbitMQ, tmp_path: Path) -> Bench:
    return Bench(server.url, tmp_path)


@pytest.fixture
def project(server: RabbitMQ, tmp_path: Path) -> Iterator[Project]:
    """An empty project on the server of these tests; see the contract suite's own."""
    root = tmp_path / "project"
    root.mkdir()
    made = Project(
        BrokerSettings(name="default", url=server.url, root=str(root), prefix=f"t{uuid.uuid4().hex[:8]}-", options={})
    )
    try:
        yield made
    finally:
        made.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    # what went wrong in a worker's thread or in a host is not in the test's own traceback
    report = yield
    made = getattr(item, "funcargs", {}).get("project")
    if report.failed and isinstance(made, Project):
        report.sections.append(("what the project saw", made.story()))
    return report
