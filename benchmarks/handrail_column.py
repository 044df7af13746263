"""Measures handrail itself: `platform work` as one process tree, app code as another, the broker whichever is asked for."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from measures import Plan, Values, quantile
from processes import Usage, usage
from servers import Server

HERE = Path(__file__).resolve().parent
PLATFORM = Path(sys.executable).with_name("platform")
#: Seconds after which something that should have happened is not going to.
PATIENCE = 600.0


def measure(plan: Plan, broker: str, scratch: Path, server: Server | None, say: Callable[[str], None]) -> Values:
    """Every measure that *plan* asks for, in fresh projects below *scratch* that send to *broker*."""
    bench = _Bench(plan, broker, scratch, server, say)
    values: Values = {}
    values |= bench.publish()
    values |= bench.handle()
    values |= bench.through()
    values |= bench.latency()
    values |= bench.idle()
    values |= bench.small_backlog()
    if plan.backlog:
        values |= bench.large_backlog()
    return values


class _Worker:
    """One `platform work` and the marks that its handlers write."""

    def __init__(self, project: Path, environment: dict[str, str], step: int) -> None:
        self.marks = project / "marks"
        self.marks.unlink(missing_ok=True)
        self._log = project / "worker.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [PLATFORM, "work"],
                cwd=project,
                env={**environment, "BENCH_MARKS": str(self.marks), "BENCH_STEP": str(step)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def until(self, condition: Callable[[], bool], what: str, every: float = 0.02) -> None:
        """Wait until *condition*, asking *every* so many seconds; end the benchmark when the worker did not get there."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-3000:]
                raise SystemExit(f"the worker never {what}; its exit code is {self.process.poll()}\n{tail}")
            time.sleep(every)

    def until_ready(self) -> None:
        self.until(lambda: '"ready"' in self._log.read_text(errors="replace"), "became ready")

    def until_handled(self, count: int) -> list[tuple[int, int]]:
        """Wait until *count* were handled; the marks."""
        self.until(lambda: (rows := self.rows()) != [] and rows[-1][0] >= count, "handled all")
        return self.rows()

    def rows(self) -> list[tuple[int, int]]:
        """The marks so far: two numbers each, which see handlers/bench.py."""
        if not self.marks.exists():
            return []
        # the last line may be half written
        lines = self.marks.read_text().rpartition("\n")[0].splitlines()
        return [(int(first), int(second)) for first, second in (line.split() for line in lines)]

    def usage(self) -> Usage:
        return usage(self.process.pid)

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(60):
            raise SystemExit(f"the worker ended with {self.process.returncode}:\n{self._log.read_text()[-3000:]}")


class _Bench:
    def __init__(
        self, plan: Plan, broker: str, scratch: Path, server: Server | None, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._say = say
        self._scratch = scratch
        self._broker = broker
        self._server = server
        self._environment = {**os.environ, "BENCH_BROKER": broker}
        self._environment.pop("HANDRAIL_CONFIG", None)

    # -- the measures --------------------------------------------------------------------------------------------------

    def publish(self) -> Values:
        """Messages a second until the broker has them safely; nobody handles them meanwhile."""
        values: Values = {}
        for how in ("bulk", "single"):
            self._say(f"publish, {how}")
            with self._project() as project:
                # the first round connects; it is not counted
                seconds = self._send(project, how, self._plan.messages, self._plan.rounds + 1)[1:]
            values[f"publish {how}"] = self._plan.messages / median(seconds)
        return values

    def handle(self) -> Values:
        """Messages a second from the first to the last call of the handler, with all of them waiting at the start."""
        rates = []
        for number in range(self._plan.rounds):
            self._say(f"handle, round {number + 1} of {self._plan.rounds}")
            with self._project() as project:
                self._send(project, "bulk", self._plan.messages)
                with self._worker(project, step=self._plan.messages) as worker:
                    rates.append(_rates(worker.until_handled(self._plan.messages))[0])
        return {"handle": median(rates)}

    def through(self) -> Values:
        """Messages a second from the first to the last call of the handler, while they are being sent."""
        rates = []
        for number in range(self._plan.rounds):
            self._say(f"send and handle at once, round {number + 1} of {self._plan.rounds}")
            with self._project() as project, self._worker(project, step=self._plan.messages) as worker:
                worker.until_ready()
                self._send(project, "bulk", self._plan.messages)
                rates.append(_rates(worker.until_handled(self._plan.messages))[0])
        return {"send and handle": median(rates)}

    def latency(self) -> Values:
        """Milliseconds from the call of send to the call of the handler at 500 messages a second."""
        count = self._plan.paced
        self._say(f"latency, {count / 500:.0f} s")
        with self._project() as project, self._worker(project) as worker:
            worker.until_ready()
            self._send(project, "paced", count)
            worker.until(lambda: len(worker.rows()) >= count, "handled all")
            # the first tenth connects and warms up
            waits = sorted(taken / 1e6 for n, taken in worker.rows() if n >= count // 10)
        return {"latency p50": quantile(waits, 0.50), "latency p99": quantile(waits, 0.99)}

    def idle(self) -> Values:
        """Per cent of one core that a worker with nothing to do uses, and its memory."""
        self._say(f"idle, {self._plan.idle:.0f} s")
        with self._project() as project, self._worker(project) as worker:
            worker.until_ready()
            time.sleep(2.0)  # what starting left to do is done by then
            before, began = worker.usage(), time.monotonic()
            time.sleep(self._plan.idle)
            after, ended = worker.usage(), time.monotonic()
        return {"idle CPU": 100 * (after.cpu - before.cpu) / (ended - began), "idle memory": after.memory / 1e6}

    def small_backlog(self) -> Values:
        """A thousand waiting at a time, again and again: handled a second, and CPU time of the worker a message."""
        size, times = 1000, self._plan.batches
        self._say(f"{times} times a backlog of {size:,}")
        with self._project() as project, self._worker(project, step=size) as worker:
            worker.until_ready()
            self._send(project, "batches", size, times // 10, marks=worker.marks)
            before = worker.usage()
            self._send(project, "batches", size, times, marks=worker.marks, already=size * (times // 10))
            after = worker.usage()
            rates = _rates(worker.rows())
        return {
            "handle, few waiting": median(rates[times // 10 :]),
            "cost, few waiting": 1e6 * (after.cpu - before.cpu) / (size * times),
        }

    def large_backlog(self) -> Values:
        """A million waiting: handled a second and CPU time a message in the first tenth, and the growth of memory over all."""
        size = self._plan.backlog
        self._say(f"sending {size:,} messages")
        with self._project() as project:
            self._send(project, "bulk", size)
            self._say(f"handling {size:,} messages")
            samples: list[tuple[int, Usage]] = []
            with self._worker(project, step=1000) as worker:

                def sample() -> bool:
                    rows = worker.rows()
                    if rows:
                        samples.append((rows[-1][0], worker.usage()))
                    return bool(rows) and rows[-1][0] >= size

                worker.until(sample, "handled all", every=0.05)
                rows = worker.rows()
        early = [sample for sample in samples if size // 100 <= sample[0] <= size // 10]
        if len({count for count, _ in early}) < 2:
            early = samples  # the first tenth was over before it was looked at twice
        (first, before), (last, after) = early[0], early[-1]
        # once a tenth is done, every buffer has been as full as it gets
        later = [used.memory for count, used in samples if count >= size // 10]
        return {
            "handle, many waiting": median(_rates([row for row in rows if size // 100 < row[0] <= size // 10])),
            "cost, many waiting": 1e6 * (after.cpu - before.cpu) / (last - first),
            "handle all of many": (rows[-1][0] - rows[0][0]) / ((rows[-1][1] - rows[0][1]) / 1e9),
            "memory growth": (later[-1] - later[0]) / 1e6,
        }

    # -- the parts -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _project(self) -> Iterator[Path]:
        """A fresh copy of the measured project, with a prefix of its own; no measure finds what another left."""
        project = self._scratch / "project"
        prefix = self._environment["BENCH_PREFIX"] = f"bench-{secrets.token_hex(4)}-"
        shutil.copytree(HERE / "project", project, ignore=shutil.ignore_patterns(".platform", "__pycache__"))
        try:
            yield project
        finally:
            shutil.rmtree(project)
            if self._server is not None:
                self._server.sweep(self._broker, prefix)

    @contextmanager
    def _worker(self, project: Path, step: int = 1000) -> Iterator[_Worker]:
        worker = _Worker(project, self._environment, step)
        try:
            yield worker
            worker.stop()
        finally:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()

    def _send(
        self, project: Path, how: str, count: int, rounds: int = 1, *, marks: Path | None = None, already: int = 0
    ) -> list[float]:
        """Run the sender to its end; the seconds that each of its rounds took."""
        environment = {**self._environment, "BENCH_MARKS": str(marks or ""), "BENCH_ALREADY": str(already)}
        done = subprocess.run(
            [sys.executable, "sender.py", how, str(count), str(self._plan.size), str(rounds)],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise SystemExit(f"the sender failed with {done.returncode}")
        found: list[float] = json.loads(done.stdout)
        return found


def _rates(rows: list[tuple[int, int]]) -> list[float]:
    """Messages a second of each step: from the call of its first message to the call of its last."""
    return [
        (count - first) / ((at - began) / 1e9)
        for (first, began), (count, at) in itertools.pairwise(rows)
        if count > first + 1  # not from the last of one step to the first of the next
    ]
