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

    found, wanted = share({"t": range(4)}, {"z": (TOPICS, claim), "a": (TOPICS, NOTHING)})

    assert found == {"z": tps(0, 2), "a": tps(1, 3)}
    assert wanted == {"z": [], "a": []}


def test_what_is_in_hand_is_wanted_and_moves_when_it_is_not() -> None:
    """A partition with messages in hand stays with its owner, who is told to empty it; the next sharing moves it."""
    busy = Claim(3, [("t", 0, 9), ("t", 1, 1), ("t", 2, 1), ("t", 3, 0)])

    found, wanted = share({"t": range(4)}, {"z": (TOPICS, busy), "a": (TOPICS, NOTHING)})

    assert found == {"z": tps(0, 1, 2), "a": tps(3)}
    assert wanted == {"z": tps(2), "a": []}
    claims = {"z": (TOPICS, Claim(4, [("t", 0, 9), ("t", 1, 1), ("t", 2, 0)])), "a": (TOPICS, Claim(4, [("t", 3, 5)]))}
    assert share({"t": range(4)}, claims) == ({"z": tps(0, 1), "a": tps(2, 3)}, {"z": [], "a": []})


def test_what_a_member_leaves_moves_and_nothing_else() -> None:
    """The others keep all they have: the loss of one disturbs no handler of another."""
    found, wanted = share(
        {"t": range(6)},
        {"a": (TOPICS, Claim(7, [("t", 4, 1), ("t", 1, 1)])), "b": (TOPICS, Claim(7, [("t", 0, 9), ("t", 5, 0)]))},
    )

    assert set(tps(1, 4)) <= set(found["a"])
    assert set(tps(0, 5)) <= set(found["b"])
    assert (len(found["a"]), len(found["b"])) == (3, 3)
    assert wanted == {"a": [], "b": []}


def test_of_two_who_claim_the_same_the_later_has_it() -> None:
    """A member that was expelled and knows it not yet takes nothing from who has it now."""
    old, new = Claim(3, [("t", 0, 1)]), Claim(5, [("t", 0, 0)])

    assert share({"t": range(1)}, {"a": (TOPICS, old), "b": (TOPICS, new)})[0] == {"a": [], "b": tps(0)}


def test_nobody_gets_a_topic_that_it_does_not_read() -> None:
    """Members that know of different topics get each only what they asked for; a topic without readers waits."""
    found, _wanted = share(
        {"t": range(2), "u": range(2), "v": range(1)},
        {"a": (frozenset({"t"}), NOTHING), "b": (frozenset({"t", "u"}), Claim(1, [("t", 0, 0), ("x", 0, 0)]))},
    )

    assert {tp.topic for tp in found["a"]} == {"t"}
    assert {tp for tp in found["b"] if tp.topic == "u"} == {TopicPartition("u", 0), TopicPartition("u", 1)}
    assert sum(map(len, found.values())) == 4


@pytest.mark.parametrize("seed", range(50))
def test_any_joins_and_leaves_end_even_and_move_no_more_than_they_must(seed: int) -> None:
    """Each change gives all partitions, to one member each, and nothing that is in hand moves.

    When what is wanted is empty, the shares are even, and each member has lost only what was above its new share.
    """
    chance = random.Random(seed)
    count, generation = chance.randrange(1, 30), 1
    members: dict[str, list[TopicPartition]] = {"m0": []}
    for step in range(1, 20):
        if chance.random() < 0.6 or len(members) == 1:
            members[f"m{chance.randrange(1000)}-{step}"] = []
        else:
            del members[chance.choice(list(members))]
        before = members
        held = {tp: chance.randrange(3) for had in members.values() for tp in had}
        for _ in range(count + 1):
            claims = {
                name: (TOPICS, Claim(generation, [(tp.topic, tp.partition, held.get(tp, 0)) for tp in had]))
                for name, had in members.items()
            }
            generation += 1

            found, wanted = share({"t": range(count)}, claims)

            assert sorted(tp.partition for had in found.values() for tp in had) == list(range(count))
            for name, had in members.items():
                assert {tp for tp in had if held.get(tp)} <= set(found[name])
                assert set(wanted[name]) <= set(found[name])
            members = found
            drained = next((tps for tps in wanted.values() if tps), None)
            if drained is None:
                break
            held[drained[0]] = 0
        assert not any(wanted.values())
        sizes = [len(had) for had in found.values()]
        assert max(sizes) - min(sizes) <= 1
        for name, had in before.items():
            assert len(set(had) & set(found[name])) >= min(len(had), count // len(members))
