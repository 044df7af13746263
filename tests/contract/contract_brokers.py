"""The brokers that the contract suite runs over. Adding an adapter to the suite is adding an entry here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path


class UnavailableError(Exception):
    """The server of this broker cannot be had on this machine; the text says why, and how to have it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Broker:
    """One adapter in one configuration."""

    name: str
    #: The URL to use for a project in this folder. Raises :class:`UnavailableError`: the test is skipped, and fails under CI.
    url: Callable[[Path], str]
    #: Further keys of the broker's mapping in queues.yaml.
    options: dict[str, object] = dataclasses.field(default_factory=dict)


BROKERS = [
    Broker("sqlite", lambda root: f"sqlite:{root}/.platform/queues.db"),
    Broker("sqlite-memory", lambda _root: "sqlite::memory:"),
]
