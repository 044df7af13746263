"""A reader whose client fails it: what is a reason to connect anew, what is none, and that it always goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from handrail_kafka.part import Part
from handrail_kafka.progress import Stand
from handrail_kafka.reader import Reader

TP = TopicPartition("work", 0)


class Consumer:
    """As much of aiokafka's consumer, its coordinator and its client as a reader touches."""

    _group_id = "work"
    _fetcher = None
    _subscription = SimpleNamespace(subscription=None)

    def __init__(self) -> None:
        self._coordinator = self._client = self
        self.commits: list[Any] = []

    def check_errors(self) -> None:
        pass

    async def getmany(self, *_tps: TopicPartition, **_options: Any) -> dict[Any, Any]:
        await asyncio.sleep(0.01)
        return {}

    async def commit(self, offsets: Any) -> None:
        await self.commit_offsets(None, offsets)

    async def commit_offsets(self, _assignment: Any, offsets: Any) -> None:
        self.commits.append(offsets)

    async def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Owner:
    """What comes of it is nobody's."""

    board = ""
    roomy = True

    def __init__(self) -> None:
        self.welcome = True
        self.asked = 0

    def wants(self, _part: Part) -> bool:
        self.asked += 1
        return self.welcome

    def __getattr__(self, _name: str) -> Any:
        return lambda *_arguments: None


class Cluster:
    """A log of five records."""

    place = "kafka://nowhere"
    options = SimpleNamespace(reclaim=False)

    async def ends(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 5)

    async def begins(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def why(self, error: BaseException) -> BaseException:
        return error


class Site:
    """A reader of one partition, and the consumers that it is given one after another; more of the plain kind follow."""

    def __init__(self, *consumers: Consumer) -> None:
        self.owner = Owner()
        self.reader = Reader(Cluster(), SimpleNamespace(), "work", ["work"], self.owner, "stop", 1.0)  # type: ignore[arg-type]
        self.reader._build = self.build  # type: ignore[method-assign]
        self.consumers = list(consumers)
        self.built = 0
        self.assigned = True
        self.reachable = asyncio.Event()
        self.reachable.set()

    async def build(self) -> None:
        await self.reachable.wait()
        if self.built == len(self.consumers):
            self.consumers.append(Consumer())
        self.reader._rebuild = ""
        self.reader._consumer = self.consumers[self.built]
        if self.assigned:
            self.reader.parts = {TP: Part(self.reader, TP, Stand(0), 0)}
        self.reader.rebalancing = False
        self.built += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.reader.start()
        try:
            await until(lambda: self.built)
            yield
        finally:
            async with asyncio.timeout(30):
                await self.reader.stop()
            assert all(task.done() for task in self.reader._tasks)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_cancellation_of_the_clients_own_is_a_reason_to_connect_anew() -> None:
    """When the client says that its part in the group was cancelled, which nobody here did, the reader goes on with a new one."""

    class Ended(Consumer):
        def check_errors(self) -> None:
            raise asyncio.CancelledError

    site = Site(Ended())
    site.assigned = False  # nothing to ask for: then the reader asks how its membership is
    async with site.running():
        await until(lambda: site.built == 2)


async def test_a_consumer_that_ends_by_a_cancellation_is_replaced_all_the_same() -> None:
    """A client that awaits what it cancelled, as one does whose fetch fails just then, takes nobody with it."""

    class Failing(Consumer):
        closed = False

        async def stop(self) -> None:
            fetch = asyncio.get_running_loop().create_task(asyncio.sleep(60))
            fetch.cancel()
            await fetch

        async def close(self) -> None:
            self.closed = True

    first, second = Failing(), Failing()
    site = Site(first, second)
    async with site.running():
        site.reader._rebuild = "in doubt"
        await until(lambda: site.built == 2)

    assert first.closed
    assert second.closed


async def test_a_commit_that_hangs_with_its_consumer_holds_up_no_other() -> None:
    """One that is under way when the reader connects anew ends with its consumer, and so does the wait for it."""

    class Hanging(Consumer):
        async def commit_offsets(self, assignment: Any, offsets: Any) -> None:
            await super().commit_offsets(assignment, offsets)
            while True:  # as aiokafka's does that has lost its coordinator
                await asyncio.sleep(0.01)

    first = Hanging()
    site = Site(first)
    async with site.running():
        part = site.reader.parts[TP]
        part.finish(0)
        waiting = asyncio.create_task(site.reader.committed())
        await until(lambda: first.commits)

        site.reachable.clear()
        site.reader._rebuild = "in doubt"
        async with asyncio.timeout(30):
            await waiting
        assert part.lost

        site.reachable.set()
        await until(lambda: site.built == 2)
        site.reader.parts[TP].finish(0)
        async with asyncio.timeout(30):
            await site.reader.committed()
        assert site.reader.parts[TP].committed == 1


async def test_what_was_not_asked_for_is_no_stall() -> None:
    """A partition of which nothing was wanted for long, and is wanted again, has the time to bring something."""
    site = Site()
    async with site.running():
        part = site.reader.parts[TP]
        site.owner.welcome = False
        part.moved_at = time.monotonic() - 100.0
        asked = site.owner.asked
        await until(lambda: site.owner.asked > asked + 1)

        site.owner.welcome = True
        await site.reader._look_for_stall()

        assert site.reader._rebuild == ""
        part.moved_at = time.monotonic() - 100.0
        await site.reader._look_for_stall()
        assert "nothing came from work/0" in site.reader._rebuild
