"""Durations as users write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail import duration


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("250ms", 0.25),
        ("9ms", 0.009),
        ("0.5s", 0.5),
        ("0s", 0.0),
        ("2s", 2.0),
        ("30 s", 30.0),
        (" 5m ", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1d", 86400.0),
        ("2w", 1209600.0),
        ("1m1.5s", 61.5),
        ("PT1M30S", 90.0),
        ("PT0.25S", 0.25),
        ("P1D", 86400.0),
        ("P1W", 604800.0),
        ("P1DT12H", 129600.0),
        (5, 5.0),
        (0, 0.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
        ("3660d", duration.LONGEST),
    ],
)
def test_units_iso_8601_numbers_and_timedeltas_are_durations(written, expected):
    """Units, ISO 8601, bare numbers of seconds and timedeltas are all taken."""
    assert duration.seconds(written) == expected


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "'' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("soon", "'soon' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("1:30", "'1:30' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("-5s", "'-5s' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("nan", "'nan' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("P", "'P' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("PT", "'PT' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("P1Y", "'P1Y' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("1 0s", "'1 0s' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("٣s", "'٣s' is not a duration; write it like 250ms, 30s, 1h30m or PT5M"),
        ("30", "'30' has no unit; write 30s for seconds (or ms, m, h, d)"),
        (True, "True is not a duration; write it like 30s, 5m or 1h30m"),
        (None, "None is not a duration; write it like 30s, 5m or 1h30m"),
        (-1, "-1 is not a duration; it must be 0 or more, like 30s, 5m or 1h30m"),
        (timedelta(-1), "datetime.timedelta(days=-1) is not a duration; it must be 0 or more, like 30s, 5m or 1h30m"),
        (float("nan"), "nan is not a duration; it must be 0 or more, like 30s, 5m or 1h30m"),
        (float("inf"), "inf is longer than ten years"),
        ("3661d", "'3661d' is longer than ten years"),
        (10**40, "100000000000000000000000000000000000…0 is longer than ten years"),
        ("9" * 400 + "s", "'99999999999999999999999999999999999…' is longer than ten years"),
    ],
)
def test_anything_else_is_refused_in_words(written, said):
    """What is no duration is refused with a line that says what to write instead."""
    with pytest.raises(ValueError) as caught:
        duration.seconds(written)

    assert said == str(caught.value)


def test_an_integer_beyond_any_float_is_too_long_rather_than_a_crash():
    """No integer, however large, escapes as an OverflowError."""
    with pytest.raises(ValueError, match="longer than ten years"):
        duration.seconds(10**400)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0s"),
        (0.0005, "0.5ms"),
        (0.0025, "2.5ms"),
        (0.25, "250ms"),
        (0.9999, "1s"),
        (2, "2s"),
        (59.9999, "1m"),
        (61.5, "1m1.5s"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (86400, "1d"),
        (604800, "7d"),
    ],
)
def test_durations_are_shown_as_people_write_them(value, expected):
    """Seconds are shown in the units a person would choose."""
    assert duration.text(value) == expected


@given(st.integers(0, int(duration.LONGEST) * 1000))
def test_what_is_shown_can_be_written_back(milliseconds):
    """Every shown duration, read again, is the duration it was, to the millisecond."""
    value = milliseconds / 1000

    assert round(duration.seconds(duration.text(value)) * 1000) == milliseconds


@given(st.text(max_size=20) | st.integers() | st.floats() | st.booleans() | st.none() | st.binary(max_size=4))
def test_only_a_value_error_is_ever_raised(anything):
    """Whatever is given, the answer is a number of seconds in range or a ValueError."""
    try:
        found = duration.seconds(anything)
    except ValueError:
        return

    assert 0 <= found <= duration.LONGEST
