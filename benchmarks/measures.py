"""What is measured, in which order and unit it is shown, and how large the runs are. It measures nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

#: Name of a measure → its value. A column that has no such measure leaves it out.
Values: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table."""

    name: str
    unit: str
    #: What it says, for people.
    meaning: str
    #: Whether more is better; None when a ratio of it says nothing.
    more_is_better: bool | None = True
    digits: int = 0


MEASURES = (
    Measure("publish bulk", "/s", "sent in bulks, until the broker has them safely"),
    Measure("publish single", "/s", "sent one by one, none waited for"),
    Measure("handle", "/s", "handled and acknowledged, all waiting at the start"),
    Measure("handle, a task each", "/s", "the same; raw: each decoded, and a handler called in a task of its own"),
    Measure("send and handle", "/s", "handled while they are being sent"),
    Measure("latency p50", "ms", "from the send to the handler, at 500/s", None, 2),
    Measure("latency p99", "ms", "from the send to the handler, at 500/s", None, 2),
    Measure("idle CPU", "% of a core", "a worker with nothing to do", None, 2),
    Measure("idle memory", "MB", "its processes together, what they share counted in each", None, 0),
    Measure("handle, few waiting", "/s", "with a thousand waiting"),
    Measure("handle, many waiting", "/s", "the first tenth of a large backlog"),
    Measure("handle all of many", "/s", "a large backlog down to nothing"),
    Measure("cost, few waiting", "µs CPU", "of the worker's processes a message, a thousand waiting", None, 1),
    Measure(
        "cost, many waiting",
        "µs CPU",
        "of the worker's processes a message, the first tenth of a large backlog",
        None,
        1,
    ),
    Measure("memory growth", "MB", "of the worker's processes over the last nine tenths of a large backlog", None, 1),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the runs are."""

    messages: int = 50_000
    #: Bytes of JSON in each.
    size: int = 200
    #: Times that each rate is measured; the median is shown.
    rounds: int = 5
    #: Messages of the latency run, at 500/s.
    paced: int = 5_000
    #: Seconds of the idle run.
    idle: float = 10.0
    #: Batches of a thousand in the small backlog.
    batches: int = 50
    #: Messages of the large backlog; 0 leaves it out.
    backlog: int = 1_000_000


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which *share* of the *ordered* values lie."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
