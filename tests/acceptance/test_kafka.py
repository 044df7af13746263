"""Kafka as users meet it: the command, a real server, and kill -9."""

from __future__ import annotations

import json
import uuid

import pytest
from harness import Project, wait_for

WORK = """
import asyncio, os, signal
from handrail import context
from journal import await_at, note


async def held_first(message, callback):
    note("start", message["n"])
    if message["n"] == 0:
        await await_at("hour", 0)
    note("end", message["n"])
    callback()


async def in_order(message):
    note("start", message["n"])
    if message["n"] % 7 == 0 and context.job.attempt == 1:
        raise ValueError
    await asyncio.sleep(0.001)
    note("end", message["n"])


async def in_order_slowly(message):
    await asyncio.sleep(0.05)
    await in_order(message)


async def deadly(message):
    note("start", message["n"])
    if message["n"] == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        await await_at("never", 0)
    note("end", message["n"])
"""


@pytest.fixture
def site(project: Project) -> Project:
    """A project with the handlers of these tests."""
    project.lay()
    project.write("handlers/on_kafka.py", WORK)
    return project


def configure(site: Project, kafka: str, handler: str, *, partitions: int = 1, **queue: object) -> None:
    site.configure(
        {"work": {"handler": handler, **queue}},
        brokers={"default": {"url": kafka, "partitions": partitions}},
        prefix=f"a{uuid.uuid4().hex[:8]}-",
    )


def ends(project: Project) -> int:
    """How many runs have ended; cheap enough to be asked while they do."""
    return project.journal.read_bytes().count(b"end ")


def running(project: Project) -> set[int]:
    """What was running when the last worker was killed. The last that ended may not have called back yet."""
    starts, over = project.counts("start"), project.counts("end")
    return {n for n, count in starts.items() if count > over[n]} | {project.entries("end")[-1].n}


@pytest.mark.timeout(300)
def test_a_kill_repeats_only_what_ran_though_the_oldest_runs_on_for_an_hour(site: Project, kafka: str) -> None:
    """While one handler holds the first offset, 10,000 later messages are handled; after kill -9 none of them runs again."""
    configure(site, kafka, "on_kafka.held_first", concurrency=50)
    site.send_lines("work", ({"n": n} for n in range(10_001)))
    first = site.worker("work")
    site.until("start", 0)
    # once at full speed, with many in flight …
    wait_for(lambda: ends(site) > 3000, "thousands handled", 90)
    first.kill_all()
    in_flight = running(site)
    assert len(in_flight) <= 51

    # … and once with all done but those that ran then: they are suspects, and wait while the first of them runs
    second = site.worker("work")
    wait_for(lambda: ends(site) >= 10_001 - len(in_flight), "all later ones handled", 90)
    wait_for(lambda: site.depths("work")["ready"] == 0, "all later ones to be acknowledged")
    second.kill_all()
    in_flight |= running(site)

    site.worker("work")
    site.open_gate("hour")
    site.until("end", 0)
    wait_for(lambda: site.depths("work") == {"ready": 0, "delayed": 0, "active": 0, "dead": 0}, "an empty queue")
    assert set(site.counts("end")) == set(range(10_001))
    twice = {n for n, count in site.counts("start").items() if count > 1}
    assert twice <= in_flight
    assert len(twice) < 60


def test_a_message_that_kills_its_worker_is_dead_after_max_crashes(site: Project, kafka: str) -> None:
    """Kafka counts no deliveries: the boards of the dead workers do. Bystanders are handled, and blamed for nothing."""
    configure(site, kafka, "on_kafka.deadly", max_crashes=2, concurrency=5)
    site.send_lines("work", ({"n": n} for n in range(1, 4)))
    site.send("work", {"n": 0})
    for _ in range(2):
        worker = site.start("work")
        wait_for(lambda worker=worker: worker.process.poll() is not None, "the worker to be killed")  # type: ignore[misc]
        worker.kill_all()
    site.worker("work")

    site.until("end", 1, 2, 3)
    wait_for(lambda: site.depths("work")["dead"] == 1, "the dead letter")
    listed = site.platform("dead", "list", "work", "--json")
    [letter] = json.loads(listed.stdout)
    assert letter["crashes"] == 2
    assert site.counts("start")[0] == 2


def test_work_only_delays_moves_delayed_messages_on_and_handles_none(site: Project, kafka: str) -> None:
    """A process of its own can see to it that delayed messages fall due while no worker runs; it takes none of them."""
    configure(site, kafka, "on_kafka.deadly")
    forwarder = site.start("work", "--only", "delays").until_ready()
    site.send("work", {"n": 1}, "--delay", "300ms")
    site.send("work", {"n": 2}, "--delay", "1h")

    wait_for(lambda: site.depths("work") == {"ready": 1, "delayed": 1, "active": 0, "dead": 0}, "the first to fall due")

    assert forwarder.stop() == 0
    assert not site.entries("start")
    assert forwarder.events("stopped")


def test_order_by_key_holds_through_kill_9(site: Project, kafka: str) -> None:
    """Workers are killed at full speed, with retries waiting in place: of each key nothing runs again after a later one has."""
    configure(site, kafka, "on_kafka.in_order", order="key", concurrency=50, backoff=["20ms"], max_crashes=100)
    for key in range(4):
        site.send_lines("work", ({"n": n} for n in range(key, 800, 4)), "--key", f"k{key}")
    for handled in (100, 200):
        worker = site.worker("work")
        wait_for(lambda handled=handled: ends(site) > handled, "some handled")  # type: ignore[misc]
        worker.kill_all()
    site.worker("work")

    wait_for(lambda: ends(site) >= 800, "all handled", 90)
    wait_for(lambda: site.depths("work") == {"ready": 0, "delayed": 0, "active": 0, "dead": 0}, "an empty queue")
    assert set(site.counts("end")) == set(range(800))
    for key in range(4):
        starts = [entry.n for entry in site.entries("start") if entry.n % 4 == key]
        assert starts == sorted(starts), key
    assert len(site.entries("end")) <= 800 + 2 * 50


@pytest.mark.timeout(300)
def test_order_by_key_holds_while_workers_come_and_go(site: Project, kafka: str) -> None:
    """Partitions move under load, with retries waiting in place: each key stays in its order, and nothing runs twice."""
    configure(site, kafka, "on_kafka.in_order_slowly", partitions=4, order="key", concurrency=10, backoff=["200ms"])
    # these keys lie in all four partitions: 2, 2, 1, 2, 3, 0, 1, 0
    for key in range(8):
        site.send_lines("work", ({"n": n} for n in range(key, 800, 8)), "--key", f"q{key}")
    workers = [site.worker("work")]
    for handled in (50, 100, 150):
        wait_for(lambda handled=handled: ends(site) > handled, "some handled")  # type: ignore[misc]
        workers.append(site.worker("work"))
    wait_for(lambda: ends(site) > 400, "half of them handled", 90)
    assert workers.pop(0).stop() == 0
    # only the others are left for these, however much the first has done before they came
    for key in range(8):
        site.send_lines("work", ({"n": n} for n in range(800 + key, 840, 8)), "--key", f"q{key}")

    wait_for(lambda: ends(site) >= 840, "all handled", 90)
    wait_for(lambda: site.depths("work") == {"ready": 0, "delayed": 0, "active": 0, "dead": 0}, "an empty queue")
    assert sorted(entry.n for entry in site.entries("end")) == list(range(840))
    assert len({entry.pid for entry in site.entries("end")}) > 1
    for key in range(8):
        starts = [entry.n for entry in site.entries("start") if entry.n % 8 == key]
        assert starts == sorted(starts), key
    assert [worker.stop() for worker in workers] == [0, 0, 0]
