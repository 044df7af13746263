"""`declare: never`: what operators made is used as it is, what is missing is said in one line, and nothing is made."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, messages, until

from handrail.adapter import QueueSpec, Settlement, Verb
from handrail.errors import BrokerError


def names(server: Any, what: str, bench: Bench) -> set[str]:
    """The queues or exchanges of this test that stand on the server, without the test's prefix."""
    found = server.ctl("-q", f"list_{what}", "name").stdout.split()
    return {name.removeprefix(bench.settings.prefix) for name in found if name.startswith(bench.settings.prefix)}


async def test_everything_missing_is_said_at_once_in_one_line(server: Any, bench: Bench) -> None:
    """A worker does not start without its queues and their dead letters: one line names all that are missing."""
    try:
        with pytest.raises(
            BrokerError, match=r"no queue '.*work', no queue '.*work\.dead', and `declare: never`"
        ) as caught:
            await bench.open(declare="never")

        assert "\n" not in str(caught.value)
        assert names(server, "queues", bench) == set()
    finally:
        await bench.close()


async def test_a_worker_needs_the_queues_alone(server: Any, bench: Bench) -> None:
    """Whatever their type, a queue and its dead letters are enough to send, take, give back and bury; nothing is made."""
    await bench.open("client", QueueSpec(name="work", dead_letter="work.dead", options={"queue_type": "classic"}))
    stood = names(server, "queues", bench)
    try:
        with structlog.testing.capture_logs() as logs:
            worker = await bench.open(declare="never")
            inbox = await Inbox(worker).begin(bench.queue)
            assert await worker.publish(messages(3, priority=9), 10.0) == {}
            await until(lambda: len(inbox.got) == 3, "all")
            ended, interrupted, dead = inbox.got
            verdicts = [
                Settlement(ended, Verb.ACK),
                Settlement(interrupted, Verb.RELEASE, interrupted.message),
                Settlement(dead, Verb.DEAD, dead.message),
            ]
            assert await worker.settle(verdicts) == []
            await until(lambda: len(inbox.got) == 4, "the interrupted one")

        assert inbox.got[3].message.id == interrupted.message.id
        await until(lambda: worker.health().up, "health")
        depth = await worker.depth("work")
        assert (depth.ready, depth.delayed, depth.active, depth.dead) == (0, 0, 1, 1)
        (missing,) = [entry["missing"] for entry in logs if "handrail.delay.in" in entry["event"]]
        assert missing == ", ".join(f"{bench.settings.prefix}{name}" for name in ("work.head", "handrail.delay.in"))
        assert names(server, "queues", bench) == stood == {"work", "work.dead"}
        assert names(server, "exchanges", bench) == set()
    finally:
        await bench.close()


async def test_a_delay_without_its_queues_is_an_error_that_names_them(server: Any, bench: Bench) -> None:
    """Sending with a delay fails in one line, and harms no other message."""
    await bench.open("client")
    client = await bench.open("client", declare="never")
    try:
        late, soon = messages(2)
        late.due = time.time() + 600

        errors = await client.publish([late, soon], 10.0)

        assert list(errors) == [0]
        assert "no exchange" in str(errors[0])
        assert "handrail.delay.in'" in str(errors[0])
        assert "\n" not in str(errors[0])
        assert (await client.depth("work")).ready == 1
    finally:
        await bench.close()


async def test_levels_and_delays_that_stand_are_used(server: Any, bench: Bench) -> None:
    """Where somebody with the right to made priorities and delays, they work as ever."""
    owner = await bench.open("client")
    urgent, late = messages(2, priority=9)
    late.due = time.time() + 0.9
    assert await owner.publish([urgent, late], 10.0) == {}
    client = await bench.open("client", declare="never")
    try:
        assert await client.publish(messages(1), 10.0) == {}
        worker = await bench.open(declare="never")
        inbox = await Inbox(worker).begin(bench.queue)
        await until(lambda: len(inbox.got) == 3, "all")

        assert inbox.got[0].message.id == urgent.id
        assert {one.message.priority for one in inbox.got} == {4, 9}
        assert late.id in {one.message.id for one in inbox.got}
    finally:
        await bench.close()
