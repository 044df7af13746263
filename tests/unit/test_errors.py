"""The tree of errors."""

from __future__ import annotations

import inspect

import pytest

import handrail
from handrail import errors


def test_one_except_catches_them_all():
    """Every error that handrail raises on purpose is a HandrailError; Reject and RetryLater are verdicts, not errors."""
    classes = {
        name
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, Exception) and not issubclass(found, errors.HandrailError)
    }

    assert classes == {"Reject", "RetryLater"}


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidOptionError, ValueError),
        (errors.SerialisationError, TypeError),
        (errors.SendTimeoutError, TimeoutError),
    ],
)
def test_errors_are_what_python_calls_them(error, builtin):
    """Where the standard library has a word for a mishap, except by that word works too."""
    assert issubclass(error, builtin)
    assert issubclass(error, errors.SendError)


def test_every_class_says_what_it_means():
    """Every class has a docstring of its own."""
    for name, found in vars(errors).items():
        if inspect.isclass(found) and found.__module__ == errors.__name__:
            assert found.__dict__.get("__doc__"), name


def test_a_config_error_carries_every_problem():
    """A ConfigError shows all problems, one a line, and carries them apart."""
    error = errors.ConfigError(["queues.yaml:1:1: a", "queues.yaml:2:1: b"])

    assert str(error) == "queues.yaml:1:1: a\nqueues.yaml:2:1: b"
    assert error.problems == ["queues.yaml:1:1: a", "queues.yaml:2:1: b"]


def test_a_bulk_error_names_the_first():
    """A BulkSendError counts what failed and tells why the first did."""
    error = errors.BulkSendError({7: errors.SendError("b"), 3: errors.SendError("a")}, 10)

    assert str(error) == "2 of 10 messages were not sent; the first is number 3: a"


def test_verdicts_carry_what_handlers_said():
    """Reject carries a reason and RetryLater a delay; both are at hand in the package itself."""
    assert handrail.Reject("no such user").reason == str(handrail.Reject("no such user")) == "no such user"
    assert handrail.Reject().reason == "rejected by the handler"
    assert handrail.RetryLater("1h").delay == "1h"
    assert handrail.RetryLater().delay == 0.0
    with pytest.raises(AssertionError, match="bug in handrail"):
        errors.unreachable("what")
