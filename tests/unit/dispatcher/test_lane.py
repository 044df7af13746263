"""What a lane lets go of: messages that wait here while others might run them, or while a broker loses patience."""

from __future__ import annotations

from pathlib import Path

from handrail.adapter import BrokerSettings, Delivery, load
from handrail.config.model import QueueSettings
from handrail.dispatcher.lane import Lane
from handrail.dispatcher.settler import Settler
from handrail.message import Message


def lane(tmp_path: Path, waiting: int, *, running: int) -> Lane:
    """A lane with two slots, *running* of them taken, that has measured no rate yet."""
    adapter = load(BrokerSettings(name="default", url="sqlite::memory:", root=str(tmp_path)))
    settler = Settler(adapter, lambda _judged, _refused: None)
    made = Lane(QueueSettings(name="work", handler=None, concurrency=2), "async", settler)
    made.running = running
    made.buffer.extend(delivery(n) for n in range(waiting))
    return made


def delivery(n: int) -> Delivery:
    return Delivery(Message(queue="work", id=str(n), body=b""), n)


def test_what_waits_behind_full_slots_goes_back_in_its_order(tmp_path: Path) -> None:
    """When every slot is taken and none gets free, nothing waits here; when some are free, as many may."""
    full, free = lane(tmp_path, 5, running=2), lane(tmp_path, 5, running=0)

    assert [one.tag for one in full.relax()] == [0, 1, 2, 3, 4]
    assert [one.tag for one in free.relax()] == [2, 3, 4]
    assert not full.buffer
    assert [one.tag for one in free.buffer] == [0, 1]


def test_a_paused_worker_keeps_nothing(tmp_path: Path) -> None:
    """What a paused worker would start later, others may start now."""
    paused = lane(tmp_path, 2, running=0)

    assert [one.tag for one in paused.relax(paused=True)] == [0, 1]


def test_suspects_wait_for_their_turn_as_long_as_the_broker_lets_them(tmp_path: Path) -> None:
    """They go back when a broker would take them back soon, and never where it would not."""
    made = lane(tmp_path, 0, running=1)
    made.suspects.extend(delivery(n) for n in range(3))

    assert made.relax() == []
    assert made.relax(patience=1e9) == []
    assert [one.tag for one in made.relax(patience=0.0)] == [0, 1, 2]
    assert not made.suspects


def test_what_is_asked_back_is_taken_out_and_no_more(tmp_path: Path) -> None:
    """Of some deliveries those that wait come out, suspects first; what runs, and what else waits, stays where it is."""
    asked = lane(tmp_path, 4, running=1)
    suspect, other = delivery(8), delivery(9)
    asked.suspects.extend([suspect, other])
    runs = delivery(7)

    found = asked.take_waiting([runs, asked.buffer[3], asked.buffer[1], suspect])

    assert [one.tag for one in found] == [8, 1, 3]
    assert [one.tag for one in asked.buffer] == [0, 2]
    assert [one.tag for one in asked.suspects] == [9]
