"""`make bench`: measures handrail and the raw client of each broker in one run, and prints a table with the ratio.

A broker is one line in `BROKERS`: its URL, and the script that measures its raw client alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import handrail_column
from measures import MEASURES, Measure, Plan, Values
from rich.console import Console
from rich.table import Table

import handrail

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker to measure on."""

    name: str
    #: Its URL; the embedded one lies in each measured project.
    url: str
    #: A script beside this one: `SCRIPT --messages N --size BYTES --rounds N` prints measure → value as JSON.
    raw: str


BROKERS = (Broker("sqlite", "sqlite:.platform/queues.db", "raw_sqlite.py"),)


def main() -> None:
    arguments = _arguments()
    plan = Plan(
        messages=arguments.messages,
        rounds=2 if arguments.quick else 5,
        paced=1_000 if arguments.quick else 5_000,
        idle=3.0 if arguments.quick else 10.0,
        batches=10 if arguments.quick else 50,
        backlog=arguments.backlog if arguments.backlog is not None else 0 if arguments.quick else 1_000_000,
    )
    # beside the data of real projects, since /tmp may be memory, on which being durable costs nothing
    scratch = HERE.parent / ".platform" / f"bench-{os.getpid()}"
    scratch.mkdir(parents=True)
    say = _teller()
    columns: dict[str, Values] = {}
    began = time.monotonic()
    try:
        for broker in BROKERS:
            if broker.name not in arguments.broker:
                continue
            # the raw client right before ours: both meet the same machine in the same mood
            say(f"{broker.name}: raw client")
            columns[f"raw {broker.name}"] = _raw(broker, plan, scratch)
            columns[f"handrail on {broker.name}"] = handrail_column.measure(plan, broker.url, scratch, say)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _print(columns, plan, time.monotonic() - began)
    if arguments.json:
        arguments.json.write_text(json.dumps(columns, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [broker.name for broker in BROKERS]
    parser.add_argument("--quick", action="store_true", help="small runs, and no backlog of a million")
    parser.add_argument("--messages", type=int, default=10_000, help="messages of each rate (default: 10000)")
    parser.add_argument(
        "--backlog", type=int, default=1_000_000, help="messages of the large backlog (default: 1000000)"
    )
    parser.add_argument("--broker", choices=names, nargs="+", default=names, help="only these brokers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    return parser.parse_args()


def _raw(broker: Broker, plan: Plan, scratch: Path) -> Values:
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / broker.raw),
            f"--messages={plan.messages}",
            f"--size={plan.size}",
            f"--rounds={plan.rounds}",
        ],
        cwd=scratch,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{broker.raw} failed with {done.returncode}")
    values: Values = json.loads(done.stdout)
    return values


def _print(columns: dict[str, Values], plan: Plan, seconds: float) -> None:
    table = Table(title=f"{plan.messages:,} JSON messages of {plan.size} bytes", title_justify="left")
    table.add_column("measure")
    for name in columns:
        table.add_column(name, justify="right")
        if name.startswith("handrail on "):
            table.add_column("ratio to raw", justify="right")
    table.add_column("unit")
    table.add_column("meaning", style="dim")
    for measure in MEASURES:
        if any(measure.name in values for values in columns.values()):
            table.add_row(measure.name, *_cells(measure, columns), measure.unit, measure.meaning)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    cores = os.cpu_count()
    console.print(
        f"handrail {handrail.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{cores} cores, load {os.getloadavg()[0]:.1f} at the end; {seconds:.0f} s in all; rates are medians of {plan.rounds}"
        + (f"; the large backlog is {plan.backlog:,}" if plan.backlog else ""),
        highlight=False,
    )


def _cells(measure: Measure, columns: dict[str, Values]) -> list[str]:
    cells = []
    for name, values in columns.items():
        value = values.get(measure.name)
        cells.append("–" if value is None else f"{value:,.{measure.digits}f}")
        if name.startswith("handrail on "):
            raw = columns.get(f"raw {name.removeprefix('handrail on ')}", {}).get(measure.name)
            cells.append("" if value is None or not raw or not measure.more_is_better else f"{value / raw:.2f}")
    return cells


def _teller() -> Callable[[str], None]:
    """Tells what is going on: on a terminal on one line, elsewhere not at all but for errors."""
    if not sys.stderr.isatty():
        return lambda _what: None

    def say(what: str) -> None:
        sys.stderr.write(f"\r\x1b[K{what} … \r")
        sys.stderr.flush()

    return say


if __name__ == "__main__":
    main()
