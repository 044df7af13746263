"""What is kept of each delivery: its tag, the consumer by which it came, and what tells it from every other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handrail.adapter import Delivery

if TYPE_CHECKING:
    from handrail_rabbitmq.consuming import Intake

Level = int | str
#: Queue, level, id, hash of the body, and counts: see :func:`mark`.
Mark = tuple[str, Level, str, int, tuple[int, int, float | None]]
OPEN, DONE, LOST, MOVING = 0, 1, 2, 3


class Consumer:
    """One consumer on the server, of one level."""

    __slots__ = ("acked", "full", "level", "prefetch", "tag", "unsettled")

    def __init__(self, level: Level, tag: str, prefetch: int) -> None:
        self.level = level
        self.tag = tag
        self.prefetch = prefetch
        #: What it delivered and is not settled; and what is, of which the server has not heard yet.
        self.unsettled = self.acked = 0
        #: Whether that was once all that its prefetch allows: the server may have had more.
        self.full = False


class Tag:
    """The handle of a delivery."""

    __slots__ = ("consumer", "counts", "intake", "number", "rank", "state")

    def __init__(self, intake: Intake, consumer: Consumer, number: int, counts: tuple[int, int, float | None]) -> None:
        self.intake = intake
        self.consumer = consumer
        #: The server's delivery tag, on the channel that the intake had then.
        self.number = number
        #: Place among the hidden: the lowest first. Set when it is hidden.
        self.rank = (0, 0, 0)
        self.state = OPEN
        #: Attempts, starts and due time with which it came: what is put in its place has others.
        self.counts = counts


def mark(delivery: Delivery) -> Mark:
    """What tells a delivery from every other, its own redelivery excepted, and from the copy that a move puts in its place."""
    tag: Tag = delivery.tag
    message = delivery.message
    return (tag.intake.full, tag.consumer.level, message.id, hash(message.body), tag.counts)


class Finished:
    """Deliveries whose acknowledgement may not have reached the server: their redeliveries are acknowledged at once.

    Where it did reach it, none of these comes again; but a retry of the message does, by the same id, and may be redelivered.
    """

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._marks: dict[Mark, None] = {}

    def add(self, finished: Mark) -> None:
        self._marks[finished] = None
        if len(self._marks) > self._most:
            del self._marks[next(iter(self._marks))]

    def has(self, delivery: Delivery) -> bool:
        return bool(self._marks) and self._marks.pop(mark(delivery), 0) is None
