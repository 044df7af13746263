"""Giving deliveries back to one of the server's queues, so that they stand there in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from handrail_rabbitmq.link import Channel

#: Deliveries that go back in one go. A channel of RabbitMQ has 32 commands to a quorum queue under way; what is beyond waits
#: and goes as one, and of one with more than 32 messages some versions (3.10 is one) put them back in any order.
AT_ONCE = 24
#: Seconds between two looks whether the server has put them back, and for which it is waited at most, all told.
LOOK_EVERY, PATIENCE = 0.005, 2.0


async def put_back(channel: Channel, queue: str, numbers: Sequence[int]) -> None:
    """Return the deliveries *numbers*, which came from *queue* in that order. Raises :class:`GoneError`."""
    raw = channel.raw
    until = time.monotonic() + PATIENCE
    for start in range(0, len(numbers), AT_ONCE):
        more = start + AT_ONCE < len(numbers)
        before = (await channel.count(queue)).ready if more else 0
        for number in numbers[start : start + AT_ONCE]:
            channel.tell(raw.basic_nack, number, multiple=False, requeue=True)
        # a queue tells of what it has done, not of what it has been told; while others take from it, it may tell nothing new
        while more and time.monotonic() < until:
            await asyncio.sleep(LOOK_EVERY)
            if (await channel.count(queue)).ready != before:
                break
