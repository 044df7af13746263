"""Which redeliveries are known to be done with, and which are somebody's only copy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from handrail.adapter import Delivery
from handrail.message import Message
from handrail_rabbitmq.tags import Finished, Tag, mark


def delivery(*, attempts: int = 0, due: float | None = None, level: int | str = 4, body: bytes = b"{}") -> Delivery:
    intake: Any = SimpleNamespace(full="work")
    consumer: Any = SimpleNamespace(level=level)
    message = Message(queue="work", id="one", body=body, attempts=attempts, due=due)
    return Delivery(message, Tag(intake, consumer, 1, (attempts, 0, due)), redelivered=True)


def test_a_finished_delivery_is_known_once_when_it_comes_again() -> None:
    """Its redelivery is acknowledged instead of run, even though the dispatcher has counted the attempt in the meantime."""
    finished, done = Finished(), delivery()
    done.message.attempts += 1
    finished.add(mark(done))

    assert finished.has(delivery())
    assert not finished.has(delivery())


def test_the_copy_that_took_its_place_is_not_taken_for_it() -> None:
    """A retry, interrupted work and another message of the same id run, though the original's acknowledgement was in doubt."""
    finished = Finished()
    finished.add(mark(delivery()))

    assert not finished.has(delivery(attempts=1))
    assert not finished.has(delivery(due=5.0))
    assert not finished.has(delivery(level="head"))
    assert not finished.has(delivery(body=b"[]"))
    assert finished.has(delivery())
