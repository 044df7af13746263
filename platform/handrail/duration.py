"""Durations as people write them (``250ms``, ``1h30m``, ``PT5M``) to seconds and back. It knows nothing else."""

from __future__ import annotations

import math
import re
from datetime import timedelta

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+")
# ISO 8601 durations without years and months, whose length depends on the calendar.
_ISO = re.compile(
    r"P(?=.)(?:(?P<w>\d+(?:\.\d+)?)W)?(?:(?P<d>\d+(?:\.\d+)?)D)?"
    r"(?:T(?=.)(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?"
)
#: The longest duration accepted, in seconds: ten years. Beyond it lies a slip of the unit.
LONGEST = 10 * 366 * 86400.0


def seconds(value: str | float | timedelta) -> float:
    """*value* in seconds: a number is seconds, a string is ``250ms``, ``2s``, ``1h30m``, ``7d`` or ISO 8601 ``PT1M30S``.

    Raises ``ValueError`` with a text that says what was expected for anything else, negative or over ten years.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, bool):
        raise ValueError(f"{value!r} is not a duration; write it like 30s, 5m or 1h30m")  # noqa: TRY004
    elif isinstance(value, int | float):
        result = float(value)
    else:
        result = _parse(value)
    if not math.isfinite(result) or result < 0:
        raise ValueError(f"{value!r} is not a duration; it must be 0 or more, like 30s, 5m or 1h30m")
    if result > LONGEST:
        raise ValueError(f"{value!r} is longer than ten years")
    return result


def _parse(text: str) -> float:
    compact = text.replace(" ", "")
    if _WHOLE.fullmatch(compact):
        return math.fsum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
    if iso := _ISO.fullmatch(compact):
        return math.fsum(float(number) * _UNITS[unit] for unit, number in iso.groupdict("0").items())
    try:
        float(compact)
    except ValueError:
        raise ValueError(f"{text!r} is not a duration; write it like 250ms, 30s, 1h30m or PT5M") from None
    raise ValueError(f"{text!r} has no unit; write {compact}s for seconds (or ms, m, h, d)")


def text(value: float) -> str:
    """*value* seconds as a person would write it: ``0.25`` is ``250ms``, ``5400`` is ``1h30m``."""
    if value < 1:
        return f"{round(value * 1000, 3):g}ms" if value else "0s"
    if value < 60:
        return f"{round(value, 3):g}s"
    parts = []
    rest = round(value)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
