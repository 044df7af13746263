"""`make bench`: measures handrail and the raw client of each broker in one run, and prints a table with the ratio.

A broker is one entry of `BROKERS`: where it is, and the script that measures its raw client alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import handrail_column
from measures import MEASURES, Measure, Plan, Values
from rich.console import Console
from rich.table import Table
from servers import KAFKA, RABBITMQ, Server, UnavailableError

import handrail

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker to measure on, in one configuration."""

    name: str
    #: A script beside this one: `SCRIPT --messages N --size BYTES --rounds N [--url URL]` prints measure → value as JSON.
    raw: str
    #: Its URL; the embedded one lies in each measured project. With a server, the options that are added to its URL.
    url: str
    #: Messages of the large backlog: enough that something that grows would show, in less than a minute.
    backlog: int
    #: None for an embedded broker.
    server: Server | None = None
    #: Further arguments of the raw client, for what the URL says to us.
    arguments: tuple[str, ...] = ()


#: Brokers of one server stand together, so that it is brought up once.
BROKERS = (
    Broker("sqlite", "raw_sqlite.py", "sqlite:.platform/queues.db", 1_000_000),
    Broker("rabbitmq", "raw_rabbitmq.py", "queue_type=quorum", 100_000, RABBITMQ, ("--kind=quorum",)),
    Broker("rabbitmq-classic", "raw_rabbitmq.py", "queue_type=classic", 100_000, RABBITMQ, ("--kind=classic",)),
    Broker("kafka", "raw_kafka.py", "", 500_000, KAFKA),
)


def main() -> None:
    arguments = _arguments()
    chosen = [broker for broker in BROKERS if broker.name in arguments.broker]
    # beside the data of real projects, since /tmp may be memory, on which being durable costs nothing
    scratch = HERE.parent / ".platform" / f"bench-{os.getpid()}"
    scratch.mkdir(parents=True)
    bench = _Bench(arguments, scratch)
    try:
        for server, brokers in itertools.groupby(chosen, key=lambda broker: broker.server):
            if server is None:
                bench.measure(brokers, "")
                continue
            bench.say(f"bringing up {server.script.stem}")
            try:
                with server.up(scratch) as url:
                    bench.measure(brokers, url)
            except UnavailableError as error:
                names = ", ".join(broker.name for broker in chosen if broker.server is server)
                bench.print(f"{names}: left out: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.columns, indent=2) + "\n")


class _Bench:
    """One run: what it measured so far."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.columns: dict[str, Values] = {}
        self._arguments = arguments
        self._scratch = scratch
        self._console = Console(width=None if sys.stdout.isatty() else 150)

    def measure(self, brokers: Iterable[Broker], server: str) -> None:
        """Measure each of *brokers*, whose server is at the URL *server*, and print its table."""
        for broker in brokers:
            began = time.monotonic()
            url = (
                server + ("&" if "?" in server else "?") + broker.url if server and broker.url else server or broker.url
            )
            plan = self._plan(broker)
            # the raw client right before ours: both meet the same machine in the same mood
            self.say(f"{broker.name}: raw client")
            raw = _raw(broker, plan, server, self._scratch)
            ours = handrail_column.measure(plan, url, self._scratch, broker.server, self.say)
            if "handle, a task each" in raw:  # which ours always does
                ours["handle, a task each"] = ours["handle"]
            self.columns[f"raw {broker.name}"] = raw
            self.columns[f"handrail on {broker.name}"] = ours
            self._print(broker, plan, raw, ours, time.monotonic() - began)

    def _plan(self, broker: Broker) -> Plan:
        given, quick = self._arguments.backlog, self._arguments.quick
        return Plan(
            messages=self._arguments.messages,
            rounds=2 if quick else 5,
            paced=1_000 if quick else 5_000,
            idle=3.0 if quick else 10.0,
            batches=10 if quick else 50,
            backlog=given if given is not None else 0 if quick else broker.backlog,
        )

    def _print(self, broker: Broker, plan: Plan, raw: Values, ours: Values, seconds: float) -> None:
        table = Table(
            title=f"{broker.name}: {plan.messages:,} JSON messages of {plan.size} bytes", title_justify="left"
        )
        table.add_column("measure")
        for column in ("raw", "handrail", "ratio"):
            table.add_column(column, justify="right")
        table.add_column("unit")
        table.add_column("meaning", style="dim")
        for measure in MEASURES:
            if measure.name in raw or measure.name in ours:
                table.add_row(measure.name, *_cells(measure, raw, ours), measure.unit, measure.meaning)
        self._console.print(table)
        cores = os.cpu_count()
        self.print(
            f"handrail {handrail.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
            f"{cores} cores, load {os.getloadavg()[0]:.1f} at the end; {seconds:.0f} s in all; rates are medians of {plan.rounds}"
            + (f"; the large backlog is {plan.backlog:,}" if plan.backlog else "")
            + "\n"
        )

    def print(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def say(self, what: str) -> None:
        """Tell what is going on: on a terminal on one line, elsewhere not at all."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{what} … \r")
            sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [broker.name for broker in BROKERS]
    parser.add_argument("--quick", action="store_true", help="small runs, and no large backlog")
    parser.add_argument("--messages", type=int, default=50_000, help="messages of each rate (default: 50000)")
    parser.add_argument("--backlog", type=int, help="messages of the large backlog (default: as fits the broker)")
    parser.add_argument("--broker", choices=names, nargs="+", default=names, help="only these brokers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    return parser.parse_args()


def _raw(broker: Broker, plan: Plan, server: str, scratch: Path) -> Values:
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / broker.raw),
            f"--messages={plan.messages}",
            f"--size={plan.size}",
            f"--rounds={plan.rounds}",
            *([f"--url={server}"] if server else []),
            *broker.arguments,
        ],
        cwd=scratch,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{broker.raw} failed with {done.returncode}")
    values: Values = json.loads(done.stdout)
    return values


def _cells(measure: Measure, raw: Values, ours: Values) -> list[str]:
    base, value = raw.get(measure.name), ours.get(measure.name)
    cells = ["–" if one is None else f"{one:,.{measure.digits}f}" for one in (base, value)]
    return [*cells, "" if value is None or not base or not measure.more_is_better else f"{value / base:.2f}"]


if __name__ == "__main__":
    main()
