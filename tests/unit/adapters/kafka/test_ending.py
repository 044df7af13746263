"""Consumers that cannot end in order: nothing of them is left, and who ends them is not ended with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from handrail_kafka import ending


async def begun(server: str) -> tuple[Any, list[asyncio.Task[Any]]]:
    """A consumer with two fetches that failed and wait to be tried again."""
    consumer = AIOKafkaConsumer(bootstrap_servers=server)
    await consumer.start()
    await asyncio.sleep(0)  # its own tasks begin
    waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(2)]
    consumer._fetcher._pending_tasks.update(waiting)
    return consumer, waiting


async def test_a_consumer_whose_fetches_fail_just_then_leaves_nothing(kafka: str) -> None:
    """Its own `stop` raises a cancellation that nobody asked for; ours raises nothing, and ends all of it."""
    before = asyncio.all_tasks()
    consumer, waiting = await begun(kafka.removeprefix("kafka://"))

    await ending.stop_consumer(consumer)

    async with asyncio.timeout(30):
        await asyncio.wait(waiting)
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)
    assert not any(connection.connected() for connection in consumer._client._conns.values())


async def test_who_is_cancelled_while_a_consumer_ends_leaves_nothing_either(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation goes on to whoever asked for it, when the consumer has ended."""
    before = asyncio.all_tasks()
    consumer, _waiting = await begun(kafka.removeprefix("kafka://"))
    stops = asyncio.Event()

    async def hang() -> None:
        stops.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(consumer._coordinator, "close", hang)
    task = asyncio.create_task(ending.stop_consumer(consumer))
    await stops.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)
    assert not any(connection.connected() for connection in consumer._client._conns.values())
