"""Giving deliveries back to one of the server's queues, so that they stand there in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from handrail_rabbitmq.link import Channel

#: Deliveries that go back in one go. A channel of RabbitMQ has 32 commands to a quorum queue under way; what is beyond waits
#: and goes as one, and of one with more than 32 messages some versions (3.10 is one) put them back in any order. Two of ours may
#: go as one, for what others publish meanwhile looks like the return of the first.
AT_ONCE = 16
#: Seconds between two looks whether the server has put them back, and for which it is waited at most, all told.
LOOK_EVERY, PATIENCE = 0.005, 2.0
#: The same for what goes back in one go where others consume.
TAKEN = 0.1


async def put_back(channel: Channel, queue: str, numbers: Sequence[int], *, ours: int = 0) -> None:
    """Return the deliveries *numbers*, which came from *queue* in that order. Raises :class:`GoneError`.

    *ours*: how many consumers the server counts there that are the caller's, and take nothing now.
    """
    raw = channel.raw
    until = time.monotonic() + PATIENCE
    for start in range(0, len(numbers), AT_ONCE):
        chunk = numbers[start : start + AT_ONCE]
        more = start + len(chunk) < len(numbers)
        before = (await channel.count(queue)).ready if more else 0
        for number in chunk:
            channel.tell(raw.basic_nack, number, multiple=False, requeue=True)
        # a queue tells of what it has done, not of what it has been told
        told = time.monotonic()
        while more and time.monotonic() < until:
            await asyncio.sleep(LOOK_EVERY)
            found = await channel.count(queue)
            if found.ready >= before + len(chunk) or found.ready < before:
                break
            if found.consumers > ours and time.monotonic() > told + TAKEN:
                break  # others may take what comes back as fast as it does
