"""The ways of delays through the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail_rabbitmq.names import LONGEST, UNIT, Hop, Names, level_queue, levels, routes, way


@given(st.floats(min_value=0.001, max_value=LONGEST / 1000))
def test_a_way_takes_what_was_asked_for_to_ten_milliseconds(seconds: float) -> None:
    """The delays on a way add up to the delay, rounded up to the unit, and are never shorter than it."""
    total = sum(hop.milliseconds for hop in way(seconds))

    assert seconds * 1000 - 1e-3 <= total < seconds * 1000 + UNIT + 1e-3


@given(st.floats(min_value=0.001, max_value=1e9))
def test_a_way_uses_each_power_of_ten_once_and_the_longest_first(seconds: float) -> None:
    """A way has one hop a digit at most, so that its length is bounded however long the delay is."""
    powers = [hop.power for hop in way(seconds)]

    assert powers == sorted(set(powers), reverse=True)


def test_a_delay_beyond_the_longest_goes_as_far_as_the_delays_reach() -> None:
    """What is longer goes through the delays again: it is put back when it arrives undue."""
    assert sum(hop.milliseconds for hop in way(1e9)) == LONGEST


def test_routes_lead_from_hop_to_hop_to_the_queue() -> None:
    """The first hop is the routing key, the others stand behind it, each under the power of the hop before."""
    assert routes([Hop(1, 4), Hop(2, 3), Hop(4, 1)], "work") == (">1e4", ["4>2e3", "3>4e1", "1>.", "work"])


def test_the_default_priority_is_the_queue_itself() -> None:
    """Foreign clients find a queue under its own name; other levels stand beside it."""
    assert level_queue("work", 4) == "work"
    assert {level_queue("work", level) for level in levels()} == {
        "work.head",
        *(f"work.p{n}" for n in range(10) if n != 4),
    }


@pytest.mark.parametrize("prefix", ["", "shop-"])
def test_everything_we_create_bears_the_prefix(prefix: str) -> None:
    """Whoever may create names with the prefix may run handrail."""
    names = Names(prefix)
    made = [names.entry, names.out, names.lost, names.step(3), names.delay_queue(Hop(1, 1)), names.registry]

    assert all(name.startswith(prefix + "handrail.") for name in made)
