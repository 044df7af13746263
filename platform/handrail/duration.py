"""Durations as people write them (``250ms``, ``1h30m``, ``PT5M``) to seconds and back. It knows nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal

_UNITS: dict[str, Decimal | int] = {"ms": Decimal("0.001"), "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d|w)")
_WHOLE = re.compile(rf"{_PART.pattern}(?: ?{_PART.pattern})*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
# ISO 8601 durations without years and months, whose length depends on the calendar.
_ISO = re.compile(
    r"P(?=.)(?:(?P<w>[0-9]+(?:\.[0-9]+)?)W)?(?:(?P<d>[0-9]+(?:\.[0-9]+)?)D)?(?:T(?=.)(?:(?P<h>[0-9]+(?:\.[0-9]+)?)H)?(?:(?P<m>[0-9]+(?:\.[0-9]+)?)M)?(?:(?P<s>[0-9]+(?:\.[0-9]+)?)S)?)?"
)
#: The longest duration accepted, in seconds: ten years. Beyond it lies a slip of the unit.
LONGEST = 10 * 366 * 86400.0


def seconds(value: str | float | timedelta) -> float:
    """*value* in seconds: a number is seconds, a string is ``250ms``, ``2s``, ``1h30m``, ``7d`` or ISO 8601 ``PT1M30S``.

    Raises ``ValueError`` with a text that says what was expected for anything else, negative or over ten years.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        result = _parse(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # cut before converting: an integer beyond a float's range would raise OverflowError
        result = float(max(-1, min(value, 2 * LONGEST))) if value == value else math.nan  # noqa: PLR0124
    else:
        raise ValueError(f"{value!r} is not a duration; write it like 30s, 5m or 1h30m")  # noqa: TRY004
    if math.isnan(result) or result < 0:
        raise ValueError(f"{value!r} is not a duration; it must be 0 or more, like 30s, 5m or 1h30m")
    if result > LONGEST:
        raise ValueError(f"{_short(repr(value))} is longer than ten years")
    return result


def _parse(text: str) -> float:
    compact = text.strip(" ")
    if _WHOLE.fullmatch(compact):
        return _sum(_PART.findall(compact))
    if iso := _ISO.fullmatch(compact):
        return _sum((number, unit) for unit, number in iso.groupdict("0").items())
    if _NUMBER.fullmatch(compact):
        raise ValueError(f"{text!r} has no unit; write {compact}s for seconds (or ms, m, h, d)")
    raise ValueError(f"{text!r} is not a duration; write it like 250ms, 30s, 1h30m or PT5M")


def _sum(parts: Iterable[tuple[str, str]]) -> float:
    # decimal, to round once: 9 * 0.001 is not the float 0.009, nor is 60 + 57.409 the float 117.409
    return float(sum((Decimal(number) * _UNITS[unit] for number, unit in parts), Decimal(0)))


def _short(shown: str) -> str:
    return shown if len(shown) <= 40 else f"{shown[:36]}…{shown[-1]}"


def text(value: float) -> str:
    """*value* seconds as a person would write it: ``0.25`` is ``250ms``, ``5400`` is ``1h30m``.

    From a second up it is rounded to the millisecond.
    """
    total = round(value * 1000)
    if total < 1000:
        shown = f"{value * 1000:.6f}".rstrip("0").rstrip(".")
        return "0s" if shown == "0" else f"{shown}ms"
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        count, total = divmod(total, size)
        if count:
            parts.append(f"{count}{unit}")
    if total:
        parts.append(f"{total / 1000:.3f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)
