"""The application that is measured: it sends through the public API, in a process of its own. Prints seconds as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from handrail import context

#: Messages of one send_bulk.
BULK = 1000
#: Bulks that may be on their way at once; together they fit the send buffer.
ON_THE_WAY = 20


def payloads(count: int, size: int) -> list[dict[str, Any]]:
    """*count* messages of *size* bytes of JSON each."""
    made = []
    for n in range(count):
        message = {"n": n, "at": time.monotonic_ns(), "text": ""}
        message["text"] = "x" * (size - len(json.dumps(message, separators=(",", ":"))))
        made.append(message)
    return made


def bulk(messages: list[dict[str, Any]]) -> float:
    """Send all in bulks; seconds until the broker had the last one safely."""
    began = time.perf_counter()
    waiting = []
    for at in range(0, len(messages), BULK):
        waiting.append(context.queues.send_bulk("noop", messages[at : at + BULK]))
        if len(waiting) > ON_THE_WAY:
            waiting.pop(0).wait()
    for receipt in waiting:
        receipt.wait()
    return time.perf_counter() - began


def single(messages: list[dict[str, Any]]) -> float:
    """Send one by one, waiting for none before the end."""
    began = time.perf_counter()
    receipts = [context.queues.send_to_queue("noop", message) for message in messages]
    for receipt in receipts:
        receipt.wait()
    return time.perf_counter() - began


def paced(count: int, size: int, rate: float) -> float:
    """Send *rate* messages a second, each with the moment of its send."""
    messages = payloads(count, size)
    began = time.perf_counter()
    for n, message in enumerate(messages):
        wait = began + n / rate - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        message["at"] = time.monotonic_ns()
        context.queues.send_to_queue("latency", message)
    context.queues.flush()
    return time.perf_counter() - began


def batches(count: int, size: int, times: int) -> float:
    """*times* times: send *count* at once, then wait until the worker has handled them."""
    messages = payloads(count, size)
    began = time.perf_counter()
    for number in range(1, times + 1):
        context.queues.send_bulk("noop", messages).wait()
        while _handled() < number * count:
            time.sleep(0.005)
    return time.perf_counter() - began


def _handled() -> int:
    marks = Path(os.environ["BENCH_MARKS"])
    lines = marks.read_text().rpartition("\n")[0].splitlines() if marks.exists() else []
    return (int(lines[-1].split()[0]) if lines else 0) - int(os.environ["BENCH_ALREADY"])


def main() -> None:
    how, count, size, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    seconds = []
    if how == "paced":
        seconds.append(paced(count, size, 500))
    elif how == "batches":
        seconds.append(batches(count, size, rounds))
    else:
        send = bulk if how == "bulk" else single
        # one list, sent as often as it takes: the memory of a million is not what is measured
        messages = payloads(min(count, 100_000), size)
        for _ in range(rounds):
            taken, left = 0.0, count
            while left:
                taken += send(messages[:left])
                left -= min(left, len(messages))
            seconds.append(taken)
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
