"""What every test shares: marks, and an environment in which nobody's own settings leak into a test."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos: kills processes for many rounds; HANDRAIL_CHAOS_ROUNDS sets how many")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    for name in [name for name in os.environ if name.startswith("HANDRAIL_") and name != "HANDRAIL_CHAOS_ROUNDS"]:
        del os.environ[name]
