"""The brokers that the contract suite runs over. Adding an adapter to the suite is adding an entry here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import real_servers


@dataclasses.dataclass(frozen=True, slots=True)
class Broker:
    """One adapter in one configuration."""

    name: str
    #: The URL for a project in the folder ``{root}``; empty for a broker on a server.
    place: str = ""
    #: The real server that it needs, one of those in ``real_servers``.
    server: str = ""
    #: Further keys of the broker's mapping in queues.yaml.
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    #: How long the adapter shall wait for what a server does at once unless its machine stands still: name → seconds.
    patience: dict[str, float] = dataclasses.field(default_factory=dict)

    def url(self, root: Path) -> str:
        """The URL for a project in that folder; the test is skipped, or fails under CI, where the server cannot be had."""
        return real_servers.need(self.server) if self.server else self.place.format(root=root)


_KAFKA = {
    "handrail_kafka.adapter.OPEN_PATIENCE": 30.0,
    "handrail_kafka.intake.JOINED": 30.0,
    "handrail_kafka.control.PATIENCE": 25.0,
}

_RABBITMQ = {
    "handrail_rabbitmq.adapter.TELL": 10.0,
    "handrail_rabbitmq.looking.MOVED": 20.0,
}

BROKERS = [
    Broker("sqlite", "sqlite:{root}/.platform/queues.db"),
    Broker("sqlite-memory", "sqlite::memory:"),
    Broker("rabbitmq", server="rabbitmq", patience=_RABBITMQ),
    Broker("rabbitmq-classic", server="rabbitmq", options={"queue_type": "classic"}, patience=_RABBITMQ),
    # one partition keeps the order of all, several let workers share a queue
    Broker("kafka", server="kafka", options={"partitions": 1}, patience=_KAFKA),
    Broker("kafka-partitions", server="kafka", options={"partitions": 2}, patience=_KAFKA),
]
