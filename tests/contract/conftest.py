"""Gives each contract test a project, or an open port, on every installed adapter that can do what the test needs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# what these tests share are modules of their own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from contract_brokers import BROKERS, Broker
from contract_harness import Port, Project

from handrail.adapter import BrokerSettings, load


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): skipped for adapters that declare one of them False")


@pytest.fixture(params=BROKERS, ids=lambda broker: broker.name)
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BrokerSettings:
    """Where this test's broker is, once it is known that the adapter can do what the test needs."""
    broker: Broker = request.param
    root = tmp_path / "project"
    root.mkdir()
    url = broker.url(root)
    for name, seconds in broker.patience.items():
        monkeypatch.setattr(name, seconds)
    # names of its own on a shared server, so that tests disturb neither one another nor anybody's data
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    found = BrokerSettings(name="default", url=url, root=str(root), prefix=prefix, options=dict(broker.options))
    capabilities = load(found).capabilities
    for mark in request.node.iter_markers("needs"):
        for capability in mark.args:
            if capabilities[capability] is False:
                pytest.skip(f"{broker.name} does not have: {capability.value}")
    return found


@pytest.fixture
def project(settings: BrokerSettings) -> Iterator[Project]:
    """An empty project; the test writes its handlers and queues, starts workers, sends, and waits for outcomes."""
    made = Project(settings)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def port(settings: BrokerSettings) -> Port:
    """The adapter itself, for what only the port can show."""
    return Port(settings)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    # what went wrong in a worker's thread or in a host is not in the test's own traceback
    report = yield
    made = getattr(item, "funcargs", {}).get("project")
    if report.failed and isinstance(made, Project):
        report.sections.append(("what the project saw", made.story()))
    return report
