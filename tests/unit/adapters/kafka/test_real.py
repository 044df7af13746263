"""What only a real server can show: refusals, deaths, foreign commits."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import OffsetAndMetadata

from handrail.adapter import Adapter, BrokerSettings, Delivery, QueueSpec, Settlement, Verb, load
from handrail.message import Message, new_id
from handrail_kafka.cluster import Cluster
from handrail_kafka.delays import Forwarder

#: host:port of the shared server.
SERVER = ""

QUEUE = QueueSpec(name="work", dead_letter="work.dead")


@pytest.fixture(autouse=True)
def _server(kafka: str) -> None:
    global SERVER
    SERVER = kafka.removeprefix("kafka://")


@asynccontextmanager
async def opened(prefix: str, role: str = "worker", **options: object) -> AsyncIterator[Adapter]:
    settings = BrokerSettings(
        name="default", url=f"kafka://{SERVER}", root="/", prefix=prefix, options={"partitions": 1, **options}
    )
    adapter = load(settings)
    await adapter.open(role)  # type: ignore[arg-type]
    try:
        await adapter.declare([QUEUE])
        yield adapter
    finally:
        await adapter.close()


async def taken(adapter: Adapter, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    await adapter.subscribe(QUEUE, 100, got.extend, lambda _lost: None)
    async with asyncio.timeout(30):
        while len(got) < count:
            await asyncio.sleep(0.01)
    return got


def messages(*bodies: bytes) -> list[Message]:
    return [Message(queue="work", id=new_id(), body=body) for body in bodies]


def run(test: Callable[[str], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(f"u{uuid.uuid4().hex[:8]}-")

    asyncio.run(main())


def test_a_record_that_the_server_refuses_fails_alone() -> None:
    """Its neighbours of the same batch are confirmed, and the next send works."""

    async def test(prefix: str) -> None:
        async with opened(prefix, "client") as adapter:
            # a topic of somebody who wants small records
            admin = AIOKafkaAdminClient(bootstrap_servers=SERVER)
            await admin.start()
            await admin.create_topics([NewTopic(f"{prefix}small", 1, 1, topic_configs={"max.message.bytes": "2000"})])
            await admin.close()
            sent = [Message(queue="small", id=new_id(), body=body) for body in (b"a", b"x" * 5000, b"b")]

            failed = await adapter.publish(sent, 20.0)

            assert list(failed) == [1]
            assert "max.message.bytes" in str(failed[1])
            assert await adapter.publish([Message(queue="small", id=new_id(), body=b"c")], 20.0) == {}
            assert [one.body for one in await adapter.peek("small", "ready", 10)] == [b"a", b"b", b"c"]

    run(test)


def test_after_a_restart_only_the_unfinished_come_again() -> None:
    """The first and the last of a thousand were not finished: those two come, whatever was finished between."""

    async def test(prefix: str) -> None:
        async with opened(prefix) as first:
            assert await first.publish(messages(*(b"%d" % n for n in range(100))), 20.0) == {}
            got = await taken(first, 100)
            assert await first.settle([Settlement(one, Verb.ACK) for one in got[1:-1]]) == []
        async with opened(prefix) as second:
            assert [one.message.body for one in await taken(second, 2)] == [b"0", b"99"]
            depth = await second.depth("work")
            assert (depth.ready, depth.active) == (0, 2)

    run(test)


@pytest.mark.parametrize("text", ["somebody else's", "hr2;1;1;0;-;;;b;9;!!", ""])
def test_foreign_metadata_skips_nothing(text: str) -> None:
    """A commit that another program made counts as far as its offset goes, and no further."""

    async def test(prefix: str) -> None:
        async with opened(prefix, "client") as client:
            assert await client.publish(messages(b"0", b"1", b"2"), 20.0) == {}
        topic = f"{prefix}work"
        other = AIOKafkaConsumer(bootstrap_servers=SERVER, group_id=topic, enable_auto_commit=False)
        await other.start()
        other.assign([TopicPartition(topic, 0)])
        await other.commit({TopicPartition(topic, 0): OffsetAndMetadata(1, text)})
        await other.stop()

        async with opened(prefix) as worker:
            assert [one.message.body for one in await taken(worker, 2)] == [b"1", b"2"]

    run(test)


def test_plain_json_of_another_client_is_a_message_and_reads_as_one() -> None:
    """Value and headers are all there is to it, in both directions."""

    async def test(prefix: str) -> None:
        async with opened(prefix) as worker:
            producer = AIOKafkaProducer(bootstrap_servers=SERVER)
            await producer.start()
            await producer.send_and_wait(f"{prefix}work", b'{"n": 1}', headers=[("a", b"1"), ("a", b"2")])
            await producer.stop()
            (got,) = await taken(worker, 1)

            assert (got.message.id, got.message.body) == (f"{prefix}work/0/0", b'{"n": 1}')
            await worker.settle([Settlement(got, Verb.DEAD, got.message)])
        reader = AIOKafkaConsumer(f"{prefix}work.dead", bootstrap_servers=SERVER, auto_offset_reset="earliest")
        await reader.start()
        record = await reader.getone()
        await reader.stop()
        assert record.value == b'{"n": 1}'
        assert [one for one in record.headers if one[0] == "a"] == [("a", b"1"), ("a", b"2")]

    run(test)


def test_a_worker_that_joins_and_leaves_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While handlers run, partitions move to a second worker and back: every message is handled once, none refused."""
    monkeypatch.setattr("handrail_kafka.reader.LAST_COMMIT", 20.0)  # a rebalance may hold it up

    async def test(prefix: str) -> None:
        done: list[bytes] = []
        refused: list[Settlement] = []
        running: set[asyncio.Task[None]] = set()
        sent: list[bytes] = []
        enough = False

        async def handle(adapter: Adapter, one: Delivery, handled: list[bytes]) -> None:
            await asyncio.sleep(0.02)
            done.append(one.message.body)
            handled.append(one.message.body)
            refused.extend(await adapter.settle([Settlement(one, Verb.ACK)]))

        async def serve(adapter: Adapter) -> list[bytes]:
            handled: list[bytes] = []

            def deliver(batch: list[Delivery]) -> None:
                for one in batch:
                    task = asyncio.get_running_loop().create_task(handle(adapter, one, handled))
                    running.add(task)
                    task.add_done_callback(running.discard)

            await adapter.subscribe(QUEUE, 5, deliver, lambda _lost: None)
            return handled

        async def keep_busy(client: Adapter) -> None:
            # however long a join takes, there is something in hand to disturb
            while not enough:
                if len(sent) - len(done) < 200:
                    bodies = [b"%d" % n for n in range(len(sent), len(sent) + 100)]
                    sent.extend(bodies)
                    assert await client.publish(messages(*bodies), 20.0) == {}
                await asyncio.sleep(0.01)

        async def until(true: Callable[[], bool]) -> None:
            async with asyncio.timeout(60):
                while not true():
                    if load.done():
                        await load
                    await asyncio.sleep(0.01)

        async with opened(prefix, "client", partitions=4) as client, opened(prefix, partitions=4) as first:
            load = asyncio.create_task(keep_busy(client))
            by_first = await serve(first)
            await until(lambda: len(by_first) > 50)
            async with opened(prefix, partitions=4) as second:
                by_second = await serve(second)
                await until(lambda: len(by_second) > 50)
                subscription = next(iter(second._core.intakes.values()))  # type: ignore[attr-defined]
                subscription.credit = 0
                await until(lambda: not subscription.held)
            before = len(by_first)
            await until(lambda: len(by_first) > before + 50)
            enough = True
            await load
            await until(lambda: len(done) >= len(sent) and not running)

        assert sorted(done) == sorted(sent)
        assert refused == []

    run(test)


def test_a_membership_that_ended_by_itself_is_renewed() -> None:
    """When the client's part in the group ends by a fault within, the reader connects anew and messages go on."""

    async def test(prefix: str) -> None:
        async with opened(prefix) as adapter:
            assert await adapter.publish(messages(b"before"), 20.0) == {}
            got = await taken(adapter, 1)
            reader = adapter._core.intakes["work"].levels[0].reader  # type: ignore[attr-defined]
            reader._consumer._coordinator._coordination_task.cancel()
            # nobody is left to join with it, and nothing in the client says so
            reader._consumer.subscribe([f"{prefix}work"], listener=reader)

            assert await adapter.publish(messages(b"after"), 20.0) == {}
            async with asyncio.timeout(30):
                while not any(one.message.body == b"after" for one in got):
                    await asyncio.sleep(0.01)

    run(test)


def test_what_is_finished_is_committed_when_more_topics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that gets another topic commits what it has before it joins anew, rather than wait for what cannot come."""
    monkeypatch.setattr("handrail_kafka.reader.LAST_COMMIT", 20.0)

    async def test(prefix: str) -> None:
        async with opened(prefix) as adapter:
            assert await adapter.publish(messages(b"1"), 20.0) == {}
            [one] = await taken(adapter, 1)
            await adapter.declare([QueueSpec(name="more")])
            reader = adapter._core.intakes["work"].levels[0].reader  # type: ignore[attr-defined]
            part, revoked, left = one.tag.part, reader.on_partitions_revoked, []

            async def watched(tps: Any) -> None:
                await revoked(tps)
                left.append(part.marks - part.committed)

            reader.on_partitions_revoked = watched
            part.finish(one.tag.offset)
            reader.touched()
            reader.subscribe([f"{prefix}work", f"{prefix}more"])
            async with asyncio.timeout(30):
                while not left:
                    await asyncio.sleep(0.01)

            assert left[0] == 0

    run(test)


def test_what_is_connected_is_not_connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a server that came late fails again and again, what stands by then is kept: one connection, and one forwarder."""
    began = Counter[str]()

    def failing(owner: type, name: str, times: int) -> None:
        by_itself = getattr(owner, name)

        async def fails(*arguments: Any) -> Any:
            began[name] += 1
            if began[name] <= times:
                raise errors.KafkaConnectionError("not yet")
            return await by_itself(*arguments)

        monkeypatch.setattr(owner, name, fails)

    failing(Cluster, "connect", 1)
    failing(Cluster, "refresh", 2)
    failing(Cluster, "warn_of_losses", 2)  # the last step of a declaration
    failing(Forwarder, "_run", 0)

    async def test(prefix: str) -> None:
        async with opened(prefix) as adapter:
            async with asyncio.timeout(30):
                while not adapter.health().up or began["warn_of_losses"] < 3:
                    await asyncio.sleep(0.01)
            assert await adapter.publish(messages(b"1"), 20.0) == {}

    run(test)
    assert (began["connect"], began["_run"]) == (2, 1)
