"""Partitions that move between workers, and workers that stall, freeze or reload: what it costs, and what it must not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import yaml

from handrail import config
from handrail.adapter import Adapter, BrokerSettings, Delivery, QueueSpec, Settlement, Subscription, Verb, load
from handrail.logs import Journal
from handrail.message import Message, new_id
from handrail.worker import Worker
from handrail_kafka import reader as readers

QUEUE = QueueSpec(name="work", dead_letter="work.dead")


class Member:
    """A worker's adapter, and what it was given."""

    subscription: Subscription

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.got: list[Delivery] = []
        self.lost: list[Delivery] = []
        #: What was asked back last, while it lasts.
        self.recalled: list[Delivery] = []

    def recall(self, deliveries: list[Delivery]) -> None:
        self.recalled = deliveries

    @property
    def reader(self) -> readers.Reader:
        [level] = [one for one in self.adapter._core.intakes["work"].levels if one.rank == 4]  # type: ignore[attr-defined]
        assert isinstance(level.reader, readers.Reader)
        return level.reader

    @property
    def running(self) -> list[Delivery]:
        """What was delivered and is neither settled nor lost."""
        return [one for one in self.got if one.tag.alive]

    @property
    def bodies(self) -> list[bytes]:
        return [one.message.body for one in self.got]

    async def settle(self, *deliveries: Delivery, verb: Verb = Verb.ACK) -> list[Settlement]:
        return await self.adapter.settle([Settlement(one, verb) for one in deliveries])


class Group:
    """Workers that share a queue of four partitions on the shared server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"r{uuid.uuid4().hex[:8]}-"

    def settings(self, **options: object) -> BrokerSettings:
        given = {"partitions": 4, "revoke_wait": "1s", "session_timeout": "30s", **options}
        return BrokerSettings("default", self.url, "/", self.prefix, given)

    @asynccontextmanager
    async def member(self, credit: int = 100, **options: object) -> AsyncIterator[Member]:
        adapter = load(self.settings(**options))
        await adapter.open("worker")
        try:
            await adapter.declare([QUEUE])
            made = Member(adapter)
            made.subscription = await adapter.subscribe(QUEUE, credit, made.got.extend, made.lost.extend, made.recall)
            await until(lambda: adapter._core.intakes["work"].levels)  # type: ignore[attr-defined]
            yield made
        finally:
            await adapter.close()

    async def publish(self, adapter: Adapter, bodies: range) -> None:
        sent = [Message(queue="work", id=new_id(), body=b"%d" % n) for n in bodies]
        assert await adapter.publish(sent, 20.0) == {}


async def until(condition: Any) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def group(kafka: str) -> Group:
    return Group(kafka)


async def test_what_runs_keeps_its_partition_until_it_ends(group: Group) -> None:
    """A worker that joins gets its share when nothing of it is in hand any more; nothing is lost, nothing comes twice."""
    async with group.member(revoke_wait="1m") as first:
        await group.publish(first.adapter, range(40))
        await until(lambda: len(first.got) == 40)
        async with group.member() as second:
            await until(lambda: len(first.recalled) == 20)
            # half of it is for partitions from which nothing is begun
            await group.publish(first.adapter, range(40, 80))
            await until(lambda: len(first.got) == 60)
            assert len(first.reader.parts) == 4
            assert second.got == []

            assert await first.settle(*first.recalled) == []
            await until(lambda: len(second.got) == 20)

            assert first.lost == []
            assert await first.settle(*first.running) == []
            assert await second.settle(*second.got) == []
            assert sorted(first.bodies + second.bodies, key=int) == [b"%d" % n for n in range(80)]
            depth = await second.adapter.depth("work")
            assert (depth.ready, depth.active) == (0, 0)


async def test_what_waits_in_hand_moves_at_once(group: Group) -> None:
    """What is asked back and was not begun goes to the worker that joined; what runs beside it is not disturbed."""
    async with group.member(revoke_wait="1m") as first:
        await group.publish(first.adapter, range(40))
        await until(lambda: len(first.got) == 40)
        async with group.member() as second:
            await until(lambda: len(first.recalled) == 20)

            moving = first.recalled[:]
            assert await first.settle(*moving, verb=Verb.RELEASE) == []
            await until(lambda: len(second.got) == 20)

            assert sorted(second.bodies) == sorted(one.message.body for one in moving)
            assert first.lost == []
            staying = [one for one in first.got if one not in moving]
            assert await first.settle(*staying) == await second.settle(*second.got) == []
            assert len(first.got) == 40


async def test_what_runs_long_holds_up_nothing(group: Group) -> None:
    """When handlers outlast `revoke_wait` and there is room for more, their partition goes on where it is, and moves later."""
    async with group.member() as first:
        await group.publish(first.adapter, range(40))
        await until(lambda: len(first.got) == 40)
        long = first.got[:]
        async with group.member() as second:
            await until(lambda: len(first.recalled) == 20)

            await group.publish(first.adapter, range(40, 80))
            await until(lambda: len(first.got) == 80)

            assert len(first.reader.parts) == 4
            assert second.got == first.lost == []
            assert await first.settle(*first.got[40:]) == []
            assert await first.settle(*long) == []
            await until(lambda: len(second.reader.parts) == 2 == len(first.reader.parts))
            assert len(first.got) == 80


async def test_several_that_join_at_once_disturb_nothing_that_runs(group: Group) -> None:
    """One rebalance on the heels of another: what is in hand all the while is settled as if there had been none."""
    async with group.member(revoke_wait="1m") as first:
        await group.publish(first.adapter, range(40))
        await until(lambda: len(first.got) == 40)
        async with group.member() as second, group.member() as third:
            await until(lambda: len(first.recalled) >= 20)
            async with group.member():
                await asyncio.sleep(1.0)  # whatever a visit of that length meets

            await group.publish(first.adapter, range(40, 80))
            members = (first, second, third)
            while sum(len(one.got) for one in members) < 80:
                for one in members:
                    assert await one.settle(*one.running) == []
                await asyncio.sleep(0.05)

            assert first.lost == second.lost == third.lost == []
            assert sorted((body for one in members for body in one.bodies), key=int) == [b"%d" % n for n in range(80)]


async def test_a_worker_that_leaves_hands_over_without_a_repetition(group: Group) -> None:
    """What a worker finished before it left is nobody's any more; what it only held comes to the others, once."""
    async with group.member() as first:
        async with group.member() as second:
            await until(lambda: len(second.reader.parts) == 2 == len(first.reader.parts))
            await group.publish(first.adapter, range(40))
            await until(lambda: len(first.got) + len(second.got) == 40)
            done = second.got[:10]
            assert await second.settle(*done) == []
            left = [one.message.body for one in second.got[10:]]
        await until(lambda: len(first.got) == 40 - len(done))

        counts = Counter(first.bodies)
        assert set(counts.values()) == {1}
        assert set(left) <= set(counts)
        assert not {one.message.body for one in done} & set(counts)
        assert await first.settle(*first.got) == []


async def test_a_worker_that_leaves_takes_nothing_from_those_who_stay(group: Group) -> None:
    """Handlers of minutes on the partitions of others go on as if nothing had happened: nothing of theirs moves."""
    async with group.member() as first, group.member() as second:
        async with group.member() as third:
            members = (first, second, third)
            await until(lambda: sorted(len(one.reader.parts) for one in members) == [1, 1, 2])
            await group.publish(first.adapter, range(80))
            await until(lambda: sum(len(one.got) for one in members) == 80)
            mine = first.got[:], second.got[:]
        await until(lambda: len(first.got) + len(second.got) == 80)

        assert first.lost == second.lost == []
        assert (first.got[: len(mine[0])], second.got[: len(mine[1])]) == mine
        assert await first.settle(*first.got) == await second.settle(*second.got) == []


async def test_a_slow_handler_costs_no_membership(group: Group) -> None:
    """A message that is in hand for longer than `session_timeout` changes nothing: it is settled as if it had been quick."""
    async with group.member(session_timeout="6s") as member:
        await group.publish(member.adapter, range(1))
        await until(lambda: member.got)
        generation = member.reader._consumer._coordinator.generation

        await asyncio.sleep(7.0)  # that time passes is what is tested

        assert await member.settle(*member.got) == []
        assert member.reader._consumer._coordinator.generation == generation
        assert member.lost == []


async def test_a_worker_that_catches_up_hears_that_it_was_given_up(group: Group) -> None:
    """What the group gave to others while a worker stood still is told before `catch_up` returns, without a heartbeat."""
    async with group.member() as member, group.member(partitions=4) as other:
        members = (member, other)
        await until(lambda: [len(one.reader.parts) for one in members] == [2, 2])
        await group.publish(member.adapter, range(40))
        await until(lambda: len(member.got) + len(other.got) == 40)
        coordinator = member.reader._consumer._coordinator
        held = member.got[:]
        await other.adapter._core.cluster.leave(member.reader.group, coordinator.member_id)  # type: ignore[attr-defined]

        await member.adapter.catch_up()

        assert set(map(id, member.lost)) == set(map(id, held))
        await until(lambda: len(member.got) + len(other.got) == 60)


FROZEN = """
import asyncio, sys
import msgspec
from handrail.adapter import BrokerSettings, QueueSpec, Settlement, Verb, load

async def main():
    adapter = load(msgspec.json.decode(sys.argv[1], type=BrokerSettings))
    queue = QueueSpec(name="work", dead_letter="work.dead")
    await adapter.open("worker")
    await adapter.declare([queue])
    got = []
    await adapter.subscribe(queue, 100, got.extend, lambda lost: print("lost", len(lost), flush=True))
    while True:
        await asyncio.sleep(0.02)
        if sys.argv[2] == "hold":
            if got and len(got) == 8:
                print("holds", len(got), flush=True)
                sys.argv[2] = "wait"
        elif not sys.stdin.isatty() and sys.argv[2] == "wait":
            line = await asyncio.to_thread(sys.stdin.readline)
            refused = await adapter.settle([Settlement(one, Verb.ACK) for one in got])
            print("refused", len(refused), flush=True)
            got.clear()
            sys.argv[2] = "serve"
        elif got:
            mine, got[:] = got[:], []
            await adapter.settle([Settlement(one, Verb.ACK) for one in mine])
            print("served", len(mine), flush=True)

asyncio.run(main())
"""


async def test_a_frozen_worker_is_expelled_refused_and_serves_again(group: Group) -> None:
    """What a worker held when it froze goes to others; thawed, its late outcomes are refused, and it joins in again."""
    async with group.member() as other:
        other.subscription.pause()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FROZEN,
            msgspec.json.encode(group.settings(session_timeout="6s")).decode(),
            "hold",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdin is not None

        async def says(word: bytes) -> int:
            assert process.stdout is not None
            async with asyncio.timeout(40):
                while True:
                    line = await process.stdout.readline()
                    assert line, "it ended"
                    if line.startswith(word):
                        return int(line.split()[1])

        try:
            await until(lambda: len(other.reader.parts) == 2)
            mine = {tp.partition for tp in other.reader.parts}
            sent = 0
            theirs: list[bytes] = []
            while len(theirs) < 8:  # as many as the other process shall hold, each to its own partitions
                message = Message(queue="work", id=new_id(), body=b"%d" % sent, key=f"k{sent}")
                producer = other.adapter._core.producer  # type: ignore[attr-defined]
                if producer.partition(f"{group.prefix}work", message.key.encode()).partition not in mine:
                    theirs.append(message.body)
                    assert await other.adapter.publish([message], 20.0) == {}
                sent += 1
            assert await says(b"holds") == 8

            process.send_signal(signal.SIGSTOP)
            other.subscription.resume()
            await until(lambda: len(other.got) == 8)

            assert sorted(other.bodies) == sorted(theirs)
            assert await other.settle(*other.got) == []
            process.send_signal(signal.SIGCONT)
            process.stdin.write(b"settle\n")
            assert await says(b"refused") == 8
            await until(lambda: len(other.reader.parts) == 2)
            await group.publish(other.adapter, range(100, 140))
            assert await says(b"served") > 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()


async def test_a_consumer_that_stalls_in_silence_is_built_anew(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages wait, there is room for them, and nothing comes: the worker says so and connects anew, by itself."""
    monkeypatch.setattr(readers, "STALLED", 0.5)
    monkeypatch.setattr(readers, "WATCH_EVERY", 0.1)
    with structlog.testing.capture_logs() as logs:
        async with group.member() as member:
            await until(lambda: len(member.reader.parts) == 4)
            stalled = member.reader._consumer
            asked = asyncio.Event()

            async def nothing(*_tps: object, **_options: object) -> dict[object, object]:
                asked.set()
                await asyncio.sleep(0.05)
                return {}

            stalled.getmany = nothing  # no server can be made to cause what clients are known to do by themselves
            await asked.wait()
            await group.publish(member.adapter, range(5))
            await until(lambda: any("connecting anew" in one["event"] for one in logs))
            monkeypatch.setattr(readers, "STALLED", 30.0)  # the new one may take its time
            await until(lambda: len(member.got) == 5)

            assert member.reader._consumer is not stalled
            assert await member.settle(*member.got) == []


async def test_a_reload_is_no_rebalance(group: Group, tmp_path: Path) -> None:
    """New code takes over with the same membership: the group's generation stays, and what runs runs once."""
    handlers = tmp_path / "handlers"
    handlers.mkdir()
    handlers.joinpath("work.py").write_text("def handler(message): pass\n")
    path = tmp_path / "queues.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "brokers": {"default": {"url": group.url, "partitions": 2}},
                "prefix": group.prefix,
                "ledger": "off",
                "queues": {"work": "work"},
            }
        )
    )
    outcomes: list[str] = []
    worker = Worker(
        config.load(path), journal=Journal("off"), on_outcome=lambda _m, verdict, *_r: outcomes.append(verdict.outcome)
    )
    await worker.start()
    try:
        member = Member(worker.adapter("default"))
        await until(lambda: len(member.reader.parts) == 2)
        generation = member.reader._consumer._coordinator.generation
        name = member.reader._consumer._coordinator.member_id
        for version in range(3):
            handlers.joinpath("work.py").write_text(f"def handler(message): return {version}\n")
            await group.publish(worker.adapter("default"), range(20))
            report = await worker.reload(config.load(path))
            assert report.problems == []
        await until(lambda: len(outcomes) == 60)

        coordinator = member.reader._consumer._coordinator
        assert (coordinator.generation, coordinator.member_id) == (generation, name)
        assert set(outcomes) == {"completed"}
    finally:
        await worker.stop(5.0)
