"""Ending aiokafka's clients when their own ``stop`` cannot: it leaves tasks behind when it is cut short.

On a loop that goes on they would go on too, and heartbeats of a consumer that nobody reads would keep its partitions from others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from handrail.logger import get_logger

log = get_logger("handrail.kafka")

#: Seconds for a ``stop`` to get to its end.
STOP_PATIENCE = 10.0
#: Seconds for each step that talks to nobody.
PATIENCE = 5.0


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop *consumer* in order, or else anyhow; also when the caller is cancelled meanwhile.

    In a task of its own: a consumer whose fetch fails just then awaits a task that it cancelled itself, and raises
    CancelledError into whoever stops it.
    """
    stopping = asyncio.get_running_loop().create_task(consumer.stop())
    try:
        await asyncio.wait([stopping], timeout=STOP_PATIENCE)
    finally:
        if (trouble := _trouble(stopping)) is not None:
            log.debug("a consumer did not stop in order", group=consumer._group_id, error=trouble)
            stopping.cancel()
            await end_consumer(consumer)


async def end_consumer(consumer: AIOKafkaConsumer) -> None:
    """What is left of *consumer* after a ``stop`` that did not get to its end."""
    coordinator = consumer._coordinator
    for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task"):
        _cancel(getattr(coordinator, name, None))
    fetcher = consumer._fetcher
    if fetcher is not None:
        await _bounded(fetcher.close())
        for task in fetcher._pending_tasks:  # it ends at the first of them that it cannot end in order
            _cancel(task)
    await _bounded(consumer._client.close())


async def end_producer(producer: AIOKafkaProducer) -> None:
    """What is left of *producer* after a ``stop`` that did not get to its end."""
    _cancel(getattr(producer._sender, "sender_task", None))
    await _bounded(producer.client.close())


def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()


async def _bounded(step: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(step)
    await asyncio.wait([task], timeout=PATIENCE)
    if _trouble(task) is not None:
        task.cancel()


def _trouble(task: asyncio.Task[None]) -> str | None:
    """Why *task* did not come to its end in order, or None if it did."""
    if not task.done():
        return "it takes too long"
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    return None if error is None else repr(error)
