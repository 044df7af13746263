"""The brokers that the contract suite runs over. Adding an adapter to the suite is adding an entry here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path


class UnavailableError(Exception):
    """The server of this broker cannot be had on this machine; the text says why, and how to have it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Broker:
    """One adapter in one configuration."""

    name: str
    #: The URL to use for a project in this folder. Raises :class:`UnavailableError`: the test is skipped, and fails under CI
    #: if the server is one that `make test` brings up.
    url: Callable[[Path], str]
    #: Further keys of the broker's mapping in queues.yaml.
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    #: Whether `make test` has to have it. The others join in where their variable names a server.
    required: bool = True


#: Read when the module is loaded, for tests run without the environment's own settings.
RABBITMQ = os.environ.get("HANDRAIL_TEST_RABBITMQ", "")


def _rabbitmq(_root: Path) -> str:
    if not RABBITMQ:
        raise UnavailableError(
            "set HANDRAIL_TEST_RABBITMQ=amqp://…; python scripts/brokers/rabbitmq.py up brings one up"
        )
    return RABBITMQ


#: Set to anything: the suite runs over RabbitMQ once more, on classic queues.
RABBITMQ_CLASSIC = os.environ.get("HANDRAIL_TEST_RABBITMQ_CLASSIC", "")

KAFKA = os.environ.get("HANDRAIL_TEST_KAFKA", "")


def _kafka(_root: Path) -> str:
    if not KAFKA:
        raise UnavailableError("set HANDRAIL_TEST_KAFKA=host:port; python scripts/brokers/kafka.py up brings one up")
    return KAFKA if KAFKA.startswith("kafka:") else f"kafka://{KAFKA}"


BROKERS = [
    Broker("sqlite", lambda root: f"sqlite:{root}/.platform/queues.db"),
    Broker("sqlite-memory", lambda _root: "sqlite::memory:"),
    Broker("rabbitmq", _rabbitmq, required=False),
    *([Broker("rabbitmq-classic", _rabbitmq, {"queue_type": "classic"}, required=False)] if RABBITMQ_CLASSIC else []),
    # one partition keeps the order of all, several let workers share a queue
    Broker("kafka", _kafka, {"partitions": 1}, required=False),
    Broker("kafka-partitions", _kafka, {"partitions": 2}, required=False),
]
