"""The pytest plugin for projects that use handrail. It holds fixtures only, and imports handrail when one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from handrail.testing import Project

_KEY: pytest.StashKey[Project] = pytest.StashKey()


@pytest.fixture
def handrail_project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """The project of the nearest queues.yaml above the test's file, running in this process on queues in memory."""
    from handrail import testing  # noqa: PLC0415 - this plugin is loaded by every pytest of the environment

    with testing.project(request.path.parent) as project:
        request.node.stash[_KEY] = project
        yield project


@pytest.fixture
def project(handrail_project: Project) -> Project:
    """Short for ``handrail_project``; a fixture of that name of your own takes its place."""
    return handrail_project


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show with a failed test what its handlers did, tracebacks included."""
    report = yield
    if report.when == "call" and report.failed and _KEY in item.stash and (story := item.stash[_KEY].story()):
        report.sections.append(("handrail: what became of the messages", story))
    return report
