"""Servers killed and frozen under load, workers frozen until their server gives them up, and workers that come and go.

The few rounds here keep every change honest; ``make chaos`` runs many. A failure names its seed.
"""

from __future__ import annotations

import random
import signal
import time

import pytest
from chaos import (
    CLASSIC,
    CONCURRENCY,
    KAFKA,
    RABBITMQ,
    SQLITE,
    WANTED,
    Broker,
    Incident,
    Load,
    Toll,
    freeze,
    judge,
    lay,
    many,
    rounds,
    tell,
    thaw,
    until_all_is_done,
)
from harness import Project, Running
from server import Server

from clusters import Cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180 + rounds(2) * 60)]

#: What two workers may have in hand: what they run, and about as much again that ended and waits for its acknowledgement, or was
#: fetched ahead and begun before they knew.
IN_HAND = 2 * 2 * CONCURRENCY
#: Seconds before a server's death within which what ended may run again: its acknowledgement was on the way, or not written down,
#: by a server that may have stood still before.
UNHEARD = 6.0
#: Seconds that make a server or a worker pass for dead, by the settings of the brokers in ``chaos``. RabbitMQ itself gives up
#: who is silent after twice the heartbeat.
TOO_LONG = 13.0


def lay_slow(project: Project, load: Load) -> None:
    """Handlers that take their time, and what one worker is up to: no backlog grows from round to round."""
    lay(project, "load.slow")
    load.pace = 0.006


def what_it_cost(
    project: Project, load: Load, workers: list[Running], incidents: list[Incident], what: str
) -> list[Toll]:
    """Stop the load, wait until all is handled, stop the workers: what each of *incidents* made run again."""
    until_all_is_done(project, load.stop())
    assert [worker.stop() for worker in workers] == [0] * len(workers)
    tolls = judge(project, load, incidents)
    tell(what, load, tolls, project.overlaps())
    return tolls


SERVERS = [one.own() for one in (RABBITMQ, KAFKA, *many(CLASSIC))]


@pytest.mark.parametrize("broker", SERVERS, ids=str)
def test_killing_the_server_at_random_moments_loses_nothing(
    project: Project, load: Load, broker: Broker, server: Server
) -> None:
    """Every confirmed message is handled, by the workers that lived through it: they are subscribed again by themselves."""
    lay_slow(project, load)
    chance = load.chance
    kills: list[Incident] = []
    workers = [project.worker("work"), project.worker("work")]
    for _ in range(rounds(1, 0.1 if broker.name == "kafka" else 0.2)):
        load.go_on()
        project.until_more("end", 50, timeout=60)
        # the moment is the point: this waits for nothing
        time.sleep(chance.random() * 0.5)
        at = time.monotonic()
        server.send(signal.SIGKILL)
        server.up()
        kills.append(Incident(at, over=time.monotonic(), server=True))
        project.until_more("end", 50, timeout=60)

    tolls = what_it_cost(project, load, workers, kills, f"killing the server on {broker}")
    # on classic queues the server takes acknowledgements that it writes down later, and tells nobody when
    unwritten = broker.options.get("queue_type") == "classic"
    assert max(toll.again - unwritten * toll.ended for toll in tolls) <= IN_HAND
    assert max(toll.age for toll in tolls) <= UNHEARD


@pytest.mark.parametrize("broker", [one.cluster() for one in (RABBITMQ, *many(KAFKA))], ids=str)
def test_killing_a_node_of_a_cluster_loses_nothing(
    project: Project, load: Load, broker: Broker, cluster: Cluster
) -> None:
    """With one node of three away the others take and give; what that costs is no more than a server's own death."""
    lay_slow(project, load)
    chance = load.chance
    kills: list[Incident] = []
    workers = [project.worker("work"), project.worker("work")]
    for _ in range(rounds(1, 0.2)):
        load.go_on()
        project.until_more("end", 50, timeout=60)
        # the moment is the point: this waits for nothing
        time.sleep(chance.random() * 0.5)
        node = chance.choice(cluster.nodes)
        at = time.monotonic()
        node.send(signal.SIGKILL)
        project.until_more("end", 50, timeout=60)
        node.up()
        kills.append(Incident(at, over=time.monotonic(), server=True))

    tolls = what_it_cost(project, load, workers, kills, f"killing a node on {broker}")
    assert max(toll.again for toll in tolls) <= IN_HAND
    assert max(toll.age for toll in tolls) <= UNHEARD


@pytest.mark.parametrize("broker", [one.impatient() for one in SERVERS], ids=str)
def test_freezing_the_server_loses_nothing(project: Project, load: Load, broker: Broker, server: Server) -> None:
    """A server that stands still, shorter and longer than it is believed to live, is taken up again where it was left."""
    lay_slow(project, load)
    chance = load.chance
    incidents: list[Incident] = []
    workers = [project.worker("work"), project.worker("work")]
    for number in range(rounds(1, 0.2)):
        load.go_on()
        project.until_more("end", 50, timeout=60)
        at = time.monotonic()
        server.send(signal.SIGSTOP)
        time.sleep(chance.random() * 4 if number % 2 else TOO_LONG / 2 + chance.random() * 2)
        server.send(signal.SIGCONT)
        incidents.append(Incident(at, over=time.monotonic(), server=True))
        project.until_more("end", 50, timeout=60)

    tolls = what_it_cost(project, load, workers, incidents, f"freezing the server on {broker}")
    assert max(toll.again for toll in tolls) <= IN_HAND


@pytest.mark.parametrize("broker", [one.impatient() for one in (RABBITMQ, KAFKA, *many(SQLITE, CLASSIC))], ids=str)
def test_a_worker_frozen_for_too_long_loses_nothing(project: Project, load: Load, broker: Broker) -> None:
    """While it stands still its messages go to another; waking, it begins nothing of what it had only fetched."""
    lay_slow(project, load)
    chance = load.chance
    incidents: list[Incident] = []
    workers = [project.worker("work"), project.worker("work")]
    for _ in range(rounds(1, 0.2)):
        load.go_on()
        project.until_more("end", 50, timeout=60)
        frozen = chance.choice(workers).tree()
        freeze(frozen)
        at = time.monotonic()  # what it began on the way there may run again, too
        time.sleep(TOO_LONG - chance.random() * 2)
        over = time.monotonic()  # the first that wakes may begin something before the last does
        thaw(frozen)
        incidents.append(Incident(at, frozenset(frozen), over=over))
        project.until_more("end", 50, timeout=60)

    tolls = what_it_cost(project, load, workers, incidents, f"freezing a worker for long on {broker}")
    # what its hosts had been given when it was frozen; and what had ended, of which its server had not heard
    assert max(toll.again - toll.ended for toll in tolls) <= CONCURRENCY
    assert max(toll.again for toll in tolls) <= IN_HAND / 2


def leave(project: Project, chance: random.Random) -> Incident:
    """A worker joins and leaves, mostly in order, now and then by a kill, or after it has stood still for good."""
    joins = project.worker("work")
    time.sleep(1 + chance.random() * 3)
    how = chance.choice(["order", "order", "kill", "stall"]) if WANTED is not None else "order"
    pids = joins.tree()
    at = time.monotonic()
    if how == "order":
        assert joins.stop() == 0
        return Incident(at, frozenset())
    if how == "stall":
        freeze(pids)
        time.sleep(chance.random() * TOO_LONG)
    joins.kill_all()
    return Incident(at, frozenset(pids), over=time.monotonic())


#: Some of those that come stand still for good in the many rounds, and are given up.
COMING = [KAFKA] if WANTED is None else [one.impatient() for one in (KAFKA, SQLITE, RABBITMQ)]


@pytest.mark.parametrize("broker", COMING, ids=str)
def test_workers_that_come_and_go_under_load_lose_nothing(project: Project, load: Load, broker: Broker) -> None:
    """Scaling out and in beside a worker that stays: in order nothing runs twice, by a kill only what the lost one ran."""
    lay_slow(project, load)
    incidents: list[Incident] = []
    stays = project.worker("work")
    for _ in range(rounds(2)):
        load.go_on()
        incidents.append(leave(project, load.chance))
        project.until_more("end", 20, timeout=60)

    tolls = what_it_cost(project, load, [stays], incidents, f"coming and going on {broker}")
    assert max(toll.again for toll in tolls) <= CONCURRENCY
