"""How long a retry waits, and how texts are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.outcome import FAULT_BYTES, Backoff, Outcome, clip


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Backoff(type="fixed", delay=2.0), [2, 2, 2, 2]),
        (Backoff(type="linear", delay=2.0), [2, 4, 6, 8]),
        (Backoff(type="exponential", delay=2.0), [2, 4, 8, 16]),
        (Backoff(type="exponential", delay=1.0, factor=3.0, max=10.0), [1, 3, 9, 10]),
        (Backoff(type="list", delays=(0.0, 1.0, 30.0)), [0, 1, 30, 30]),
        (Backoff(type="list"), [0, 0, 0, 0]),
        (Backoff(type="fixed", delay=0.0, jitter=1.0), [0, 0, 0, 0]),
    ],
)
def test_each_type_has_its_curve(backoff, waits):
    """The wait after each failed attempt follows the type; the last of a list repeats."""
    assert waits == [backoff.seconds(failed) for failed in (1, 2, 3, 4)]


@given(
    failed=st.integers(1, 10_000),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from(["fixed", "linear", "exponential"]),
)
def test_jitter_only_shortens(failed, jitter, chance, kind):
    """With jitter j a wait of d becomes one between (1-j)·d and d, and stays finite for any number of failures."""
    plain = Backoff(type=kind, delay=2.0, max=3600.0)
    jittered = Backoff(type=kind, delay=2.0, max=3600.0, jitter=jitter)
    whole, wait = plain.seconds(failed), jittered.seconds(failed, chance)

    assert whole <= 3600.0
    assert (1 - jitter) * whole <= wait + 1e-9
    assert wait <= whole


def test_jitter_varies():
    """Without a given chance, jittered waits differ from one another."""
    backoff = Backoff(type="fixed", delay=100.0, jitter=0.5)

    assert len({backoff.seconds(1) for _ in range(20)}) > 1


def test_outcomes_read_as_words():
    """An outcome prints as the word that logs and documents use."""
    assert f"{Outcome.COMPLETED} {Outcome.DEAD}" == "completed dead"


@given(st.text(st.characters(), max_size=60), st.integers(1, 400))
def test_a_clipped_text_is_valid_and_fits(part, times):
    """Any text, lone surrogates included, becomes valid UTF-8 of bounded size."""
    text = part * times
    cut = clip(text, 100)

    assert len(cut.encode()) <= 100


def test_clipping_keeps_both_ends():
    """The middle of a long text is cut, for its ends say most; a short text is left alone."""
    assert clip("short ä") == "short ä"
    cut = clip("begin" + "x" * 20_000 + "end")
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert "[...]" in cut
    assert len(cut.encode()) <= FAULT_BYTES


def test_clipping_writes_surrogates_visibly():
    """A lone surrogate is kept readable."""
    assert clip("a\ud800b") == "a\\ud800b"
