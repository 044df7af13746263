"""What every test shares: marks, real servers, and an environment in which nobody's own settings leak into a test."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

# what tests share are modules of their own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

import real_servers
from certificates import TLSRabbitMQ
from clusters import Cluster, KafkaCluster, RabbitMQCluster
from real_servers import Kafka, RabbitMQ, Server, UnavailableError


def pytest_configure(config: pytest.Config) -> None:
    if not os.environ.get("CI"):  # where that is set, Hypothesis has a profile of its own that has no deadlines either
        hypothesis.settings.register_profile("patient", deadline=None)
        hypothesis.settings.load_profile("patient")
    config.addinivalue_line("markers", "chaos: kills processes for many rounds; HANDRAIL_CHAOS_ROUNDS sets how many")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that the chosen tests need: those with a fixture, or a parameter's ``server``, of that name."""
    if session.config.option.collectonly:
        return
    needed: set[str] = set()
    for item in session.items:
        needed |= {"rabbitmq", "kafka"} & set(getattr(item, "fixturenames", ()))
        needed |= {server for value in _parameters(item) if (server := getattr(value, "server", None))}
    if needed and (terminal := session.config.pluginmanager.get_plugin("terminalreporter")) is not None:
        terminal.write_line(f"real servers: {', '.join(sorted(needed))}")
    real_servers.bring_up(needed)


def _parameters(item: pytest.Item) -> list[Any]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server of their own run in one process, where several share the work."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        names |= {fixture for value in _parameters(item) if (fixture := getattr(value, "fixture", ""))}
        if item.get_closest_marker("timeout") is None:
            if names & {"kcat", "iptables", "amqplib"}:
                # the first of them installs it, and others wait for that
                item.add_marker(pytest.mark.timeout(600))
            elif any(name.startswith(("own_", "tls_")) for name in names):
                # the first of them waits for its server's start, and the last for its end
                item.add_marker(pytest.mark.timeout(300))
        for name in ("own_rabbitmq", "tls_rabbitmq", "own_kafka", "own_rabbitmq_cluster", "own_kafka_cluster"):
            if name in names:
                item.add_marker(pytest.mark.xdist_group(name))


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        real_servers.bring_down()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Each coroutine test runs on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    for name in [name for name in os.environ if name.startswith("HANDRAIL_") and name != "HANDRAIL_CHAOS_ROUNDS"]:
        del os.environ[name]


@pytest.fixture(scope="session")
def rabbitmq() -> str:
    """The URL of a RabbitMQ that tests share: names of their own keep them apart, and none stops or configures it."""
    return real_servers.need("rabbitmq")


@pytest.fixture(scope="session")
def kafka() -> str:
    """The URL of a Kafka that tests share: names of their own keep them apart, and none stops or configures it."""
    return real_servers.need("kafka")


S = TypeVar("S", bound=Server | Cluster)


def _lent(server: S) -> Iterator[S]:
    try:
        server.up()
    except UnavailableError as reason:
        real_servers.unavailable(server.name, reason)
    try:
        yield server
    finally:
        # its data goes with it; in order it would take the time of whatever test is this process's last
        if isinstance(server, Server):
            server.send(signal.SIGKILL)
        server.down()


@pytest.fixture(scope="session")
def own_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ for tests that kill, freeze or configure it; each leaves it running and as it was."""
    yield from _lent(RabbitMQ(tmp_path_factory.mktemp("rabbitmq")))


@pytest.fixture(scope="session")
def tls_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSRabbitMQ]:
    """A RabbitMQ that also listens for TLS, with certificates of its own; see ``certificates``."""
    yield from _lent(TLSRabbitMQ(tmp_path_factory.mktemp("rabbitmq-tls")))


@pytest.fixture(scope="session")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A Kafka for tests that kill, freeze or configure it; each leaves it running and as it was."""
    yield from _lent(Kafka(tmp_path_factory.mktemp("kafka")))


@pytest.fixture(scope="session")
def own_rabbitmq_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQCluster]:
    """Three nodes of RabbitMQ for tests that kill one; each leaves all of them running."""
    yield from _lent(RabbitMQCluster(tmp_path_factory.mktemp("rabbitmq-cluster")))


@pytest.fixture(scope="session")
def own_kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three nodes of Kafka for tests that kill one; each leaves all of them running."""
    yield from _lent(KafkaCluster(tmp_path_factory.mktemp("kafka-cluster")))
