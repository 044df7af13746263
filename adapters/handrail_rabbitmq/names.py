"""The names of everything that handrail creates on a server, and the ways of delays through them. It does no I/O."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import msgspec

from handrail.message import DEFAULT_PRIORITY, HIGHEST, LOWEST

#: Milliseconds: the finest delay.
UNIT = 10
#: Powers of ten of milliseconds that have delay queues: from 10 ms to 90 days and beyond.
LEAST, MOST = 1, 10
#: Milliseconds: a longer delay goes through the delays more than once.
LONGEST = 10 ** (MOST + 1) - UNIT

#: A level is a priority other than the default, or the place where interrupted work returns to.
HEAD = "head"


def level_queue(queue: str, level: int | str) -> str:
    """The queue on the server that holds messages of *level* of *queue* (its name with the prefix)."""
    if level == DEFAULT_PRIORITY:
        return queue
    return f"{queue}.{HEAD}" if level == HEAD else f"{queue}.p{level}"


def levels() -> list[int | str]:
    """All levels beside the queue itself, best first."""
    return [HEAD, *(n for n in range(HIGHEST, LOWEST - 1, -1) if n != DEFAULT_PRIORITY)]


class Names(msgspec.Struct, frozen=True):
    """What belongs to one prefix."""

    prefix: str

    @property
    def delay(self) -> str:
        return f"{self.prefix}handrail.delay"

    @property
    def entry(self) -> str:
        return f"{self.delay}.in"

    @property
    def out(self) -> str:
        return f"{self.delay}.out"

    @property
    def lost(self) -> str:
        """Where delayed messages wait whose queue was deleted."""
        return f"{self.delay}.lost"

    def step(self, power: int) -> str:
        """The exchange to which the delay queues of 10^power milliseconds send on."""
        return f"{self.delay}.x{power}"

    def delay_queue(self, hop: Hop) -> str:
        return f"{self.delay}.{hop.digit}e{hop.power}"

    @property
    def registry(self) -> str:
        """The exchange whose bindings say what was created besides the queues: see ``registry``."""
        return f"{self.prefix}handrail.registry"


class Hop(msgspec.Struct, frozen=True, order=True):
    """One delay queue: digit · 10^power milliseconds."""

    digit: int
    power: int

    @property
    def milliseconds(self) -> int:
        return int(self.digit * 10**self.power)

    def __str__(self) -> str:
        return f"{self.digit}e{self.power}"


def hops() -> Iterator[Hop]:
    """All delay queues there can be."""
    for power in range(LEAST, MOST + 1):
        for digit in range(1, 10):
            yield Hop(digit, power)


def way(seconds: float) -> list[Hop]:
    """The delay queues that together delay by *seconds*, rounded up to the unit, the longest first."""
    milliseconds = min(math.ceil(seconds * 1000 / UNIT) * UNIT, LONGEST)
    return [
        Hop(int(digit), power)
        for power, digit in zip(range(MOST, 0, -1), f"{milliseconds // UNIT:0{MOST}d}", strict=True)
        if digit != "0"
    ]


def routes(way: list[Hop], queue: str) -> tuple[str, list[str]]:
    """Routing key for the entry and ``CC`` header that lead along *way* to *queue*."""
    cc = [f"{before.power}>{hop}" for before, hop in itertools.pairwise(way)]
    return f">{way[0]}", [*cc, f"{way[-1].power}>.", queue]
