"""Backoffs as people write them (a mapping, a list, one duration) to :class:`Backoff`. It waits for nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from handrail.duration import seconds
from handrail.outcome import Backoff

_TYPES = ("fixed", "linear", "exponential")
_KEYS = ("type", "delay", "factor", "max", "jitter")
#: Words of other systems for what ours calls differently.
_ELSEWHERE = {
    "constant": "fixed",
    "interval": "fixed",
    "exp": "exponential",
    "kind": "type",
    "policy": "type",
    "strategy": "type",
    "multiplier": "factor",
    "coefficient": "factor",
    "max_delay": "max",
    "maximum": "max",
    "cap": "max",
    "initial": "delay",
    "min": "delay",
}


def parse_backoff(value: Any) -> Backoff:
    """*value* as a backoff: ``"5s"`` (always so long), ``["0s", "1m"]`` (the last repeats) or a mapping as in queues.yaml.

    The mapping: ``type`` (``fixed``, ``linear`` or ``exponential``, the default), ``delay``, ``factor``, ``max``, ``jitter``.
    Raises ``ValueError`` in words. A :class:`Backoff` passes through.
    """
    if isinstance(value, Backoff):
        return value
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("an empty list gives no delay; write at least one, like [1s, 30s]")
        return Backoff(type="list", delays=tuple(seconds(item) for item in value))
    if isinstance(value, str | int | float | timedelta):
        return Backoff(type="fixed", delay=seconds(value))
    raise ValueError(
        f"{value!r} is no backoff; write a duration, a list of durations, or {{type: exponential, delay: 2s}}"
    )


def _mapping(value: Mapping[Any, Any]) -> Backoff:
    for key in value:
        if key not in _KEYS:
            raise ValueError(f"unknown setting {key!r}; {_nearest(key, _KEYS)}")
    kind = value.get("type", "exponential")
    if kind not in _TYPES:
        raise ValueError(f"unknown type {kind!r}; {_nearest(kind, _TYPES)}")
    if "factor" in value and kind != "exponential":
        raise ValueError(f"factor goes with type: exponential, not {kind}")
    maximum = value.get("max")
    return Backoff(
        type=kind,
        delay=_duration(value, "delay", 1.0),
        factor=_number(value, "factor", 2.0, 1.0, 1000.0),
        max=None if maximum is None else _duration(value, "max", 0.0),
        jitter=_number(value, "jitter", 0.0, 0.0, 1.0),
    )


def _duration(value: Mapping[Any, Any], key: str, default: float) -> float:
    try:
        return seconds(value.get(key, default))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}: {error}") from None


def _number(value: Mapping[Any, Any], key: str, default: float, low: float, high: float) -> float:
    number = value.get(key, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
        raise ValueError(f"{key}: {number!r} is no number from {low:g} to {high:g}")
    return float(number)


def _nearest(word: object, known: tuple[str, ...]) -> str:
    text = str(word)
    near = _ELSEWHERE.get(text.lower())
    if near not in known:
        near = next(iter(difflib.get_close_matches(text, known, 1)), None)
    return f"did you mean {near!r}?" if near else f"use one of {', '.join(known)}"
