"""A lane: one queue in one worker, with what was delivered and waits, what runs, and how much the broker may send."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterable

from handrail.adapter import Delivery, Subscription
from handrail.config.model import CONCURRENCY, QueueSettings
from handrail.dispatcher.sequences import Sequences
from handrail.dispatcher.settler import Settler

#: Seconds of work that is fetched ahead: about what one round trip to the broker and one batch of settling take under load.
AHEAD = 0.05
#: The most that is fetched ahead of the free slots, whatever the rate.
MOST_AHEAD = 2000
#: Seconds between two looks at the rate.
MEASURE_EVERY = 0.05
#: Seconds of work that may wait here before what is beyond it is given back: rates change, and others may be idle.
HOARD = 1.0
#: The most that may wait behind others of their sequence, or for a retry in place, beyond the window: so far one key with a
#: long backlog keeps no other from running.
MOST_HELD = 10_000
#: The window follows what is held in steps of so many.
_STEP = 64


class Lane:
    """One queue in one worker. It keeps counts; the dispatcher moves messages."""

    __slots__ = (
        "_finished",
        "_measured",
        "_rate",
        "buffer",
        "capacity",
        "claiming",
        "kind",
        "queue",
        "resting",
        "running",
        "sequences",
        "settler",
        "subscription",
        "suspects",
        "suspects_since",
        "unclaimed",
        "window",
    )

    def __init__(self, queue: QueueSettings, kind: str, settler: Settler, sequences: Sequences | None = None) -> None:
        self.settler = settler
        #: Where the queue keeps order by key or partition: who goes on, and who waits behind whom.
        self.sequences = sequences
        #: Waiting in hand for the moment of their retry, by id of the delivery.
        self.resting: dict[int, tuple[Delivery, asyncio.TimerHandle]] = {}
        self.subscription: Subscription | None = None
        #: Delivered, fit to run, not given to a host yet.
        self.buffer: deque[Delivery] = deque()
        #: Delivered, and to be asked for in the ledger, or behind one that is; whether that is under way.
        self.unclaimed: deque[Delivery] = deque()
        self.claiming = False
        #: Ran when their process died: they run alone, in a host of their own.
        self.suspects: deque[Delivery] = deque()
        #: Monotonic time since which there are some.
        self.suspects_since = 0.0
        #: Slots taken.
        self.running = 0
        self.queue = queue
        self.kind = kind
        self.capacity = 0
        self.window = 0
        self._finished = 0
        self._rate = 0.0
        self._measured = time.monotonic()
        self.adopt(queue, kind)

    def adopt(self, queue: QueueSettings, kind: str) -> None:
        """Follow new settings of the same queue."""
        self.queue = queue
        self.kind = kind
        self.capacity = concurrency(queue, kind)
        self.window = self.capacity + self.ahead + self._held
        if self.isolated:  # a process of its own for each job: that is what suspects need
            self.buffer.extendleft(reversed(self.suspects))
            self.suspects.clear()
        if self.subscription is not None:
            self.subscription.set_credit(self.window)

    @property
    def isolated(self) -> bool:
        return self.kind == "process"

    @property
    def ahead(self) -> int:
        """Messages to fetch beyond the free slots: none for slow handlers, enough to keep fast ones busy."""
        return min(int(self._rate * AHEAD), MOST_AHEAD)

    @property
    def _held(self) -> int:
        """Messages that wait for something else than a slot."""
        if self.sequences is None:
            return 0
        held = self.sequences.waiting + len(self.resting)
        return min(-(-held // _STEP) * _STEP, MOST_HELD)

    def fit(self) -> None:
        """Let the credit follow what is held."""
        self._set_window()

    def forget(self, lost: list[Delivery]) -> list[Delivery]:
        """*lost* is no longer ours. What waits is dropped; what runs may finish, and its outcome will be refused.

        Returns what may go on because that which it waited for is gone.
        """
        waiting = self.take_waiting(lost)
        if self.sequences is None:
            return []
        return self.sequences.forget(lost, {id(delivery) for delivery in waiting})

    def take_waiting(self, among: Iterable[Delivery] | None = None) -> list[Delivery]:
        """What was delivered and does not run, taken out: all of it, or what of it is *among* these."""
        wanted = None if among is None else {id(delivery) for delivery in among}
        waiting: list[Delivery] = []
        for container in (self.suspects, self.buffer, self.unclaimed):
            taken = [delivery for delivery in container if wanted is None or id(delivery) in wanted]
            if taken:
                kept = [] if wanted is None else [delivery for delivery in container if id(delivery) not in wanted]
                container.clear()
                container.extend(kept)
                waiting += taken
        for delivery, timer in list(self.resting.values()):
            if wanted is None or id(delivery) in wanted:
                timer.cancel()
                del self.resting[id(delivery)]
                waiting.append(delivery)
        if self.sequences is not None:
            waiting += self.sequences.take_waiting(wanted)
        return waiting

    def finished(self) -> None:
        """A job left its slot: measure the rate now and then, and let the credit follow it."""
        self.running -= 1
        self._finished += 1
        if self._finished & 31 == 0 or self._rate:
            self._measure()

    def _measure(self) -> None:
        now = time.monotonic()
        elapsed = now - self._measured
        if elapsed < MEASURE_EVERY:
            return
        rate = self._finished / elapsed
        self._finished = 0
        self._measured = now
        # fall at once, rise half way: hoarding is worse than a short wait
        self._set_rate(rate if rate < self._rate else (self._rate + rate) / 2)

    def measure_anew(self) -> None:
        """This process stood still: what did not end meanwhile says nothing of the handlers."""
        self._finished = 0
        self._measured = time.monotonic()

    def relax(self, *, paused: bool = False, patience: float | None = None) -> list[Delivery]:
        """Look at the rate though nothing may have ended for long; what now waits in vain is taken out and returned.

        *paused*: nothing is started now. *patience*: seconds for which suspects may wait for their turn, None: for ever.
        """
        if time.monotonic() - self._measured >= HOARD:
            self._measure()
        if self.sequences is not None:
            return []  # given back from the middle of a sequence, it would come again out of its turn
        # all slots may be taken for hours: others may be idle, and a broker may take back what is in hand for too long
        free = 0 if paused else max(0, self.capacity - self.running)
        given_back = []
        if len(self.buffer) > free + (0 if paused else int(self._rate * HOARD)):
            # all of it at once: where brokers put what comes later behind what came before, parts of it would change places
            given_back = [self.buffer.pop() for _ in range(len(self.buffer) - free)]
        if self.suspects and patience is not None and time.monotonic() - self.suspects_since > patience:
            given_back += [self.suspects.pop() for _ in range(len(self.suspects))]
        given_back.reverse()
        return given_back

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        self._set_window()

    def _set_window(self) -> None:
        window = self.capacity + self.ahead + self._held
        if window != self.window and self.subscription is not None:
            self.window = window
            self.subscription.set_credit(window)


def concurrency(queue: QueueSettings, kind: str) -> int:
    """How many handlers of *queue* run at once in one worker, the kind of handler deciding where the queue does not."""
    if queue.concurrency is not None:
        return queue.concurrency
    if kind == "process":
        return os.cpu_count() or 1
    return CONCURRENCY[kind]
