"""Measures the adapter beside a raw pika loop: python rabbitmq_bench.py URL [COUNT] [quorum|classic]. Asserts nothing."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench

from handrail.adapter import Delivery, QueueSpec, Settlement, Verb
from handrail.message import Message, new_id

BODY = b'{"to": "somebody@example.org", "n": 1, "text": "' + b"x" * 150 + b'"}'


async def connected(url: str) -> Any:
    opened = asyncio.get_running_loop().create_future()
    AsyncioConnection(pika.URLParameters(url), on_open_callback=opened.set_result)
    connection = await opened
    channel_open = asyncio.get_running_loop().create_future()
    channel = connection.channel(on_open_callback=channel_open.set_result)
    await channel_open
    return connection, channel


async def raw(url: str, count: int, kind: str) -> tuple[float, float]:
    """Messages/s published (window 1000) and consumed (an acknowledgement each, prefetch 500)."""
    connection, channel = await connected(url)
    loop = asyncio.get_running_loop()
    name = f"raw-{uuid.uuid4().hex[:8]}"
    declared = loop.create_future()
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind}, callback=declared.set_result)
    await declared
    confirmed = 0
    room = asyncio.Event()

    def on_confirm(frame: Any) -> None:
        nonlocal confirmed
        confirmed = frame.method.delivery_tag
        room.set()

    ready = loop.create_future()
    channel.confirm_delivery(on_confirm, callback=ready.set_result)
    await ready
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2, message_id=new_id())
    began = time.perf_counter()
    for n in range(count):
        while n - confirmed >= 1000:
            room.clear()
            await room.wait()
        channel.basic_publish("", name, BODY, properties, mandatory=True)
    while confirmed < count:
        room.clear()
        await room.wait()
    published = count / (time.perf_counter() - began)

    done = loop.create_future()
    got = 0

    def on_message(raw_channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal got
        got += 1
        raw_channel.basic_ack(method.delivery_tag)
        if got == count:
            done.set_result(None)

    channel.basic_qos(prefetch_count=500)
    began = time.perf_counter()
    channel.basic_consume(name, on_message)
    await done
    consumed = count / (time.perf_counter() - began)
    channel.queue_delete(name)
    await asyncio.sleep(0.2)
    connection.close()
    await asyncio.sleep(0.2)
    return published, consumed


async def ours(url: str, count: int, kind: str) -> tuple[float, float]:
    """The same through the adapter: published in batches of 500, settled in the batches that gather."""
    bench = Bench(url, Path.cwd())
    spec = QueueSpec(name="work", dead_letter="work.dead", options={"queue_type": kind})
    worker = await bench.open(spec=spec)
    now = time.time()
    sent = [Message(queue="work", id=new_id(), body=BODY, sent_at=now) for _ in range(count)]
    began = time.perf_counter()
    waiting: set[asyncio.Future[Any]] = set()
    for start in range(0, count, 500):
        waiting.add(asyncio.ensure_future(worker.publish(sent[start : start + 500], 60.0)))
        if len(waiting) >= 4:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(waiting)
    published = count / (time.perf_counter() - began)

    gathered: list[Delivery] = []
    came = asyncio.Event()

    def deliver(batch: list[Delivery]) -> None:
        gathered.extend(batch)
        came.set()

    began = time.perf_counter()
    await worker.subscribe(spec, 1000, deliver, lambda _lost: None)
    settled = 0
    while settled < count:
        came.clear()
        if not gathered:
            await came.wait()
        batch, gathered[:] = gathered[:], []
        await worker.settle([Settlement(one, Verb.ACK) for one in batch])
        settled += len(batch)
    consumed = count / (time.perf_counter() - began)
    await bench.close()
    return published, consumed


async def main(url: str, count: int, kind: str) -> None:
    for label, measure in (("raw pika", raw), ("handrail", ours), ("raw pika", raw), ("handrail", ours)):
        published, consumed = await measure(url, count, kind)
        print(f"{label} {kind}: {published:,.0f} published/s, {consumed:,.0f} consumed and acknowledged/s")  # noqa: T201


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(
        main(
            arguments[0],
            int(arguments[1]) if len(arguments) > 1 else 20_000,
            arguments[2] if len(arguments) > 2 else "quorum",
        )
    )
