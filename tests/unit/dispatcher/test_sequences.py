"""Who goes on and who waits behind whom, against a model, whatever comes in between."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from handrail.adapter import Delivery
from handrail.dispatcher.sequences import Sequences
from handrail.message import Message


def delivery(sequence: str | None, number: int) -> Delivery:
    made = Delivery(Message(queue="q", id=str(number), body=b""), None)
    made.sequence = sequence
    return made


def test_one_of_a_sequence_goes_on_and_the_next_when_it_has_left() -> None:
    """The first of each goes on at once, what is in no sequence always does, and the rest as those before them leave."""
    a1, a2, b1, free = delivery("a", 1), delivery("a", 2), delivery("b", 1), delivery(None, 1)
    sequences = Sequences()

    assert sequences.admit([a1, a2, b1, free]) == [a1, b1, free]
    assert sequences.waiting == 1
    assert sequences.leave(a1) is a2
    assert sequences.leave(a2) is None
    assert sequences.leave(b1) is None
    assert not sequences


def test_what_was_taken_out_does_not_leave_for_another() -> None:
    """One that waited and was given back says nothing of the one that it waited for."""
    first, second, third = (delivery("a", n) for n in range(3))
    sequences = Sequences()
    sequences.admit([first, second])

    assert sequences.take_waiting() == [second]
    assert sequences.leave(second) is None
    assert sequences.admit([third]) == []
    assert sequences.leave(first) is third


def test_of_what_waits_only_what_is_wanted_is_taken_out() -> None:
    """What moves to another worker leaves those of other partitions in their turn."""
    a1, a2, a3, b1, b2 = (delivery(name, n) for name, n in (("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)))
    sequences = Sequences()
    sequences.admit([a1, a2, a3, b1, b2])

    assert sequences.take_waiting({id(a1), id(a2)}) == [a2]
    assert sequences.waiting == 2
    assert sequences.leave(a1) is a3
    assert sequences.leave(b1) is b2


def test_a_lost_head_that_runs_holds_its_sequence_until_it_has_ended() -> None:
    """A partition that comes back brings its messages again: they wait for what still runs of before."""
    first, behind, again = delivery("a", 1), delivery("a", 2), delivery("a", 1)
    sequences = Sequences()
    sequences.admit([first, behind])

    assert sequences.forget([first, behind], idle=set()) == []
    assert sequences.is_lost(first)
    assert sequences.admit([again]) == []
    assert sequences.leave(first) is again
    assert not sequences.is_lost(first)


def test_a_lost_head_that_only_waited_makes_room() -> None:
    """When what had not begun is lost and what is behind it is not, that goes on."""
    first, behind = delivery("a", 1), delivery("a", 2)
    sequences = Sequences()
    sequences.admit([first, behind])

    assert sequences.forget([first], idle={id(first)}) == [behind]


@pytest.mark.parametrize("seed", range(30))
def test_any_course_of_events_keeps_each_sequence_in_order_and_alone(seed: int) -> None:
    """Random arrivals, ends and losses: of each sequence one at most goes on at a time, as they came, and none is forgotten."""
    chance = random.Random(seed)
    sequences, number = Sequences(), 0
    going: dict[str, Delivery] = {}
    expected: dict[str, list[Delivery]] = defaultdict(list)

    def begin(started: list[Delivery]) -> None:
        for one in started:
            name = str(one.sequence)
            assert name not in going
            assert expected[name].pop(0) is one
            going[name] = one

    for _ in range(500):
        event = chance.random()
        if event < 0.5:
            batch = [delivery(chance.choice("abcd"), number := number + 1) for _ in range(chance.randrange(1, 5))]
            for one in batch:
                expected[str(one.sequence)].append(one)
            begin(sequences.admit(batch))
        elif event < 0.9 and going:
            following = sequences.leave(going.pop(chance.choice(list(going))))
            begin([following] if following is not None else [])
        elif going:
            name = chance.choice(list(going))
            lost = [going[name], *expected[name]]
            expected[name].clear()
            idle = chance.random() < 0.5
            if idle:
                del going[name]
            begin(sequences.forget(lost, {id(lost[0])} if idle else set()))
    while going:
        following = sequences.leave(going.pop(next(iter(going))))
        begin([following] if following is not None else [])
    assert not sequences
    assert sequences.waiting == 0
    assert not any(expected.values())
