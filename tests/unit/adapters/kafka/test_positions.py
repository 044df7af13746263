"""Where a group stands, against what the log holds: lost positions, damaged maps, lag, topics that forget."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v3
from aiokafka.structs import OffsetAndMetadata

from handrail.adapter import Adapter, BrokerSettings, Delivery, QueueSpec, Settlement, Verb, load
from handrail.message import Message, new_id
from handrail_kafka.hazards import hazards
from handrail_kafka.progress import SAFE_SPAN, Stand, encode

QUEUE = QueueSpec(name="work", dead_letter="work.dead")


class Site:
    """Names of one test's own on the shared server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.server = url.removeprefix("kafka://")
        self.prefix = f"p{uuid.uuid4().hex[:8]}-"
        self.topic = f"{self.prefix}work"
        self.tp = TopicPartition(self.topic, 0)
        self.got: list[Delivery] = []

    @asynccontextmanager
    async def opened(self, role: str = "worker", **options: object) -> AsyncIterator[Adapter]:
        adapter = load(BrokerSettings("default", self.url, "/", self.prefix, {"partitions": 1, **options}))
        await adapter.open(role)  # type: ignore[arg-type]
        try:
            await adapter.declare([QUEUE])
            yield adapter
        finally:
            await adapter.close()

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def publish(self, *bodies: bytes) -> None:
        async with self.opened("client") as client:
            sent = [Message(queue="work", id=new_id(), body=body) for body in bodies]
            assert await client.publish(sent, 20.0) == {}

    async def commit(self, offset: int, text: str = "") -> None:
        """Commit as any other program of that group might."""
        other = AIOKafkaConsumer(bootstrap_servers=self.server, group_id=self.topic, enable_auto_commit=False)
        await other.start()
        other.assign([self.tp])
        await other.commit({self.tp: OffsetAndMetadata(offset, text)})
        await other.stop()

    async def forget(self, admin: Any) -> None:
        """Have the group's offsets gone, as they are when it was empty for long."""
        coordinator = await admin.find_coordinator(self.topic)
        async with asyncio.timeout(30):
            while True:  # a member may have left without the server's knowing it yet
                [(_group, code)] = (await admin._send_request(DeleteGroupsRequest([self.topic]), coordinator)).results
                if code == errors.NoError.errno:
                    return
                await asyncio.sleep(0.1)

    async def lag(self) -> int:
        """End minus committed offset, which is all that other tools see."""
        other = AIOKafkaConsumer(bootstrap_servers=self.server, group_id=self.topic, enable_auto_commit=False)
        await other.start()
        try:
            other.assign([self.tp])
            return int((await other.end_offsets([self.tp]))[self.tp] - (await other.committed(self.tp) or 0))
        finally:
            await other.stop()

    async def subscribe(self, adapter: Adapter) -> None:
        await adapter.subscribe(QUEUE, 100, self.got.extend, lambda _lost: None)

    async def taken(self, adapter: Adapter, count: int) -> list[bytes]:
        await self.subscribe(adapter)
        await until(lambda: len(self.got) >= count)
        return [one.message.body for one in self.got]

    async def handled_and_noted(self, worker: Adapter) -> None:
        """Send three, handle them, and wait until it is written down that the group has handled something."""
        await worker.publish([Message(queue="work", id=new_id(), body=b"%d" % n) for n in range(3)], 20.0)
        await self.taken(worker, 3)
        assert await worker.settle([Settlement(one, Verb.ACK) for one in self.got]) == []
        [level] = worker._core.intakes["work"].levels  # type: ignore[attr-defined]
        [part] = level.reader.parts.values()
        await until(lambda: part.noted)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def site(kafka: str) -> Site:
    return Site(kafka)


@pytest.fixture
def logs() -> Any:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.mark.parametrize(("choice", "expected"), [("earliest", [b"0", b"1", b"2", b"new"]), ("latest", [b"new"])])
async def test_a_lost_position_is_obeyed_as_the_user_chose(
    site: Site, logs: list[Any], choice: str, expected: list[bytes]
) -> None:
    """`on_lost_position` says whether what is left is handled again or skipped; either is told."""
    await site.publish(b"0", b"1", b"2")
    await site.commit(50)

    async with site.opened(on_lost_position=choice) as worker:
        await site.subscribe(worker)
        await until(lambda: worker.health().up)
        await worker.publish([Message(queue="work", id=new_id(), body=b"new")], 20.0)
        await until(lambda: len(site.got) >= len(expected))

    assert [one.message.body for one in site.got] == expected
    assert [one for one in logs if "position lost" in one["event"]]


async def test_a_lost_position_stops_the_queue_until_a_person_decides(site: Site) -> None:
    """By default nothing is replayed or skipped: the queue is not served, and health and log say what to do."""
    await site.publish(b"0", b"1", b"2")
    await site.commit(50)

    async with site.opened() as worker:
        await site.subscribe(worker)
        await until(lambda: "on_lost_position" in worker.health().detail)

        assert not worker.health().up
        assert "lies beyond the log's end 3" in worker.health().detail
    assert site.got == []


async def test_a_position_that_was_forgotten_is_noticed_though_the_log_is_whole(site: Site) -> None:
    """A group whose offsets expired replays nothing of what it handled: the queue stops, until a person decides."""
    async with site.opened() as worker:
        await site.handled_and_noted(worker)
    async with site.admin() as admin:
        await site.forget(admin)

    async with site.opened() as worker:
        await site.subscribe(worker)
        await until(lambda: "on_lost_position" in worker.health().detail)
        assert "its position is gone" in worker.health().detail
        assert len(site.got) == 3
    async with site.opened(on_lost_position="latest") as worker:
        await site.subscribe(worker)
        await until(lambda: worker.health().up)
        await worker.publish([Message(queue="work", id=new_id(), body=b"new")], 20.0)
        await until(lambda: len(site.got) == 4)
    assert site.got[-1].message.body == b"new"


@pytest.mark.parametrize("kind", [errors.CoordinatorLoadInProgressError, errors.NotCoordinatorError])
async def test_a_coordinator_that_loads_or_moves_is_no_lost_position(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """A server that cannot say yet where the group stands is asked again: nothing is skipped, repeated, or stopped."""
    async with site.opened() as worker:
        await site.handled_and_noted(worker)
    await site.publish(b"new")
    send, refused = AIOKafkaClient.send, 0

    async def at_first_refused(client: Any, node: int, request: Any, **options: Any) -> Any:
        nonlocal refused
        if isinstance(request, OffsetFetchRequest) and refused < 8:
            refused += 1
            return OffsetFetchResponse_v3(0, [], kind.errno)
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", at_first_refused)
    async with site.opened() as worker:
        await site.subscribe(worker)
        await until(lambda: len(site.got) > 3 or "on_lost_position" in worker.health().detail)

    assert [one.message.body for one in site.got[3:]] == [b"new"]
    assert refused == 8


async def test_a_group_that_is_new_to_an_old_topic_begins_with_what_is_left(site: Site, logs: list[Any]) -> None:
    """A topic of others, whose first records are gone, is handled from the first that is there."""
    await site.publish(*(b"%d" % n for n in range(5)))
    async with site.admin() as admin:
        await admin.delete_records({site.tp: RecordsToDelete(2)})
        await site.forget(admin)

    async with site.opened() as worker:
        assert await site.taken(worker, 3) == [b"2", b"3", b"4"]
    assert [one for one in logs if "the group is new here" in one["event"]]


async def test_what_a_topic_holds_that_was_made_anew_is_handled(site: Site, logs: list[Any]) -> None:
    """Offsets of a deleted topic say nothing of the one that bears its name now, even where that has grown past them."""
    await site.publish(*(b"%d" % n for n in range(5)))
    await site.commit(*encode(Stand(3, b"\x00\x01", topic_id="another")))

    async with site.opened() as worker:
        assert await site.taken(worker, 5) == [b"0", b"1", b"2", b"3", b"4"]
    assert [one for one in logs if "made anew" in one["event"]]


async def test_a_worker_notices_that_its_topic_was_made_anew(site: Site) -> None:
    """While it works, its topic is deleted, made again, and filled past where it was: it handles all that the new one holds."""
    async with site.opened() as worker:
        await worker.publish([Message(queue="work", id=new_id(), body=b"old") for _ in range(20)], 20.0)
        await site.taken(worker, 20)
        assert await worker.settle([Settlement(one, Verb.ACK) for one in site.got]) == []
        cluster = worker._core.cluster  # type: ignore[attr-defined]
        before = await cluster.ids({site.topic})
        async with site.admin() as admin:
            await admin.delete_topics([site.topic])
            async with asyncio.timeout(30):
                # the server may make it itself, for whoever asks for it first
                while (await admin.create_topics([NewTopic(site.topic, 1, 1)])).topic_errors[0][1] not in (
                    errors.NoError.errno,
                    errors.TopicAlreadyExistsError.errno,
                ):
                    await asyncio.sleep(0.05)
                while await cluster.ids({site.topic}) in ({}, before):
                    await asyncio.sleep(0.05)
        other = AIOKafkaProducer(bootstrap_servers=site.server, acks="all")
        await other.start()
        for n in range(40):
            await other.send_and_wait(site.topic, b"%d" % n)
        await other.stop()

        await until(lambda: {b"%d" % n for n in range(40)} <= {one.message.body for one in site.got})


async def test_a_map_that_claims_what_the_log_no_longer_holds_is_dropped(site: Site, logs: list[Any]) -> None:
    """Finished offsets past the log's end cannot be of this log: one line, and handling goes on from the watermark."""
    await site.publish(b"0", b"1", b"2")
    await site.commit(*encode(Stand(1, b"\x00\x01" + b"\x00" * 20 + b"\x01")))

    async with site.opened() as worker:
        assert await site.taken(worker, 2) == [b"1", b"2"]

    [told] = [one for one in logs if "not known" in one["event"]]
    assert "the log ends at 3" in told["reason"]


async def test_what_the_server_deleted_unhandled_is_told(site: Site, logs: list[Any]) -> None:
    """Records that went before they were handled are counted in one line; what was finished beyond them stays finished."""
    await site.publish(*(b"%d" % n for n in range(6)))
    await site.commit(*encode(Stand(1, b"\x00\x00\x00\x01")))
    async with site.admin() as admin:
        await admin.delete_records({site.tp: RecordsToDelete(3)})

    async with site.opened() as worker:
        assert await site.taken(worker, 2) == [b"3", b"5"]

    [told] = [one for one in logs if "no longer in the topic" in one["event"]]
    assert told["messages"] == 2


async def test_a_purge_of_what_the_server_has_cleared_in_part_takes_no_more_than_it_should(site: Site) -> None:
    """What was finished beyond the watermark stays where it was when the log's first records go: nothing else is skipped."""
    await site.publish(*(b"%d" % n for n in range(6)))
    await site.commit(*encode(Stand(1, b"\x00\x00\x00\x01")))
    async with site.admin() as admin:
        await admin.delete_records({site.tp: RecordsToDelete(3)})

    async with site.opened("client") as client:
        third, fifth = await client.peek("work", "ready", 10)
        assert (third.body, fifth.body) == (b"3", b"5")
        assert await client.purge("work", "ready", [third.id]) == 1
    await site.publish(b"6", b"7")

    async with site.opened() as worker:
        assert await site.taken(worker, 3) == [b"5", b"6", b"7"]


async def test_a_purge_takes_the_counts_of_what_it_purges(site: Site) -> None:
    """Messages that were given back where they lie, with their counts, can be purged; those that stay keep theirs."""
    await site.publish(b"0", b"1", b"2")
    await site.commit(*encode(Stand(0, counts=((0, (1, 1, 0, 0)), (2, (3, 3, 0, 0))))))

    async with site.opened("client") as client:
        first, *_others = await client.peek("work", "ready", 10)
        assert await client.purge("work", "ready", [first.id]) == 1

    async with site.opened() as worker:
        await site.taken(worker, 2)
        assert [(one.message.body, one.message.attempts) for one in site.got] == [(b"1", 0), (b"2", 3)]


@pytest.mark.parametrize("leaves", [False, True])
async def test_what_was_given_back_is_in_nobodys_hands(
    site: Site, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Others see it wait as soon as it is back, whether its worker stays and begins nothing, or leaves the queue."""
    monkeypatch.setattr("handrail_kafka.reader.LAST_COMMIT", 20.0)
    async with site.opened("client") as client, site.opened() as worker:
        await client.publish([Message(queue="work", id=new_id(), body=b"0")], 20.0)
        subscription = await worker.subscribe(QUEUE, 100, site.got.extend, lambda _lost: None)
        await depth_is(client, ready=0, active=1)
        subscription.pause()
        if leaves:
            await subscription.cancel()

        assert await worker.settle([Settlement(one, Verb.RELEASE) for one in site.got]) == []

        await depth_is(client, ready=1, active=0)
        assert [one.body for one in await client.peek("work", "ready", 10)] == [b"0"]


async def depth_is(client: Adapter, *, ready: int, active: int) -> None:
    async with asyncio.timeout(20):
        while True:
            depth = await client.depth("work")
            if (depth.ready, depth.active) == (ready, active):
                return
            await asyncio.sleep(0.02)


async def test_lag_as_others_compute_it_is_0_when_nothing_is_unfinished(site: Site) -> None:
    """What transactions leave in the log, and what one took back, is passed too: an autoscaler sees an empty queue as empty."""
    async with site.opened() as worker:
        producer = AIOKafkaProducer(bootstrap_servers=site.server, transactional_id=site.prefix)
        await producer.start()
        for body in (b"0", b"1"):
            async with producer.transaction():
                await producer.send_and_wait(site.topic, body)
        await producer.begin_transaction()
        await producer.send_and_wait(site.topic, b"taken back")
        await producer.abort_transaction()
        await producer.stop()
        assert await site.taken(worker, 2) == [b"0", b"1"]

        assert await worker.settle([Settlement(one, Verb.ACK) for one in site.got]) == []

        async with asyncio.timeout(30):
            while await site.lag():
                await asyncio.sleep(0.05)
        depth = await worker.depth("work")
        assert (depth.ready, depth.active) == (0, 0)


async def test_a_topic_that_forgets_is_used_and_warned_of_once(site: Site, logs: list[Any]) -> None:
    """A topic that exists keeps its settings; those that lose messages are named with what they ought to be."""
    async with site.admin() as admin:
        settings = {"retention.ms": "86400000", "cleanup.policy": "compact"}
        await admin.create_topics([NewTopic(site.topic, 2, 1, topic_configs=settings)])

    async with site.opened() as worker:
        await worker.declare([QUEUE])
        assert len(worker._core.cluster.tps(site.topic)) == 2  # type: ignore[attr-defined]

    [told] = [one for one in logs if "lose messages" in one["event"]]
    assert told["topic"] == site.topic
    assert "retention.ms=86400000" in told["settings"]
    assert "cleanup.policy=compact" in told["settings"]


@pytest.mark.timeout(300)
async def test_a_map_that_would_not_fit_holds_new_messages_back(site: Site) -> None:
    """Beyond what the commit's metadata can say, a partition admits nothing until its oldest message is done; then all comes."""
    count, credit = 40_000, 8000
    chance = random.Random(1)
    async with site.opened() as worker:
        await worker.subscribe(QUEUE, credit, site.got.extend, lambda _lost: None)
        sent = [Message(queue="work", id=str(n), body=b"") for n in range(count)]
        for start in range(0, count, 5000):
            assert await worker.publish(sent[start : start + 5000], 30.0) == {}
        await until(lambda: site.got)
        [level] = worker._core.intakes["work"].levels  # type: ignore[attr-defined]
        [part] = level.reader.parts.values()
        oldest, unfinished, seen = site.got[0], [], 1

        while part.admits:
            fresh, seen = site.got[seen:], len(site.got)
            done = [one for one in fresh if chance.random() < 0.7]
            gone = set(map(id, done))
            unfinished += [one for one in fresh if id(one) not in gone]
            assert await worker.settle([Settlement(one, Verb.ACK) for one in done]) == []
            await until(lambda seen=seen: len(site.got) > seen or not part.admits)

        assert SAFE_SPAN <= part.tracker.span < count
        assert await worker.settle([Settlement(one, Verb.ACK) for one in [oldest, *unfinished]]) == []
        while seen < count:
            await until(lambda seen=seen: len(site.got) > seen)
            fresh, seen = site.got[seen:], len(site.got)
            assert await worker.settle([Settlement(one, Verb.ACK) for one in fresh]) == []


def test_what_loses_messages_depends_on_the_copies() -> None:
    """With one copy nothing can be lost between copies; what handrail makes itself is without hazard."""
    loose = {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"}

    assert hazards(loose, 1) == []
    assert len(hazards(loose, 3)) == 2
    assert hazards({"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}, 3) == []
    assert len(hazards({"retention.bytes": "1000", "cleanup.policy": "compact,delete"}, 1)) == 2
