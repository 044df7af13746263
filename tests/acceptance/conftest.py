"""Gives each acceptance test a project of its own, and ends whatever the test left running."""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# the harness is a module of these tests alone, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from chaos import SEED, SQLITE, Broker, Load, say
from harness import Project
from server import Server

from clusters import Cluster


@pytest.fixture
def broker() -> Broker:
    """Where the messages of a test lie; tests that run on several brokers are parametrised by it."""
    return SQLITE


@pytest.fixture
def url(broker: Broker, request: pytest.FixtureRequest) -> str:
    """The URL of the server that tests share, or of the one that this test may kill; nothing for the embedded SQLite."""
    if not broker.fixture:
        return ""
    found = request.getfixturevalue(broker.fixture)
    return found if isinstance(found, str) else str(found.url)


@pytest.fixture
def server(broker: Broker, request: pytest.FixtureRequest) -> Server:
    """The server of *broker* itself, for tests that may kill it."""
    found: Server = request.getfixturevalue(broker.fixture)
    return found


@pytest.fixture
def cluster(broker: Broker, request: pytest.FixtureRequest) -> Cluster:
    """The nodes of *broker*, for tests that may kill one."""
    found: Cluster = request.getfixturevalue(broker.fixture)
    return found


@pytest.fixture
def project(broker: Broker, url: str, tmp_path: Path) -> Iterator[Project]:
    """An empty project whose handlers can keep a journal."""
    settings: dict[str, Any] = {}
    if url:
        # names of its own on a shared server, so that tests disturb neither one another nor anybody's data
        settings = {
            "brokers": {"default": {"url": url, **broker.options}},
            "prefix": f"a{uuid.uuid4().hex[:8]}-",
        }
    made = Project(tmp_path / "project", settings)
    yield made
    made.end_all()


@pytest.fixture
def load(project: Project) -> Iterator[Load]:
    """Senders for the queue ``load``, and the chance by which a test chooses moments and victims."""
    seed = int(SEED or random.randrange(10**6))
    say(f"HANDRAIL_CHAOS_SEED={seed}")
    made = Load(project, random.Random(seed))
    yield made
    made.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # a failure in another process explains itself in that process's output
    report = yield
    made = getattr(item, "funcargs", {}).get("project")
    if report.failed and isinstance(made, Project):
        report.sections.append(("what the workers said", made.transcript()))
    return report
