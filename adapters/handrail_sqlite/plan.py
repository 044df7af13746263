"""What a group of settlements comes to, as arguments for the statements. It asks no database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec

from handrail.adapter import Delivery, Settlement, Verb
from handrail.logger import get_logger
from handrail.message import Message
from handrail.outcome import Fault
from handrail_sqlite import rows
from handrail_sqlite import statements as sql
from handrail_sqlite.commands import Intake, Settle

log = get_logger("handrail.sqlite")


class Tag(msgspec.Struct, eq=False):
    """The adapter's handle on a delivery."""

    seq: int
    queue: int
    more: int
    body: bytes
    subscription: Intake


class Plan:
    """One group of settlements. Build it with :meth:`take`, then :meth:`resolve` the names of queues that moves go to."""

    def __init__(self, prefix: str = "", now: int = 0) -> None:
        self._prefix = prefix
        self._now = now
        #: Deliveries that are no longer held once this is committed, and by how many each intake is relieved.
        self.taken: list[Delivery] = []
        self.freed: dict[Intake, int] = defaultdict(int)
        #: Rows to delete: ACK, and DEAD where dead letters are dropped.
        self.acks: list[int] = []
        #: Untouched, back to the head.
        self.released: list[int] = []
        #: seq, attempts, starts, crashes, redelivered: back to the head with these.
        self.given_back: list[tuple[int, int, int, int, int]] = []
        #: Of the two above, those whose queue is newest first; the first of them is to be delivered first.
        self.heads: list[int] = []
        #: seq, attempts, starts, crashes, due of what stays in hand, or goes back with another due time.
        self.held: list[tuple[int, int, int, int, int | None]] = []
        #: Names of the queues that moves go to.
        self.names: set[str] = set()
        #: As the statement MOVE takes them, but for the queue, which may be a name before :meth:`resolve`.
        self.moves: list[tuple[Any, ...]] = []
        self.bodies: list[tuple[int, bytes]] = []
        self.extras: list[tuple[int, bytes]] = []
        self.faults: list[tuple[int, str, Fault]] = []
        #: Rows of the side tables that go away.
        self.no_extra: list[int] = []
        self.no_fault: list[int] = []
        #: Changes of the counters: (queue, state) → by how many.
        self.counts: dict[tuple[int, int], int] = defaultdict(int)
        #: Due times of what goes to the delays.
        self.delays: list[int] = []

    @property
    def durable(self) -> bool:
        """Whether a power cut must not undo it: what was only acknowledged comes again, but a count or a move stands."""
        return bool(self.moves or self.given_back or self.held)

    def take(self, command: Settle, held: dict[int, Delivery]) -> None:
        """Add *command*, taking its deliveries out of *held*; those that are not there are refused."""
        command.refused = []
        counts, acks = self.counts, self.acks
        for settlement in command.settlements:
            delivery = settlement.delivery
            tag = delivery.tag
            if not isinstance(tag, Tag) or held.get(tag.seq) is not delivery:
                command.refused.append(settlement)
                continue
            if settlement.verb == Verb.HOLD:
                self._hold(tag, settlement.message)
                continue
            del held[tag.seq]
            self.taken.append(delivery)
            self.freed[tag.subscription] += 1
            counts[tag.queue, sql.ACTIVE] -= 1
            if settlement.verb == Verb.ACK:
                acks.append(tag.seq)
                if tag.more:
                    self._bare(tag.seq)
            elif settlement.verb == Verb.RELEASE:
                self.release(tag, settlement.message)
            elif not self._move(tag, settlement):
                command.refused.append(settlement)

    def release(self, tag: Tag, message: Message | None) -> None:
        """Back to the head, with the counts of *message* where it has any news."""
        self.counts[tag.queue, sql.READY] += 1
        if message is None:
            self.released.append(tag.seq)
        else:
            if message.due is not None:
                self._hold(tag, message)
            self.given_back.append((tag.seq, message.attempts, message.starts, message.crashes, 1))
        if tag.subscription.spec.order == "lifo":
            self.heads.append(tag.seq)

    def _hold(self, tag: Tag, message: Message | None) -> None:
        if message is not None:
            due = None if message.due is None else rows.micros(message.due)
            self.held.append((tag.seq, message.attempts, message.starts, message.crashes, due))

    def _bare(self, seq: int) -> None:
        self.no_extra.append(seq)
        self.no_fault.append(seq)

    def _move(self, tag: Tag, settlement: Settlement) -> bool:
        """To the tail, the delays or the dead. Whether that could be done: what no row can hold goes back untouched."""
        message = settlement.message or settlement.delivery.message
        fault = message.fault if settlement.verb == Verb.DEAD else None
        try:
            data = rows.meta(message)
            due = None if message.due is None else rows.micros(message.due)
            body = message.body if type(message.body) is bytes else bytes(message.body)
            priority = int(message.priority)
            (message.id + message.queue).encode()
            if fault is not None:
                (fault.reason + fault.traceback + fault.queue).encode()
                rows.micros(fault.at)
        except (TypeError, ValueError, OverflowError) as error:
            # one message that cannot be written must not keep its whole group from being settled
            log.error("a message cannot be stored as it was to be; it goes back", id=message.id, error=str(error))
            self.release(tag, None)
            return False
        more = 0 if data is None else sql.EXTRA
        target: int | str
        if settlement.verb == Verb.DEAD:
            spec = tag.subscription.spec
            if spec.dead_letter is None:
                self.acks.append(tag.seq)
                self._bare(tag.seq)
                return True
            state, target = sql.DEAD, tag.queue
            more |= sql.FAULT
            self.counts[tag.queue, sql.DEAD] += 1
            fault = fault or Fault(reason="dead-lettered without a reason")
            if not fault.queue or not fault.at:
                fault = msgspec.structs.replace(fault, at=fault.at or self._now / 1e6, queue=fault.queue or spec.name)
            self.faults.append((tag.seq, self._prefix + spec.dead_letter, fault))
        else:
            state, target = sql.READY, self._prefix + message.queue
            if due is not None and due > self._now:
                state = sql.DELAYED
                self.delays.append(due)
            self.names.add(target)
            if tag.more & sql.FAULT:
                self.no_fault.append(tag.seq)
        if data is not None:
            self.extras.append((tag.seq, data))
        elif tag.more & sql.EXTRA:
            self.no_extra.append(tag.seq)
        if body is not tag.body and body != tag.body:
            self.bodies.append((tag.seq, body))
        counts = message.attempts, message.starts, message.crashes
        self.moves.append((tag.seq, target, state, priority, due, *counts, len(body), more, message.id))
        return True

    def resolve(self, queues: Mapping[str, int]) -> set[int]:
        """Put ids in the place of names, now that all have one; returns the queues that have something ready by this."""
        for at, move in enumerate(self.moves):
            if isinstance(move[1], str):
                target = queues[move[1]]
                self.moves[at] = (move[0], target, *move[2:])
                self.counts[target, move[2]] += 1
        return {queue for (queue, state), by in self.counts.items() if state == sql.READY and by > 0}
