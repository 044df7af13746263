"""A RabbitMQ of its own for tests that kill, freeze and starve it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench

from real_servers import RabbitMQ


@pytest.fixture
def server(own_rabbitmq: RabbitMQ) -> RabbitMQ:
    """A server that belongs to these tests, up."""
    own_rabbitmq.up()
    return own_rabbitmq


@pytest.fixture
def bench(server: RabbitMQ, tmp_path: Path) -> Bench:
    return Bench(server.url, tmp_path)
