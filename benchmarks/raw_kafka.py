"""What aiokafka itself does: a bare producer that is as durable as ours, and a bare `getmany` loop that commits each 100 ms.

No ids, headers, delays, retries or acknowledgements of single messages: one topic of one partition, one consumer group, one
loop. A message counts as published when all replicas in sync have it (`acks=all`, idempotent), and as handled when `getmany`
gave it: nothing is decoded or called. That is done in a second loop, which decodes each message and has a task of its own call
a handler that only fires its callback, in the same process. The rate is from the first to the last, as with ours.

    python benchmarks/raw_kafka.py --url kafka://127.0.0.1:9092 [--messages 10000] [--size 200] [--rounds 5]

prints the medians of the rounds as JSON, under the names of ``measures.py``. With ``--sweep PREFIX`` it deletes instead
what a measured project made under that prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from handrail.adapter import BrokerSettings
from handrail_kafka.options import parse

#: Bytes of one batch of records, as in the adapter; the client's default of 16 KB halves the rate.
BATCH_BYTES = 256 << 10
#: Records given at once.
AT_ONCE = 500
#: Seconds between two commits.
COMMIT_EVERY = 0.1


async def publish(producer: AIOKafkaProducer, topic: str, body: bytes, messages: int) -> float:
    """Send all, one by one, and wait for none before the end; messages/s."""
    started = time.perf_counter()
    on_the_way = [await producer.send(topic, body, partition=0) for _ in range(messages)]
    await asyncio.gather(*on_the_way)
    return messages / (time.perf_counter() - started)


async def count(_records: list[Any]) -> None:
    """Handle *records* in no way at all."""


async def call(records: list[Any]) -> None:
    """Decode *records* and call a handler for each, in a task of its own; returns when all callbacks have fired."""
    left = len(records)
    done = asyncio.Event()

    def callback() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async def handler(_message: Any, callback: Callable[[], None]) -> None:
        callback()

    create_task = asyncio.get_running_loop().create_task
    tasks = [create_task(handler(json.loads(record.value), callback)) for record in records]
    await done.wait()
    await asyncio.gather(*tasks)


async def handle(
    server: dict[str, Any], topic: str, messages: int, take: Callable[[list[Any]], Awaitable[None]]
) -> float:
    """Have *take* handle all that *topic* holds; messages/s."""
    consumer = AIOKafkaConsumer(
        topic,
        **server,
        group_id=f"{topic}-{take.__name__}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        done = first = 0
        started = committed = 0.0
        while done < messages:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=AT_ONCE)).values():
                await take(records)
                done += len(records)
            now = time.perf_counter()
            if done and not first:
                first, started, committed = done, now, now
            if first and now - committed >= COMMIT_EVERY:
                await consumer.commit()
                committed = time.perf_counter()
        await consumer.commit()
        return (messages - first) / (time.perf_counter() - started)
    finally:
        await consumer.stop()


async def measure(server: dict[str, Any], messages: int, size: int, rounds: int) -> dict[str, float]:
    """The medians of *rounds*, each in a topic of its own."""
    body = b'{"n": "' + b"x" * (size - 9) + b'"}'
    admin = AIOKafkaAdminClient(**server)
    producer = AIOKafkaProducer(**server, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES)
    await admin.start()
    await producer.start()
    rates: dict[str, list[float]] = {"publish bulk": [], "handle": [], "handle, a task each": []}
    try:
        for _ in range(rounds):
            topic = f"raw-{uuid.uuid4().hex}"
            await admin.create_topics([NewTopic(topic, 1, 1)])
            try:
                # the first one finds the topic; it is not counted
                await producer.send_and_wait(topic, body, partition=0)
                rates["publish bulk"].append(await publish(producer, topic, body, messages))
                rates["handle"].append(await handle(server, topic, messages, count))
                rates["handle, a task each"].append(await handle(server, topic, messages, call))
            finally:
                await admin.delete_topics([topic])
    finally:
        await producer.stop()
        await admin.close()
    return {name: statistics.median(found) for name, found in rates.items()}


async def sweep(server: dict[str, Any], prefix: str) -> None:
    """Delete the topics whose names begin with *prefix*."""
    admin = AIOKafkaAdminClient(**server)
    await admin.start()
    try:
        await admin.delete_topics([topic for topic in await admin.list_topics() if topic.startswith(prefix)])
    finally:
        await admin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="kafka://HOST:PORT, with the options that the adapter takes")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep", metavar="PREFIX")
    options = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it tells of topics that it has not met yet
    server = parse(BrokerSettings("raw", options.url, ".")).client()
    if options.sweep:
        asyncio.run(sweep(server, options.sweep))
        return
    print(json.dumps(asyncio.run(measure(server, options.messages, options.size, options.rounds))))


if __name__ == "__main__":
    main()
