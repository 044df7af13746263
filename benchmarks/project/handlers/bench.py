"""The handlers that are measured. They do nothing but count, and write a mark now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

#: A line is written at the first and the last of each so many messages: count and monotonic nanoseconds.
STEP = int(os.environ.get("BENCH_STEP", "1000"))
MARKS = os.environ.get("BENCH_MARKS", os.devnull)

_count = 0
_file = open(MARKS, "a", buffering=1)  # noqa: SIM115, PTH123 - it lives as long as the host


async def noop(message: Any, callback: Callable[[], None]) -> None:  # noqa: ARG001 - that it awaits nothing is the point
    global _count
    _count += 1
    if _count % STEP <= 1:
        _file.write(f"{_count} {time.monotonic_ns()}\n")
    callback()


async def latency(message: Any, callback: Callable[[], None]) -> None:
    now = time.monotonic_ns()
    _file.write(f"{message['n']} {now - message['at']}\n")
    callback()
