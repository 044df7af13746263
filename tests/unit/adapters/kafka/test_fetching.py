"""Records as the consumer's parser made them: the same messages, with or without what aiokafka builds around them."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from handrail_kafka.fetching import READ, spare

RECORDS: list[tuple[bytes | None, bytes | None, list[tuple[str, Any]]]] = [
    (None, b"{}", [("handrail-id", b"a"), ("handrail-sent-at", b"1764061234.5")]),
    (b"key", b"x" * 100_000, []),
    (b"", None, [("none", None), ("twice", b"1"), ("twice", b"\xff")]),
]


async def written(server: str) -> str:
    """A topic with RECORDS in it."""
    topic = f"f{uuid.uuid4().hex}"
    async with AIOKafkaProducer(bootstrap_servers=server) as producer:
        for key, value, headers in RECORDS:
            await producer.send_and_wait(topic, value, key=key, headers=headers, partition=0)
    return topic


async def read(server: str, topic: str, *, spared: bool) -> list[Any]:
    async with AIOKafkaConsumer(bootstrap_servers=server, auto_offset_reset="earliest") as consumer:
        if spared:
            spare(consumer)
        consumer.assign([TopicPartition(topic, 0)])
        found: list[Any] = []
        async with asyncio.timeout(30):
            while len(found) < len(RECORDS):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        return found


def test_spared_records_say_the_same(kafka: str) -> None:
    """All that is read of a record is what aiokafka's own record says, and its own is not built."""

    async def test() -> None:
        server = kafka.removeprefix("kafka://")
        topic = await written(server)

        full, spared = await read(server, topic, spared=False), await read(server, topic, spared=True)

        assert not any(hasattr(one, "topic") for one in spared)
        for one, other in zip(full, spared, strict=True):
            said = {name: getattr(other, name) for name in READ}
            assert {name: getattr(one, name) for name in READ} == {**said, "headers": tuple(said["headers"])}

    asyncio.run(test())


@pytest.mark.parametrize("fetcher", [SimpleNamespace(), SimpleNamespace(_proc_fetch_request=None, _records=[])])
def test_an_aiokafka_that_is_otherwise_inside_is_left_alone(fetcher: SimpleNamespace) -> None:
    """Where the fetcher has not the parts that are known, it is as it was."""
    before = dict(vars(fetcher))

    spare(SimpleNamespace(_fetcher=fetcher))

    assert vars(fetcher) == before
