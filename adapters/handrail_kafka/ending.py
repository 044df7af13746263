"""Ending aiokafka's clients when their own ``stop`` cannot: it leaves tasks behind when it is cut short.

On a loop that goes on they would go on too, and heartbeats of a consumer that nobody reads would keep its partitions from others.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors

#: Seconds for each step that talks to nobody.
PATIENCE = 5.0


async def end_consumer(consumer: AIOKafkaConsumer) -> None:
    """What is left of *consumer* after a ``stop`` that did not get to its end."""
    coordinator = consumer._coordinator
    for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task"):
        _cancel(getattr(coordinator, name, None))
    if consumer._fetcher is not None:
        await _bounded(consumer._fetcher.close())
    await _bounded(consumer._client.close())


async def end_producer(producer: AIOKafkaProducer) -> None:
    """What is left of *producer* after a ``stop`` that did not get to its end."""
    _cancel(getattr(producer._sender, "sender_task", None))
    await _bounded(producer.client.close())


def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()


async def _bounded(step: Any) -> None:
    with contextlib.suppress(TimeoutError, errors.KafkaError, OSError):
        async with asyncio.timeout(PATIENCE):
            await step
