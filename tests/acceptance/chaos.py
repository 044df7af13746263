"""What the chaos tests share: load, incidents, and the judgement of what ran again because of them. No test stands here."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from harness import Project, Run, Sender, wait_for

#: What one worker runs at once.
CONCURRENCY = 20
#: Seconds for which a process that lost its dispatcher, its connection or its partitions may go on without knowing.
UNAWARE = 5.0
#: Rounds that ``make chaos`` asks for; None in the few that every change goes through.
WANTED = os.environ.get("HANDRAIL_CHAOS_ROUNDS")
#: What chance begins with; repeating it repeats the choices, though not the moments.
SEED = os.environ.get("HANDRAIL_CHAOS_SEED")


@dataclass(frozen=True)
class Broker:
    """Where the messages of a test lie."""

    name: str
    #: The fixture that has the server: ``rabbitmq``, ``own_rabbitmq``, …; nothing for the embedded SQLite.
    fixture: str = ""
    #: What the broker's mapping in queues.yaml holds beside the URL.
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """The shared server that it needs, which is started before any test's time runs."""
        return "" if self.fixture.startswith("own_") else self.fixture

    def own(self) -> Broker:
        """The same on a server that its tests may kill."""
        return replace(self, fixture=f"own_{self.fixture}")

    def impatient(self) -> Broker:
        """The same where nobody who stands still is waited for long: for tests in which somebody does, and has to be given up."""
        return replace(self, options={**self.options, **IMPATIENCE.get(self.name.partition("-")[0], {})})

    def cluster(self) -> Broker:
        """The same on three nodes that its tests may kill."""
        return replace(self, fixture=f"own_{self.fixture}_cluster")

    def __str__(self) -> str:
        return self.name


SQLITE = Broker("sqlite")
RABBITMQ = Broker("rabbitmq", "rabbitmq")
CLASSIC = Broker("rabbitmq-classic", "rabbitmq", {"queue_type": "classic"})
KAFKA = Broker("kafka", "kafka", {"revoke_wait": "5s"})
#: What makes a worker or a server that stands still be given up soon. Kafka's is the least that servers allow.
IMPATIENCE: dict[str, dict[str, Any]] = {"rabbitmq": {"heartbeat": 5}, "kafka": {"session_timeout": "6s"}}


def many(*brokers: Broker) -> list[Broker]:
    """Brokers that ``make chaos`` alone has time for."""
    return list(brokers) if WANTED is not None else []


EMPTY = {"ready": 0, "delayed": 0, "active": 0, "dead": 0}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def rounds(few: int, share: float = 1.0) -> int:
    """How many rounds a test goes: *few*, or that *share* of what ``make chaos`` asks for."""
    return few if WANTED is None else max(1, round(int(WANTED) * share))


@dataclass
class Load:
    """App code that sends without pause, through as many processes as it takes, and what the broker confirmed to it."""

    project: Project
    chance: random.Random
    queue: str = "load"
    #: Seconds between two messages.
    pace: float = 0.003
    confirmed: dict[int, float] = field(default_factory=dict)
    #: When each message was handed to handrail.
    sending: dict[int, float] = field(default_factory=dict)
    failed: int = 0
    _begun: int = 0
    _sender: Sender | None = None

    def go_on(self) -> None:
        """See to it that somebody sends; one that was killed keeps what it had confirmed."""
        if self._sender is not None and self._sender.process.poll() is None:
            return
        self._collect()
        numbers = range(self._begun, self._begun + 1_000_000)
        self._begun = numbers.stop
        self._sender = self.project.sender(self.queue, numbers, pace=self.pace)

    def kill(self) -> None:
        """SIGKILL for who sends."""
        if self._sender is not None:
            self._sender.kill()
            self._collect()

    def _collect(self) -> None:
        if self._sender is not None:
            self.confirmed |= self._sender.notes("confirmed")
            self.sending |= self._sender.notes("sending")
            self.failed += len(self._sender.notes("failed"))
            self._sender = None

    def stop(self) -> set[int]:
        """Stop sending; everything that was confirmed."""
        self.kill()
        return set(self.confirmed)


#: Handlers of a few milliseconds that tell of their life, each run by a number of its own.
#: The slow one takes a tenth of a second on average, so that one worker is up to 200 a second.
HANDLERS = """
import asyncio, itertools, random, time
from journal import note

runs = itertools.count()


async def handler(message, callback):
    run, n = next(runs), message["n"]
    note("start", n, run)
    for _ in range(random.randrange(4)):
        await asyncio.sleep(0.005)
        note("beat", n, run)
    note("end", n, run)
    callback()


# one in twenty takes its time
async def slow(message, callback):
    run, n = next(runs), message["n"]
    note("start", n, run)
    for _ in range(random.randrange(300) if n % 20 == 0 else 2):
        await asyncio.sleep(0.01)
        note("beat", n, run)
    note("end", n, run)
    callback()
"""


def lay(project: Project, handler: str = "load") -> None:
    """Handlers and a queue that takes all that chance may do to it."""
    # a message that runs in several kills must not be dead-lettered for it: each of them was innocent
    settings: dict[str, Any] = {"handler": handler, "concurrency": CONCURRENCY, "max_crashes": 1000}
    project.lay({"load": settings})
    project.write("handlers/load.py", HANDLERS)


@dataclass(frozen=True)
class Incident:
    """One thing that was done to the system, and what may run again because of it."""

    at: float
    #: The processes whose work may run again; None is all there are.
    pids: frozenset[int] | None = None
    #: When what was frozen went on, and so still had to learn what had happened meanwhile; 0 where nothing was.
    over: float = 0.0
    #: Whether it was the server, so that what was being sent may stand there twice.
    server: bool = False

    def _met(self, run: Run) -> bool:
        return self.pids is None or run.pid in self.pids

    def explains(self, earlier: Run, later: Run) -> bool:
        return self._met(earlier) and earlier.begun <= max(self.over, self.at) + UNAWARE and later.begun > self.at

    def stale(self, later: Run) -> bool:
        """Whether *later* was begun by somebody who woke and did not know that it was done elsewhere."""
        return self.pids is not None and later.pid in self.pids and 0 <= later.begun - self.over <= UNAWARE

    def interrupted(self, run: Run) -> bool:
        """Whether *run* was under way when it happened, where it happened."""
        return self._met(run) and run.begun <= self.at and not (run.ended and run.seen < self.at)

    def doubled(self, sending: float, confirmed: float) -> bool:
        return self.server and sending <= max(self.over, self.at) and confirmed >= self.at


@dataclass
class Toll:
    """What ran again because of one incident."""

    #: Ran when it happened.
    running: int = 0
    #: Had ended before, and the broker had not heard or not kept it; how long before, at most, in seconds.
    ended: int = 0
    age: float = 0.0
    #: Began after it, in a process that did not know yet.
    unaware: int = 0
    #: Was done elsewhere while this stood still, and begun again as it woke.
    stale: int = 0
    #: Was sent twice, for the first time was not confirmed.
    twice: int = 0

    @property
    def again(self) -> int:
        return self.running + self.ended + self.unaware + self.stale


def judge(project: Project, load: Load, incidents: list[Incident]) -> list[Toll]:
    """What each of *incidents* made run again; fails for a run that none of them explains."""
    tolls = [Toll() for _ in incidents]
    for n, runs in project.runs().items():
        for older, (earlier, later) in enumerate(pairwise(runs)):
            guilty = [index for index, one in enumerate(incidents) if one.explains(earlier, later)]
            sent, confirmed = load.sending.get(n, math.inf), load.confirmed.get(n, math.inf)
            stale = [index for index, one in enumerate(incidents) if one.stale(later)]
            doubled = [index for index, one in enumerate(incidents) if one.doubled(sent, confirmed)]
            assert guilty or stale or doubled, (
                f"message {n} (sent {sent:.3f}, confirmed {confirmed:.3f}) ran again: {earlier}, then {later}, "
                "and nothing that was done explains it"
            )
            if doubled and (not guilty or earlier.begun > incidents[guilty[0]].at):
                tolls[doubled[0]].twice += 1
                continue
            if not guilty:
                tolls[stale[0]].stale += 1
                continue
            # what ran when something was done is that one's, though it began soon after another
            index = next((index for index in guilty if earlier.begun <= incidents[index].at), guilty[0])
            toll, at = tolls[index], incidents[index].at
            if earlier.begun > at:
                # begun by one that did not know, beside one that did run it, and to which something was done in its turn
                since = (one for one in range(len(incidents)) if earlier.begun <= incidents[one].at < later.begun)
                cause = next((one for one in since if any(map(incidents[one].interrupted, runs[:older]))), None)
                if cause is not None:
                    tolls[cause].running += 1
                    continue
            if earlier.begun > at:
                toll.unaware += 1
            elif earlier.ended and earlier.seen < at:
                toll.ended += 1
                toll.age = max(toll.age, at - earlier.seen)
            else:
                toll.running += 1
    return tolls


def tell(what: str, load: Load, tolls: list[Toll], overlaps: list[int]) -> None:
    """The counts of one test, in one line."""
    total = Counter[str]()
    for toll in tolls:
        total.update({name: getattr(toll, name) for name in ("running", "ended", "unaware", "stale", "twice")})
    most = max((toll.again for toll in tolls), default=0)
    age = max((toll.age for toll in tolls), default=0.0)
    say(
        f"{what}: {len(tolls)} rounds, {len(load.confirmed)} confirmed, {load.failed} sends failed, 0 lost; "
        f"ran again {sum(toll.again for toll in tolls)} ({total['running']} running, {total['ended']} ended at most "
        f"{age:.3f} s before, {total['unaware']} unaware, {total['stale']} stale), at most {most} for one; "
        f"sent twice {total['twice']}; twice at once {len(overlaps)}"
    )


def until_all_is_done(project: Project, confirmed: set[int], timeout: float = 90) -> None:
    """Wait until every confirmed message was handled and nothing is left over."""
    missing: set[int] = set()

    def handled() -> bool:
        nonlocal missing
        missing = confirmed - set(project.counts("end"))
        return not missing

    try:
        wait_for(handled, "every confirmed message is handled", timeout)
    except AssertionError:
        raise AssertionError(
            f"{len(missing)} of {len(confirmed)} confirmed messages were not handled: {sorted(missing)[:20]} …; "
            f"the broker has {project.depths('load')}"
        ) from None
    wait_for(lambda: project.depths("load") == EMPTY, "nothing is left over", timeout)


def freeze(pids: list[int]) -> None:
    for pid in pids:
        _send(pid, signal.SIGSTOP)


def thaw(pids: list[int]) -> None:
    for pid in pids:
        _send(pid, signal.SIGCONT)


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)
