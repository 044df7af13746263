"""What the event loop and the writer pass to each other. It does nothing by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from handrail.adapter import Deliver, Delivery, Lost, QueueSpec, Settlement
from handrail.errors import SendError
from handrail.message import Message

if TYPE_CHECKING:
    from handrail_sqlite.writer import Writer


class Publish:
    """Messages to be stored."""

    __slots__ = ("abandoned", "errors", "future", "messages")

    def __init__(self, messages: Sequence[Message], future: asyncio.Future[dict[int, SendError]]) -> None:
        self.messages = messages
        self.future = future
        self.errors: dict[int, SendError] = {}
        #: Set on the loop when the sender waits no longer; what was not begun is not stored then.
        self.abandoned = False


class Settle:
    """Settlements to be carried out."""

    __slots__ = ("future", "refused", "settlements")

    def __init__(self, settlements: Sequence[Settlement], future: asyncio.Future[list[Settlement]]) -> None:
        self.settlements = settlements
        self.future = future
        self.refused: list[Settlement] = []


class Ask:
    """Anything else: called with the store on the writer's thread, again until it is answered."""

    __slots__ = ("call", "future", "offline")

    def __init__(self, call: Callable[[Writer], Any], future: asyncio.Future[Any], *, offline: bool = False) -> None:
        self.call = call
        self.future = future
        #: Whether it can be answered while the file is not open.
        self.offline = offline


class Intake:
    """The writer's side of a subscription."""

    __slots__ = (
        "cancelled",
        "credit",
        "deliver",
        "held",
        "hungry",
        "lost",
        "name",
        "paused",
        "queue",
        "spec",
        "waiting",
    )

    def __init__(self, spec: QueueSpec, name: str, credit: int, deliver: Deliver, lost: Lost) -> None:
        self.spec = spec
        #: With the prefix.
        self.name = name
        self.credit = credit
        self.deliver = deliver
        self.lost = lost
        self.paused = False
        self.cancelled = False
        #: Unsettled deliveries.
        self.held = 0
        #: Its id in the database.
        self.queue = -1
        #: Whether there may be something ready.
        self.hungry = True
        #: Claimed, but paused before they were delivered; touched by the loop alone.
        self.waiting: list[Delivery] = []

    def arrive(self, deliveries: list[Delivery], give_back: Callable[[list[Delivery]], None]) -> None:
        """On the loop: hand *deliveries* on, or keep them while paused."""
        if self.cancelled:
            give_back(deliveries)
        elif self.paused:
            self.waiting.extend(deliveries)
        else:
            self.deliver(deliveries)
