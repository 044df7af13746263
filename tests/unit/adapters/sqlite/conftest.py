"""Gives each test a folder with adapters on a real file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from sqlite_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def nobody() -> int:
    """The id of a user whom file permissions bind, for the superuser they do not."""
    return 65534 if os.geteuid() == 0 else os.geteuid()
