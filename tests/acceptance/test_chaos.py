"""Processes killed and frozen at random moments under load: nothing confirmed is lost, and only what ran may run again.

The few rounds here keep every change honest; ``make chaos`` runs many. A failure names its seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from chaos import (
    CLASSIC,
    CONCURRENCY,
    KAFKA,
    RABBITMQ,
    SQLITE,
    Broker,
    Incident,
    Load,
    freeze,
    judge,
    lay,
    many,
    rounds,
    say,
    tell,
    thaw,
    until_all_is_done,
)
from harness import Project, Running

pytestmark = [
    pytest.mark.chaos,
    # most of a round is starting a worker anew, on Kafka waiting until the dead one is given up
    pytest.mark.timeout(90 + rounds(2) * 40),
    pytest.mark.parametrize("broker", [SQLITE, RABBITMQ, KAFKA, *many(CLASSIC)], ids=str),
]


def kill_the_worker(worker: Running, _chance: random.Random) -> Incident:
    """SIGKILL for the dispatcher alone: the hosts must notice."""
    pids = frozenset(worker.tree())
    at = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    return Incident(at, pids)


def kill_everything(worker: Running, _chance: random.Random) -> Incident:
    """SIGKILL for all at once, as when a machine or a container goes away."""
    pids = frozenset(worker.tree())
    worker.kill_all()
    return Incident(time.monotonic(), pids)


def kill_one(worker: Running, chance: random.Random) -> Incident:
    """SIGKILL for any one process of the tree."""
    pids = worker.tree()
    victim = chance.choice(pids)
    at = time.monotonic()
    # who watched over a process that the last round killed may end by itself in this moment
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    return Incident(at, frozenset(pids if victim == worker.pid else [victim]))


@pytest.mark.parametrize("kill", [kill_the_worker, kill_everything, kill_one])
def test_killing_at_random_moments_loses_nothing(
    project: Project, load: Load, broker: Broker, kill: Callable[[Running, random.Random], Incident]
) -> None:
    """Every confirmed message is handled; what runs again was running when its process was killed; nothing runs twice at once."""
    lay(project)
    chance = load.chance
    kills: list[Incident] = []
    worker = project.worker("work", "--processes", "2")
    for number in range(rounds(2)):
        load.go_on()
        project.until_more("end", 20)
        # the moment is the point: this waits for nothing
        time.sleep(chance.random() * 0.5)
        kills.append(kill(worker, chance))
        if number % 5 == 4:
            load.kill()
        if worker.pid in (kills[-1].pids or ()):
            worker.process.wait(30)
            worker = project.worker("work", "--processes", "2")

    until_all_is_done(project, load.stop())
    assert worker.stop() == 0

    tolls = judge(project, load, kills)
    tell(f"{kill.__name__} on {broker}", load, tolls, project.overlaps())
    assert project.overlaps() == []
    # what had completed is never repeated, even where the broker had not heard of it yet: the board knew
    assert max(toll.again for toll in tolls) <= CONCURRENCY


def test_freezing_and_waking_loses_and_repeats_nothing(project: Project, load: Load, broker: Broker) -> None:
    """A worker stopped and continued at random moments, beside another: every message is handled exactly once."""
    lay(project)
    chance = load.chance
    workers = [project.worker("work"), project.worker("work")]
    for _ in range(rounds(2)):
        load.go_on()
        project.until_more("end", 20)
        frozen = chance.choice(workers).tree()
        freeze(frozen)
        time.sleep(chance.random())
        thaw(frozen)

    confirmed = load.stop()
    until_all_is_done(project, confirmed)
    assert [worker.stop() for worker in workers] == [0, 0]
    say(f"freezing on {broker}: {rounds(2)} rounds, {len(confirmed)} confirmed")
    assert [n for n, count in project.counts("start").items() if count > 1] == []


def test_draining_at_random_moments_repeats_nothing(project: Project, load: Load, broker: Broker) -> None:
    """Deploys under load: workers that drain and are followed by others handle every message exactly once."""
    lay(project)
    chance = load.chance
    for _ in range(rounds(2)):
        worker = project.worker("work")
        load.go_on()
        project.until_more("end", 20)
        time.sleep(chance.random() * 0.3)
        assert worker.stop() == 0

    confirmed = load.stop()
    worker = project.worker("work")
    until_all_is_done(project, confirmed)
    assert worker.stop() == 0
    say(f"draining on {broker}: {rounds(2)} rounds, {len(confirmed)} confirmed")
    assert [n for n, count in project.counts("start").items() if count > 1] == []
