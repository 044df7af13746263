"""Deliveries that are in hand for so long that the server may take them back, apart from those that came after them.

A server that waits for an acknowledgement longer than its consumer timeout closes the channel, and takes back *everything* that
was delivered on it. So before a delivery is half as old, its channel takes no more: what it holds finishes on it, as a *rest*,
and the queue goes on with a channel of its own. A handler without end then costs nobody else's outcome.

What the server takes back all the same is *astray*: when it comes to this worker again while its handler still runs, that
handler has it again, instead of a second one. What does not come within a moment is lost, as ever.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from handrail.adapter import Delivery
from handrail.message import Message

if TYPE_CHECKING:
    from handrail_rabbitmq.link import Channel

#: Seconds for which what the server took back may come again to the handler that still runs it.
ASTRAY = 2.0
#: The server's words when it takes a delivery back, with its consumer timeout.
_TIMED_OUT = re.compile(r"acknowledgement on channel .* timed out\. Timeout value used: (?P<milliseconds>\d+) ms")
_PRECONDITION = 406


def timed_out(channel: Channel) -> float | None:
    """The server's consumer timeout in seconds, when that is why *channel* closed."""
    found = _TIMED_OUT.search(channel.reason or "") if channel.code == _PRECONDITION else None
    return int(found["milliseconds"]) / 1000 if found is not None else None


class Ages:
    """How old the oldest delivery of a channel is, from looks now and then: the hot path keeps no times."""

    def __init__(self) -> None:
        # the newest delivery at each look, and when that was
        self._marks: deque[tuple[int, float]] = deque()
        self._before = 0.0

    def look(self, outstanding: deque[int], now: float) -> float:
        """The most seconds for which the first of *outstanding* can have been in hand; they are in order of delivery."""
        marks = self._marks
        if not outstanding:
            marks.clear()
            self._before = now
            return 0.0
        if not marks or marks[-1][0] < outstanding[-1]:
            marks.append((outstanding[-1], now))
        while marks[0][0] < outstanding[0]:
            self._before = marks.popleft()[1]
        return now - self._before

    def forget(self, now: float) -> None:
        """Another channel counts anew."""
        self._marks.clear()
        self._before = now


class Astray:
    """What the server took back while it may still be running here, by message id."""

    def __init__(self, call_later: Callable[..., object], lose: Callable[[list[Delivery]], None]) -> None:
        self._call_later = call_later
        self._lose = lose
        self._deliveries: dict[str, Delivery] = {}

    def add(self, deliveries: list[Delivery]) -> None:
        """Wait for *deliveries* to come again; those that do not are lost, and at once those that nothing tells from others.

        A foreign client may give one id to many messages: one of them would be acknowledged in the place of another.
        """
        known = [one for one in deliveries if one.message.unique]
        for delivery in known:
            self._deliveries[delivery.message.id] = delivery
        self._call_later(ASTRAY, self._expire, known)
        if len(known) < len(deliveries):
            self._lose([one for one in deliveries if not one.message.unique])

    def _expire(self, deliveries: list[Delivery]) -> None:
        gone = [one for one in deliveries if self._deliveries.get(one.message.id) is one]
        for delivery in gone:
            del self._deliveries[delivery.message.id]
        if gone:
            self._lose(gone)

    def back(self, message: Message) -> Delivery | None:
        """The delivery of that message, if it is awaited; it is not any more."""
        if (found := self._deliveries.get(message.id)) is None or found.message.send != message.send:
            return None
        return self._deliveries.pop(message.id) if message.unique else None

    def ended(self, delivery: Delivery) -> None:
        """Its handler is done with it: whoever gets the message again has to run it."""
        if self._deliveries.get(delivery.message.id) is delivery:
            del self._deliveries[delivery.message.id]

    def __bool__(self) -> bool:
        return bool(self._deliveries)
