"""What the commands share."""

from __future__ import annotations

import time

import pytest

from handrail.cli.common import UsageError, ago, nearest, payload, preview, seconds_of
from handrail.message import Message


def test_times_are_said_as_people_say_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past and future, coarser the farther away; nothing for no time."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    assert [ago(None), ago(now), ago(now - 42.2), ago(now - 7200 - 61), ago(now + 300.2), ago(now - 90000)] == [
        "–",
        "now",
        "42s ago",
        "2h1m ago",
        "in 5m",
        "1d1h ago",
    ]


def test_the_nearest_word_ignores_case_or_all_are_listed() -> None:
    """A slip gets its word, anything else what there is."""
    assert nearest("TASKQUEUE", ["taskQueue", "x"]) == "; did you mean 'taskQueue'?"
    assert nearest("zzz", ["b", "a"]) == "; there is a, b"
    assert nearest("zzz", []) == ""


def test_a_bare_number_is_seconds() -> None:
    """On a command line `--delay 5` can mean nothing else."""
    assert [seconds_of("--delay", each) for each in ("5", "0.5", "1m", None)] == [5.0, 0.5, 60.0, None]
    with pytest.raises(UsageError, match="--delay: 'x' is not a duration"):
        seconds_of("--delay", "x")


@pytest.mark.parametrize(
    ("body", "kind", "shown"),
    [
        (b'{"a":1}', "application/json", {"a": 1}),
        (b"no json", "application/json", "no json"),
        (b"text", "text/plain", "text"),
        (b"\xff", "application/json", {"base64": "/w=="}),
    ],
)
def test_a_body_is_shown_as_what_it_is(body: bytes, kind: str, shown: object) -> None:
    """Whatever a foreign sender called it."""
    assert payload(Message(queue="q", id="1", body=body, content_type=kind)) == shown


def test_a_preview_is_one_short_line() -> None:
    """Control characters and line ends become blanks, and a long body is cut."""
    assert preview(b"a\n\x1b[2Jb") == "a [2Jb"
    assert preview(b"x" * 1000) == "x" * 59 + "…"
