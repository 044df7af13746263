"""Gives each acceptance test a project of its own, and ends whatever the test left running."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# the harness is a module of these tests alone, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from harness import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """An empty project whose handlers can keep a journal."""
    made = Project(tmp_path / "project")
    yield made
    made.end_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # a failure in another process explains itself in that process's output
    report = yield
    made = getattr(item, "funcargs", {}).get("project")
    if report.failed and isinstance(made, Project):
        report.sections.append(("what the workers said", made.transcript()))
    return report
