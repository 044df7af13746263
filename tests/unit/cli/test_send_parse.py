"""Reading messages from a command line."""

from __future__ import annotations

import pytest

from handrail.cli.send import BadJsonError, IncompleteError, parse, quoting_hint


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("0", 0), ('""', ""), ("123456789012345678901234567890", 123456789012345678901234567890)],
)
def test_every_json_value_is_a_message(text: str, value: object) -> None:
    """Falsy values are payloads like any other, and integers stay exact."""
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{a: 1}", "expecting property name enclosed in double quotes at column 2"),
        ('{"a": 1}}', "extra data at column 9"),
        ("NaN", "NaN is not JSON"),
        ("[1e999]", "1e999 is too large"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(text: str, reason: str) -> None:
    """The error says what is wrong and at which column."""
    with pytest.raises(BadJsonError) as caught:
        parse(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"a":', "[1, 2", '{"a": "b'])
def test_json_that_goes_on_is_told_from_json_that_is_wrong(text: str) -> None:
    """A first line that merely ends too early may be the start of a message over several lines."""
    with pytest.raises(IncompleteError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{n: 1}", "the shell took the double quotes away"),
        ("{'n': 1}", "JSON wants double quotes inside"),
        ("'{\"n\": 1}'", "single quotes have become part of it"),
        ("hello", "--text"),
        ("", "it is empty"),
        ('{"n": ', "put single quotes around it all"),
    ],
)
def test_the_hint_guesses_what_the_shell_did(text: str, hint: str) -> None:
    """A message that a shell has mangled is recognised."""
    assert hint in quoting_hint(text)
