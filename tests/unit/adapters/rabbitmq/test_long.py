"""Handlers that take long: heartbeats, and a server that takes back what is not acknowledged in time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, Project, messages, until

from handrail.adapter import Settlement, Verb
from handrail.errors import BrokerError
from handrail.outcome import Outcome

#: Erlang: how long channels that are opened from now on wait for an acknowledgement, and how often they look.
PATIENCE = "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, channel_tick_interval, {})."
TOOK_BACK = "the server took back what was in hand for too long; it may run a second time"


@pytest.fixture
def impatient(server: Any) -> Iterator[None]:
    """The server takes back what is not acknowledged within 2 s."""
    server.up()
    server.ctl("eval", PATIENCE.format(2000, 200))
    yield
    server.ctl("eval", PATIENCE.format(1_800_000, 60_000))


def _stood_still(entry: Any) -> bool:
    """Whether *entry* tells of this machine, which was busy with something else."""
    return str(entry.get("event", "")).startswith(("this worker stood still", "a host does not answer"))


def logged(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")]


@pytest.mark.usefixtures("impatient")
async def test_one_that_takes_longer_than_the_server_allows_keeps_its_message(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server takes back comes to the handler that still runs it, is delivered once, and can be acknowledged."""
    monkeypatch.setattr("handrail_rabbitmq.aging.ASTRAY", 20.0)  # whatever a slow server takes to bring it back
    worker = await bench.open("worker", watch_every=0.1, consumer_timeout="2s")
    inbox = await Inbox(worker).begin(bench.queue)
    try:
        with structlog.testing.capture_logs() as logs:
            assert await worker.publish(messages(3), 20.0) == {}
            await until(lambda: len(inbox.got) == 3, "all")
            long = inbox.got[0]
            assert await worker.settle([Settlement(one, Verb.ACK) for one in inbox.got[1:]]) == []
            for times in (1, 2):
                await until(lambda times=times: logged(logs).count(TOOK_BACK) == times, "the server to lose patience")  # type: ignore[misc]
            await until(lambda: long.tag.state == 0, "its return")

        assert await worker.settle([Settlement(long, Verb.ACK)]) == []
        assert (len(inbox.got), inbox.lost) == (3, [])
        depth = await worker.depth("work")
        assert (depth.ready, depth.active) == (0, 0)
        await until(lambda: worker.health().up, "health")
    finally:
        await bench.close()


@pytest.mark.usefixtures("impatient")
async def test_one_that_takes_too_long_costs_no_other_message(server: Any, bench: Bench) -> None:
    """What was delivered later than half the server's patience is acknowledged as ever, whatever becomes of the old."""
    # the channel that the long one comes by has little patience, those that are opened later have much
    await asyncio.to_thread(server.ctl, "eval", PATIENCE.format(6000, 200))
    worker = await bench.open("worker", watch_every=0.1, consumer_timeout="2s")
    other = await bench.open("worker", watch_every=0.1, consumer_timeout="2s")
    inbox = await Inbox(worker).begin(bench.queue, credit=10)
    await asyncio.to_thread(server.ctl, "eval", PATIENCE.format(60_000, 200))
    try:
        with structlog.testing.capture_logs() as logs:
            assert await worker.publish(messages(1), 20.0) == {}
            await until(lambda: len(inbox.got) == 1, "the long one")
            await until(lambda: bool(worker._intakes[0]._rests), "a channel for what comes later")
            assert await worker.publish(messages(5), 20.0) == {}
            await until(lambda: len(inbox.got) == 6, "the others")
            inbox.subscription.pause()
            theirs = await Inbox(other).begin(bench.queue)
            await until(lambda: TOOK_BACK in logged(logs), "the server to lose patience")
            await until(lambda: len(theirs.got) == 1, "another worker to get the long one")

            assert await worker.settle([Settlement(one, Verb.ACK) for one in inbox.got[1:]]) == []

        await until(lambda: inbox.lost == inbox.got[:1], "the long one, and it alone, to be lost")
        refused = await worker.settle([late := Settlement(inbox.got[0], Verb.ACK)])
        assert refused == [late]
        assert theirs.got[0].message.id == inbox.got[0].message.id
        assert await other.settle([Settlement(theirs.got[0], Verb.ACK)]) == []
        assert (await other.depth("work")).ready == 0
    finally:
        await bench.close()


@pytest.mark.usefixtures("impatient")
async def test_a_patience_that_nobody_told_of_is_learned(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is less patient than it is said to be says so itself the first time, and is believed from then on."""
    monkeypatch.setattr("handrail_rabbitmq.aging.ASTRAY", 20.0)  # whatever a slow server takes to bring it back
    worker = await bench.open("worker", watch_every=0.1)
    inbox = await Inbox(worker).begin(bench.queue)
    try:
        assert worker.hold.seconds == 1800
        assert await worker.publish(messages(2), 20.0) == {}
        await until(lambda: len(inbox.got) == 2, "both")

        await until(lambda: worker.hold.seconds == 2, "the server's word")

        await until(lambda: all(one.tag.state == 0 for one in inbox.got), "both to be in hand again")
        assert await worker.settle([Settlement(one, Verb.ACK) for one in inbox.got]) == []
        assert inbox.lost == []
    finally:
        await bench.close()


def test_what_waits_in_a_worker_never_runs_into_the_servers_patience(server: Any, project: Project) -> None:
    """Messages fetched while handlers were fast go back when they turn slow; none is taken back, and none runs twice."""
    project.handler(
        """
        import asyncio

        async def handler(message, callback):
            if message == "slow":
                note("slow")
                await asyncio.sleep(2.0)
            callback()
        """
    )
    project.queues({"work": {"handler": "work", "concurrency": 2}})
    server.ctl("eval", PATIENCE.format(10_000, 200))
    try:
        project.start()
        project.send_bulk("work", ["fast"] * 1000 + ["slow"] * 12)

        project.wait(Outcome.COMPLETED, count=1000)
        project.wait(Outcome.COMPLETED, count=1012)
    finally:
        server.ctl("eval", PATIENCE.format(1_800_000, 60_000))

    assert len(project.notes("slow")) == 12
    assert not [
        entry for entry in project.logs if entry.get("level") in ("warning", "error") and not _stood_still(entry)
    ]


async def test_what_has_just_come_is_not_old(bench: Bench) -> None:
    """The first look at a channel that holds something leaves nothing behind: that takes as long as the limit says."""
    worker = await bench.open("worker", watch_every=0.05, consumer_timeout="10m")
    inbox = await Inbox(worker).begin(bench.queue)
    try:
        assert await worker.publish(messages(3), 20.0) == {}
        await until(lambda: len(inbox.got) == 3, "all")
        [intake] = worker._intakes
        channel = intake.channel
        intake.look_at_ages(300.0)

        assert not intake._aged
        assert await worker.settle([Settlement(one, Verb.ACK) for one in inbox.got]) == []
        assert intake.channel is channel
    finally:
        await bench.close()


async def test_a_worker_full_of_old_work_is_up_and_takes_more_when_it_is_done(bench: Bench) -> None:
    """While all that a worker may hold was left behind it is healthy and fetches nothing; then it goes on."""
    worker = await bench.open("worker", watch_every=0.1, consumer_timeout="2s")
    inbox = await Inbox(worker).begin(bench.queue, credit=1)
    try:
        assert await worker.publish(messages(3), 20.0) == {}
        await until(lambda: bool(worker._intakes[0]._rests), "the first to be left behind")
        await until(lambda: worker.health().up, "health")
        assert len(inbox.got) == 1
        assert (await worker.depth("work")).active == 1

        assert await worker.settle([Settlement(inbox.got[0], Verb.ACK)]) == []

        await until(lambda: len(inbox.got) == 2, "the next")
        await until(lambda: worker.health().up, "health")
        assert inbox.lost == []
    finally:
        await bench.close()


def test_a_timeout_beyond_the_servers_patience_is_warned_of_at_start(project: Project) -> None:
    """One line names the queues whose handlers may take longer, the server's limit and the mend; others are not in it."""
    project.handler("def handler(message): pass")
    project.queues(
        {
            "work": "work",
            "report": {"handler": "work", "timeout": "1h"},
            "endless": {"handler": "work", "timeout": "none"},
        }
    )
    project.start()

    (warned,) = [entry for entry in project.logs if entry["level"] == "warning" and "limit" in entry]
    assert (warned["queues"], warned["limit"]) == ("report (1h), endless (none)", "30m")
    assert "consumer_timeout" in warned["mend"]


def test_a_server_without_patience_is_warned_of_no_more(server: Any, project: Project) -> None:
    """Where the broker's mapping says that the server waits for ever, no timeout is too long."""
    project.handler("def handler(message): pass")
    project.queues(
        {"endless": {"handler": "work", "timeout": "none"}},
        brokers={"default": {"url": server.url, "consumer_timeout": "none"}},
    )
    project.start()

    assert not [entry for entry in project.logs if entry["level"] == "warning" and not _stood_still(entry)]


def test_a_handler_that_blocks_costs_no_heartbeat(server: Any, project: Project) -> None:
    """A handler may block its process for several heartbeats, holding the GIL, and keeps connection and message."""
    project.handler(
        """
        import ctypes
        import time

        async def handler(message, callback):
            note("began", message)
            time.sleep(3)
            for _ in range(4):
                ctypes.PyDLL(None).usleep(900_000)  # with the GIL held
            callback()
        """
    )
    url = server.url
    project.queues({"work": "work"}, brokers={"default": {"url": url, "heartbeat": 1}})
    project.start()
    for turn in range(6):  # so short a heartbeat is missed by a machine that stands still, but not time after time
        seen = len(project.logs)
        project.wait(Outcome.COMPLETED, id=project.send("work", turn))
        if not [entry for entry in project.logs[seen:] if "not reachable" in str(entry)]:
            break
    else:
        pytest.fail("the connection was lost each time")

    assert [note.facts[0] for note in project.notes("began")].count(turn) == 1


async def test_a_patience_is_a_duration_or_none(bench: Bench) -> None:
    """`consumer_timeout` is what the server's configuration says, as a duration; anything else is one line."""
    for given, expected in (("45m", 2700.0), (90, 90.0), ("PT2H", 7200.0)):
        adapter = await bench.open("client", consumer_timeout=given)
        assert adapter.hold.seconds == expected
    assert (await bench.open("client", consumer_timeout="none")).hold is None
    await bench.close()
    with pytest.raises(BrokerError, match="consumer_timeout: 'soon' is not a duration"):
        await bench.open("client", consumer_timeout="soon")
