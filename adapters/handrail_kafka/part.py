"""One partition in a worker's hands, and who handles what comes of it. It does no I/O.

A ``Part`` is the epoch: what was delivered of a part that is lost can never be settled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka import ConsumerRecord, TopicPartition

from handrail_kafka.deaths import Left
from handrail_kafka.progress import MOST_BOARDS, SAFE_SPAN, Counts, Stand, Tracker

if TYPE_CHECKING:
    from handrail_kafka.reader import Reader


#: An offset, and the text beside it.
Commit = tuple[int, str]


class Part:
    """One partition, for as long as it is ours without a break."""

    __slots__ = (
        "committed",
        "counts",
        "dirty",
        "draining",
        "full",
        "held",
        "left",
        "lost",
        "marks",
        "moved_at",
        "noted",
        "ours",
        "parked",
        "reader",
        "reclaimed",
        "sent",
        "stored",
        "told_held",
        "topic_id",
        "tp",
        "tracker",
    )

    def __init__(self, reader: Reader, tp: TopicPartition, stand: Stand, start: int) -> None:
        self.reader = reader
        self.tp = tp
        self.tracker = Tracker(start, stand.beyond)
        self.ours = stand.ours
        self.topic_id = stand.topic_id
        self.noted = stand.noted
        #: Set once, when it is no longer ours.
        self.lost = False
        #: What the owner has in hand of it, by offset.
        self.held: dict[int, Any] = {}
        self.told_held = 0
        #: Counts what was marked finished, and how much of it the server has.
        self.marks = 0
        self.committed = 0
        self.dirty = True
        #: The commit that the server has, as far as we know, and the last that was sent to it: offset and text.
        self.stored: Commit | None = None
        self.sent: Commit | None = None
        #: Another worker should have it: nothing of it is begun, until it moves or is restored.
        self.draining = False
        #: What came of it and would be begun if it were not draining.
        self.parked: list[ConsumerRecord] = []
        #: The map of what is finished grows too long: nothing new until the watermark moves.
        self.full = False
        self.moved_at = time.monotonic()
        self.reclaimed = 0
        #: Of messages that were given back where they lie, or wait there for their next attempt.
        self.counts: dict[int, Counts] = dict(stand.counts)
        #: What workers left behind that had it before and died, the last of them first.
        self.left: list[Left] = []

    def finish(self, offset: int) -> None:
        self.tracker.finish(offset)
        if self.counts:
            self.counts.pop(offset, None)
        self.marks += 1
        self.dirty = True

    def finish_held(self, offsets: Sequence[int]) -> int:
        """As :meth:`finish` for each, and no longer in hand; returns how many were."""
        held = self.held
        before = len(held)
        for offset in offsets:
            held.pop(offset, None)
        self.tracker.finish_all(offsets)
        if self.counts:
            for offset in offsets:
                self.counts.pop(offset, None)
        self.marks += len(offsets)
        self.dirty = True
        return before - len(held)

    def boards(self) -> tuple[tuple[int, str], ...]:
        """The boards of the dead whose messages are not all done: who has this after us may need them too."""
        watermark = self.tracker.watermark
        self.left = [left for left in self.left if left.below > watermark][:MOST_BOARDS]
        return tuple((left.below, left.board) for left in self.left)

    @property
    def pending(self) -> int:
        """What would be handled again if another worker had it now: what is in hand, and what the server has not heard of."""
        return len(self.held) + self.marks - self.committed

    @property
    def admits(self) -> bool:
        return not self.lost and not self.draining and (not self.full or self.tracker.span < SAFE_SPAN)


class Owner(Protocol):
    """What a reader asks of whoever handles its records."""

    @property
    def board(self) -> str:
        """Path of this worker's board, or nothing."""

    def bereaved(self, part: Part, board: str, below: int) -> None:
        """What of *part* is below that offset was with the worker of *board* before; it may have died."""

    def member(self, group: str, name: str) -> None:
        """We are in *group* as *name* from now on; with an empty name, no longer."""

    def take(self, part: Part, records: list[ConsumerRecord]) -> None:
        """*records* came and are not finished."""

    def wants(self, part: Part) -> bool:
        """Whether more records of *part* are welcome now."""

    @property
    def roomy(self) -> bool:
        """Whether more could be in hand than is there."""

    def withhold(self, parts: list[Part]) -> None:
        """*parts* are draining: begin nothing of them, and take back what is in hand and not begun. Asked for again and again."""

    def restore(self, parts: list[Part]) -> None:
        """*parts* stay here: go on with them."""

    def lose(self, parts: list[Part]) -> None:
        """*parts* are no longer ours."""

    def resumed(self) -> None:
        """The partitions that are ours may have changed, or the server takes commits again."""

    def refused(self, text: str) -> None:
        """The cluster does not let us read and commit, for a reason that waiting does not mend. It is tried on all the same."""
