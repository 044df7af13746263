"""Backoffs as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from handrail.backoff import parse_backoff
from handrail.outcome import Backoff


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("5s", Backoff(type="fixed", delay=5.0)),
        (0, Backoff(type="fixed", delay=0.0)),
        (timedelta(minutes=1), Backoff(type="fixed", delay=60.0)),
        (["0s", "1s", 30, "5m"], Backoff(type="list", delays=(0.0, 1.0, 30.0, 300.0))),
        (("1s",), Backoff(type="list", delays=(1.0,))),
        ({}, Backoff(type="exponential", delay=1.0, factor=2.0)),
        (
            {"type": "exponential", "delay": "2s", "max": "5m", "jitter": 0.2, "factor": 3},
            Backoff(type="exponential", delay=2.0, factor=3.0, max=300.0, jitter=0.2),
        ),
        ({"type": "linear", "delay": "1s", "max": None}, Backoff(type="linear", delay=1.0)),
        (Backoff(delay=9.0), Backoff(delay=9.0)),
    ],
)
def test_what_can_be_written(written, expected):
    """One duration is fixed, a list is a list, a mapping is as in queues.yaml."""
    assert expected == parse_backoff(written)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ([], "an empty list gives no delay; write at least one, like [1s, 30s]"),
        (["1s", "soon"], "'soon' is not a duration"),
        (None, "None is no backoff; write a duration, a list of durations, or {type: exponential, delay: 2s}"),
        (True, "True is not a duration"),
        ({"kind": "fixed"}, "unknown setting 'kind'; did you mean 'type'?"),
        ({"jiter": 1}, "unknown setting 'jiter'; did you mean 'jitter'?"),
        ({"multiplier": 2}, "did you mean 'factor'?"),
        ({"zzz": 2}, "unknown setting 'zzz'; use one of type, delay, factor, max, jitter"),
        ({"type": "constant"}, "unknown type 'constant'; did you mean 'fixed'?"),
        ({"type": "exponental"}, "did you mean 'exponential'?"),
        ({"type": ["fixed"]}, "unknown type ['fixed']"),
        ({"type": "fixed", "factor": 2}, "factor goes with type: exponential, not fixed"),
        ({"delay": "x"}, "delay: 'x' is not a duration"),
        ({"delay": None}, "delay: None is not a duration"),
        ({"max": "-1s"}, "max: '-1s' is not a duration"),
        ({"jitter": 1.1}, "jitter: 1.1 is no number from 0 to 1"),
        ({"jitter": "a lot"}, "jitter: 'a lot' is no number from 0 to 1"),
        ({"factor": 0.5}, "factor: 0.5 is no number from 1 to 1000"),
        ({"factor": float("nan")}, "factor: nan is no number"),
    ],
)
def test_what_cannot_is_refused_in_words(written, text):
    """A backoff that cannot be is refused with what was probably meant."""
    with pytest.raises(ValueError) as raised:
        parse_backoff(written)

    assert text in str(raised.value)
