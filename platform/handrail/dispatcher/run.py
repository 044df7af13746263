"""A run: one job in one host, from the hand-over to its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handrail.adapter import Delivery

if TYPE_CHECKING:
    from handrail.dispatcher.hosts import Host
    from handrail.dispatcher.lane import Lane


class Run:
    """One job in a host."""

    __slots__ = ("begun", "deadline", "delivery", "host", "lane", "limit", "slot", "token")

    def __init__(self, token: int, slot: int, lane: Lane, delivery: Delivery, host: Host, begun: float) -> None:
        #: Names the run on the pipe; never used twice.
        self.token = token
        #: Its place on the board, -1 without a board.
        self.slot = slot
        self.lane = lane
        self.delivery = delivery
        self.host = host
        #: Monotonic seconds at which it was given to the host.
        self.begun = begun
        #: The timeout in seconds, and the monotonic time at which it runs out; None: no limit.
        self.limit: float | None = None
        self.deadline: float | None = None
