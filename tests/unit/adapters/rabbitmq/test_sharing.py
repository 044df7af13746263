"""Workers that come, go and share: restarts and reloads count nothing against a message, and nobody hoards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, Project, messages, until

from handrail.adapter import Settlement, Verb
from handrail.outcome import Outcome
from handrail_rabbitmq import consuming
from handrail_rabbitmq.link import Channel, Count

PLATFORM = Path(sys.executable).with_name("platform")


@contextmanager
def processes(project: Project, count: int) -> Iterator[None]:
    """So many `platform work` of the project, all ready."""
    log = project.root / "workers.log"
    with log.open("wb") as out:
        started = [
            subprocess.Popen([PLATFORM, "work"], cwd=project.root, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            for _ in range(count)
        ]
        try:
            project.until(
                lambda: log.read_text().count('"event":"ready"') >= count,
                f"{count} workers, not {log.read_text()}",
                timeout=90,
            )
            yield
            for process in started:
                process.terminate()
            assert [process.wait(30) for process in started] == [0] * count
        finally:
            for process in started:
                process.kill()
                process.wait()


async def test_what_comes_meanwhile_is_not_taken_for_the_better_that_is_awaited(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary message that comes while a level's consumer starts is none of that level's: the better one goes first."""
    monkeypatch.setattr(consuming, "GATHER", 20.0)
    worker = await bench.open()
    client = await bench.open("client")
    inbox = await Inbox(worker).begin(bench.queue)
    consume, count = Channel.consume, Channel.count
    try:
        [intake] = worker._intakes

        async def slow(channel: Channel, queue: str, consumer: str, take: Any) -> None:
            if queue.endswith(".p9"):
                assert await client.publish(messages(1), 20.0) == {}
                await until(lambda: bool(intake._arrived or intake._hidden), "the ordinary one")

            def late(*delivery: Any) -> None:
                asyncio.get_running_loop().call_later(0.1 if queue.endswith(".p9") else 0.0, take, *delivery)

            await consume(channel, queue, consumer, late)

        async def certain(channel: Channel, queue: str) -> Count:
            # the level is told of before its first message stands in it
            while not (found := await count(channel, queue)).ready and queue.endswith(".p9"):
                await asyncio.sleep(0.01)
            return found

        monkeypatch.setattr(Channel, "count", certain)
        monkeypatch.setattr(Channel, "consume", slow)
        assert await client.publish(messages(1, priority=9), 20.0) == {}
        await until(lambda: len(inbox.got) == 2, "both")
    finally:
        await bench.close()

    assert [one.message.priority for one in inbox.got] == [9, 4]


async def test_what_goes_back_in_parts_waits_for_others_in_its_order(bench: Bench) -> None:
    """What went back before is fetched once more when that which was before it goes back, so that all of it stands in order."""
    alone = await bench.open()
    other = await bench.open()
    inbox = await Inbox(alone).begin(bench.queue, credit=100)
    try:
        assert await other.publish(messages(100), 20.0) == {}
        await until(lambda: len(inbox.got) == 100, "all")
        inbox.subscription.set_credit(1)
        for part in (inbox.got[60:], inbox.got[1:60]):
            assert await alone.settle([Settlement(one, Verb.RELEASE) for one in part]) == []
        async with asyncio.timeout(30):
            while ((found := await other.depth("work")).ready, found.active) != (99, 1):
                await asyncio.sleep(0.02)

        next_one = await Inbox(other).begin(bench.queue, credit=100)
        await until(lambda: len(next_one.got) == 99, "all but the one that runs")

        assert [one.message.body for one in next_one.got] == [b"%d" % n for n in range(1, 100)]
        assert len(inbox.got) == 100
        assert await alone.settle([Settlement(inbox.got[0], Verb.ACK)]) == []
        assert await other.settle([Settlement(one, Verb.ACK) for one in next_one.got]) == []
    finally:
        await bench.close()


def test_four_processes_share_a_queue_and_none_hoards(project: Project) -> None:
    """Workers that were fast a moment ago leave slow messages to those that are free: each runs its share, and once."""
    project.handler(
        """
        import os
        import time

        def handler(message):
            if message["slow"]:
                note("slow", message["n"], os.getppid())
                time.sleep(0.5)
        """
    )
    project.queues({"work": {"handler": "work", "concurrency": 1}})
    with processes(project, 4):
        project.send_bulk("work", [{"slow": False, "n": n} for n in range(2000)])
        project.until(lambda: project.depth().ready == 0, "the fast ones")
        project.send_bulk("work", [{"slow": True, "n": n} for n in range(80)])
        notes = project.noted("slow", 80)
        project.until(lambda: project.depth().active == 0, "the last ones")

    assert sorted(note.facts[0] for note in notes) == list(range(80))
    shares = Counter(note.pid for note in notes)
    assert len(shares) == 4, json.dumps(shares)
    # 20 each; fewer for one that stands still for a while, and none for one from which another hoards
    assert min(shares.values()) >= 4, json.dumps(shares)


@pytest.mark.timeout(300)  # it starts some twenty-five hosts
def test_restarts_over_fetched_messages_count_nothing(server: Any, project: Project) -> None:
    """Twenty drains and reloads while messages are fetched and not started: no start is counted, none dies, all run."""
    project.handler(
        """
        async def handler(message, callback):
            note("began", message)
            await agate("go")
            callback()
        """
    )
    project.queues({"work": {"handler": "work", "concurrency": 2, "max_starts": 60}})
    project.start().stop()  # so that the queue is there
    project.send_bulk("work", list(range(40)))
    for turn in range(20):
        running = project.start()
        project.until(lambda turn=turn: len(project.notes("began")) >= 2 * turn + 2, "two to run")  # type: ignore[misc]
        running.pause()
        running.resume()
        if turn % 5 == 0:
            held = running.worker.dispatcher.lanes["work"].subscription
            project.call(lambda held=held: held.set_credit(40))  # type: ignore[misc]
            # they go back within seconds, for nobody here has time for them, and come again
            project.until(lambda held=held: len(held.in_hand()) == 40, "the rest to be fetched")  # type: ignore[misc]
            assert running.reload().problems == []
        assert running.stop(drain=0.0) == 2
    project.until(lambda: project.depth().ready == 40, "all to be back")
    waiting = project.peek(limit=100)
    assert sum(one.starts == 0 for one in waiting) >= 36
    assert len(waiting) == 40
    project.open("go")
    project.start()
    project.wait(Outcome.COMPLETED, count=40)
    assert project.depth().dead == 0
