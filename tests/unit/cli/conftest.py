"""Gives each test of the command a project of its own, and ends whatever the test left running."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# a module of these tests alone, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from cli_support import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    made.end()
