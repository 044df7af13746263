"""Order by key: of the deliveries of one sequence, one goes on and the others wait behind it. It starts and settles nothing.

A delivery leaves its sequence when its outcome is durable, not when its handler ends: so whatever dies in between, nothing
of a sequence runs after what follows it, a repetition included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

from handrail.adapter import Adapter, Capability, Delivery
from handrail.config.model import QueueSettings

#: What a broker must be able to do for a queue's order to hold.
_ORDERS = {"key": Capability.BY_KEY, "partition": Capability.BY_PARTITION}


def is_ordered(queue: QueueSettings) -> bool:
    """Whether messages of *queue* run one after another, by sequences."""
    return queue.order in _ORDERS


def limit_of(queue: QueueSettings, adapter: Adapter) -> str:
    """Within what limit *adapter* keeps the order of *queue*; empty when there is none."""
    able = adapter.capabilities.get(_ORDERS[queue.order], False)
    return able if isinstance(able, str) else ""


def refusal(queue: QueueSettings, adapter: Adapter) -> str:
    """One line of why *queue* cannot be served in its order through *adapter*; empty when it can."""
    if queue.order not in _ORDERS or adapter.capabilities.get(_ORDERS[queue.order], False):
        return ""
    return (
        f"queue {queue.name}: {adapter.name} cannot keep `order: {queue.order}`; take that away, or bind the queue to a "
        "broker that can (platform capabilities)"
    )


class Sequences:
    """The sequences of one queue that are in this worker's hands. They outlive a lane, since what runs does."""

    __slots__ = ("_behind", "_heads", "_lost", "waiting")

    def __init__(self) -> None:
        #: The one that may go on, of each sequence that has any.
        self._heads: dict[Hashable, Delivery] = {}
        #: What waits behind it, as it came.
        self._behind: dict[Hashable, deque[Delivery]] = {}
        #: Heads that are no longer ours, while what became of them is not known yet.
        self._lost: set[int] = set()
        #: How many wait behind others.
        self.waiting = 0

    def admit(self, batch: Iterable[Delivery]) -> list[Delivery]:
        """Those of *batch* that may go on now; the others wait here."""
        turn = []
        for delivery in batch:
            sequence = delivery.sequence
            if sequence is None:
                turn.append(delivery)
            elif sequence not in self._heads:
                self._heads[sequence] = delivery
                turn.append(delivery)
            else:
                self._behind.setdefault(sequence, deque()).append(delivery)
                self.waiting += 1
        return turn

    def leave(self, delivery: Delivery) -> Delivery | None:
        """*delivery* is settled or no longer ours; returns the next of its sequence, which may go on now."""
        sequence = delivery.sequence
        if self._heads.get(sequence) is not delivery:
            return None  # it was behind others, and has been taken out already
        self._lost.discard(id(delivery))
        behind = self._behind.get(sequence)
        if not behind:
            del self._heads[sequence]
            return None
        following = self._heads[sequence] = behind.popleft()
        self.waiting -= 1
        if not behind:
            del self._behind[sequence]
        return following

    def is_lost(self, delivery: Delivery) -> bool:
        """Whether the head *delivery* was lost since it went on."""
        return id(delivery) in self._lost

    def forget(self, lost: Iterable[Delivery], idle: set[int]) -> list[Delivery]:
        """*lost* is no longer ours; *idle* are the ids of those whose outcome nobody waits for. Returns who may go on now."""
        gone = {id(delivery) for delivery in lost}
        self.take_waiting(gone)
        turn = []
        for head in [head for head in self._heads.values() if id(head) in gone]:
            if id(head) not in idle:
                self._lost.add(id(head))  # it runs, or is being settled: `leave` comes when that has ended
            elif (following := self.leave(head)) is not None:
                turn.append(following)
        return turn

    def take_waiting(self, wanted: set[int] | None = None) -> list[Delivery]:
        """What waits behind others, taken out: all of it, or what of it has its id in *wanted*."""
        waiting: list[Delivery] = []
        for sequence, behind in list(self._behind.items()):
            kept = [] if wanted is None else [delivery for delivery in behind if id(delivery) not in wanted]
            if len(kept) == len(behind):
                continue
            waiting += behind if wanted is None else [delivery for delivery in behind if id(delivery) in wanted]
            if kept:
                self._behind[sequence] = deque(kept)
            else:
                del self._behind[sequence]
        self.waiting -= len(waiting)
        return waiting

    def __bool__(self) -> bool:
        """Whether anything of any sequence is in hand."""
        return bool(self._heads)
