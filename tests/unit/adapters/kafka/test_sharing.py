"""How partitions are shared: evenly, completely, and with as few moves as that allows."""

from __future__ import annotations

import random

import pytest
from aiokafka import TopicPartition

from handrail_kafka.sharing import Claim, share

TOPICS = frozenset({"t"})
NOTHING = Claim(-1, [])


def tps(*numbers: int) -> list[TopicPartition]:
    return [TopicPartition("t", number) for number in numbers]


def test_a_newcomer_gets_its_share_of_what_nobody_works_on() -> None:
    """Partitions with messages in hand stay, as long as there are others to move."""
    claim = Claim(3, [("t", 0, 5), ("t", 1, 0), ("t", 2, 1), ("t", 3, 0)])

    found = share({"t": range(4)}, {"z": (TOPICS, claim), "a": (TOPICS, NOTHING)})

    assert found == {"z": tps(0, 2), "a": tps(1, 3)}


def test_what_a_member_leaves_moves_and_nothing_else() -> None:
    """The others keep all they have: the loss of one disturbs no handler of another."""
    found = share(
        {"t": range(6)},
        {"a": (TOPICS, Claim(7, [("t", 4, 1), ("t", 1, 1)])), "b": (TOPICS, Claim(7, [("t", 0, 9), ("t", 5, 0)]))},
    )

    assert set(tps(1, 4)) <= set(found["a"])
    assert set(tps(0, 5)) <= set(found["b"])
    assert (len(found["a"]), len(found["b"])) == (3, 3)


def test_of_two_who_claim_the_same_the_later_has_it() -> None:
    """A member that was expelled and knows it not yet takes nothing from who has it now."""
    old, new = Claim(3, [("t", 0, 1)]), Claim(5, [("t", 0, 0)])

    assert share({"t": range(1)}, {"a": (TOPICS, old), "b": (TOPICS, new)}) == {"a": [], "b": tps(0)}


def test_nobody_gets_a_topic_that_it_does_not_read() -> None:
    """Members that know of different topics get each only what they asked for; a topic without readers waits."""
    found = share(
        {"t": range(2), "u": range(2), "v": range(1)},
        {"a": (frozenset({"t"}), NOTHING), "b": (frozenset({"t", "u"}), Claim(1, [("t", 0, 0), ("x", 0, 0)]))},
    )

    assert {tp.topic for tp in found["a"]} == {"t"}
    assert {tp for tp in found["b"] if tp.topic == "u"} == {TopicPartition("u", 0), TopicPartition("u", 1)}
    assert sum(map(len, found.values())) == 4


@pytest.mark.parametrize("seed", range(50))
def test_any_joins_and_leaves_stay_even_and_move_no_more_than_they_must(seed: int) -> None:
    """After each change all partitions are given, to one each, evenly; a member loses only what is above its new share."""
    chance = random.Random(seed)
    count, generation = chance.randrange(1, 30), 1
    members: dict[str, list[TopicPartition]] = {"m0": []}
    for step in range(1, 20):
        if chance.random() < 0.6 or len(members) == 1:
            members[f"m{chance.randrange(1000)}-{step}"] = []
        else:
            del members[chance.choice(list(members))]
        claims = {
            name: (TOPICS, Claim(generation, [(tp.topic, tp.partition, chance.randrange(3)) for tp in had]))
            for name, had in members.items()
        }
        generation += 1

        found = share({"t": range(count)}, claims)

        assert sorted(tp.partition for had in found.values() for tp in had) == list(range(count))
        sizes = [len(had) for had in found.values()]
        assert max(sizes) - min(sizes) <= 1
        for name, had in members.items():
            kept = len(set(had) & set(found[name]))
            assert kept >= min(len(had), count // len(members))
        members = found
