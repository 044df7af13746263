"""Processes killed at random moments under load: nothing confirmed is lost, and only what ran may run again.

The few rounds here keep every change honest; ``make chaos`` runs many. A failure names its seed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from harness import Entry, Project, Running, Sender, alive, wait_for

ROUNDS = int(os.environ.get("HANDRAIL_CHAOS_ROUNDS", "6"))
#: What a test may take: most of a round is starting a worker anew.
LIMIT = 60 + ROUNDS * 20
CONCURRENCY = 20


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


pytestmark = [pytest.mark.chaos, pytest.mark.timeout(LIMIT)]


@pytest.fixture
def seed() -> int:
    """What chance begins with; repeating it repeats the choices, though not the moments."""
    chosen = int(os.environ.get("HANDRAIL_CHAOS_SEED") or random.randrange(10**6))
    say(f"HANDRAIL_CHAOS_SEED={chosen}")
    return chosen


@dataclass
class Load:
    """App code that sends without pause, through as many processes as it takes, and what the broker confirmed to it."""

    project: Project
    queue: str
    chance: random.Random
    confirmed: set[int] = field(default_factory=set)
    sent: int = 0
    _sender: Sender | None = None

    def go_on(self) -> None:
        """See to it that somebody sends; one that was killed keeps what it had confirmed."""
        if self._sender is not None and self._sender.process.poll() is None:
            return
        self._collect()
        numbers = range(self.sent, self.sent + 100_000)
        self.sent = numbers.stop
        self._sender = self.project.sender(self.queue, numbers, pace=0.003)

    def kill(self) -> None:
        assert self._sender is not None
        self._sender.kill()
        self._collect()

    def _collect(self) -> None:
        if self._sender is not None:
            self.confirmed |= self._sender.confirmed()

    def stop(self) -> set[int]:
        """Stop sending; everything that was confirmed."""
        self.kill()
        return self.confirmed


@pytest.fixture
def load(project: Project, seed: int) -> Iterator[Load]:
    # a message that runs in several kills must not be dead-lettered for it: each of them was innocent
    settings = {"handler": "load", "concurrency": CONCURRENCY, "max_crashes": 1000}
    project.lay({"load": settings, "threads": {**settings, "handler": "load.threaded"}})
    project.write(
        "handlers/load.py",
        "import asyncio, random, time\nfrom journal import note\n\n"
        "async def handler(message, callback):\n"
        "    note('start', message['n'])\n"
        "    for _ in range(random.randrange(4)):\n"
        "        await asyncio.sleep(0.005)\n"
        "        note('beat', message['n'])\n"
        "    note('end', message['n'])\n"
        "    callback()\n\n"
        "def threaded(message, callback):\n"
        "    note('start', message['n'])\n"
        "    time.sleep(random.random() * 0.02)\n"
        "    note('end', message['n'])\n"
        "    callback()\n",
    )
    made = Load(project, "load", random.Random(seed))
    yield made
    if made._sender is not None:
        made._sender.kill()


@dataclass(frozen=True)
class Kill:
    """One round's kill: when, and whom."""

    at: float
    pids: frozenset[int]


def kill_the_worker(worker: Running, _chance: random.Random) -> Kill:
    """SIGKILL for the dispatcher alone: the hosts must notice."""
    pids = frozenset(worker.tree())
    at = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    return Kill(at, pids)


def kill_everything(worker: Running, _chance: random.Random) -> Kill:
    """SIGKILL for all at once, as when a machine or a container goes away."""
    pids = frozenset(worker.tree())
    at = time.monotonic()
    worker.kill_all()
    return Kill(at, pids)


def kill_one(worker: Running, chance: random.Random) -> Kill:
    """SIGKILL for any one process of the tree."""
    pids = worker.tree()
    victim = chance.choice(pids)
    at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    return Kill(at, frozenset(pids if victim == worker.pid else [victim]))


@pytest.mark.parametrize("kill", [kill_the_worker, kill_everything, kill_one])
def test_killing_at_random_moments_loses_nothing(
    project: Project, load: Load, kill: Callable[[Running, random.Random], Kill]
) -> None:
    """Every confirmed message is handled; what runs again was running when its process was killed; nothing runs twice at once."""
    chance = load.chance
    kills: list[Kill] = []
    worker = project.worker("work", "--processes", "2")
    for number in range(ROUNDS):
        load.go_on()
        project.until_more("end", 20)
        # the moment is the point: this waits for nothing
        time.sleep(chance.random() * 0.5)
        kills.append(kill(worker, chance))
        if number % 5 == 4:
            load.kill()
        if worker.pid in kills[-1].pids:
            worker.process.wait(30)
            worker = project.worker("work", "--processes", "2")

    confirmed = load.stop()
    project.until("end", *confirmed, timeout=60)
    wait_for(
        lambda: project.depths("load") == {"ready": 0, "delayed": 0, "active": 0, "dead": 0},
        "nothing is left over",
        timeout=60,
    )
    assert worker.stop() == 0

    assert project.overlaps() == []
    again = _judge(project.entries(), kills)
    say(f"{ROUNDS} kills, {len(confirmed)} confirmed; ran again: {sum(again)}, at most {max(again)} for one kill")
    # what had completed is never repeated, even where the broker had not heard of it yet: the board knew
    assert max(again) <= CONCURRENCY


def _judge(entries: list[Entry], kills: list[Kill]) -> list[int]:
    """For each kill how many ran again because of it; fails for a run that no kill explains."""
    runs: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.event == "start":
            runs.setdefault(entry.n, []).append(entry)
    again: Counter[int] = Counter()
    for n, starts in runs.items():
        for earlier, later in itertools.pairwise(starts):
            guilty = [
                index
                for index, kill in enumerate(kills)
                # started before the kill, or by a host that had not noticed yet that its dispatcher was gone
                if earlier.pid in kill.pids and earlier.at <= kill.at + 5 and later.at > kill.at
            ]
            assert guilty, f"message {n} ran again at {later.at:.3f} after {earlier.at:.3f}, and no kill explains it"
            again[guilty[0]] += 1
    return [again[index] for index in range(len(kills))]


def test_freezing_and_waking_loses_and_repeats_nothing(project: Project, load: Load) -> None:
    """A worker stopped and continued at random moments, beside another: every message is handled exactly once."""
    chance = load.chance
    workers = [project.worker("work"), project.worker("work")]
    for _ in range(ROUNDS):
        load.go_on()
        project.until_more("end", 20)
        frozen = chance.choice(workers).tree()
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.random())
        for pid in frozen:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)

    confirmed = load.stop()
    project.until("end", *confirmed, timeout=60)
    assert [worker.stop() for worker in workers] == [0, 0]
    assert set(project.counts("start").values()) == {1}


def test_draining_at_random_moments_repeats_nothing(project: Project, load: Load) -> None:
    """Deploys under load: workers that drain and are followed by others handle every message exactly once."""
    chance = load.chance
    for _ in range(ROUNDS):
        worker = project.worker("work")
        load.go_on()
        project.until_more("end", 20)
        time.sleep(chance.random() * 0.3)
        assert worker.stop() == 0

    confirmed = load.stop()
    worker = project.worker("work")
    project.until("end", *confirmed, timeout=60)
    assert worker.stop() == 0
    assert set(project.counts("start").values()) == {1}
