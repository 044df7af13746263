"""The fleet: which hosts there are, of which generation of the code, and which of them takes the next job.

It starts, replaces and retires hosts. It gives them no messages and judges nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

from handrail.board import Board
from handrail.config.model import Settings
from handrail.dispatcher.hosts import Body, Host, LoadError, Receive
from handrail.dispatcher.lane import Lane
from handrail.dispatcher.tasks import Tasks
from handrail.logger import get_logger
from handrail.pipe import Found

log = get_logger("handrail")

#: Seconds that what timed out or was cancelled gets to unwind before its host is ended.
UNWIND = 2.0
#: Seconds that an idle host for suspects is kept.
QUARANTINE_IDLE = 30.0
#: Seconds a host must have lived for the next death to be answered without a pause.
CALM = 30.0
#: The longest pause, in seconds, before a host that keeps dying is started again.
LONGEST_PAUSE = 30.0


def pause(deaths: int) -> float:
    """Seconds to wait before a host is started after so many *deaths*, failed starts included, in a row."""
    return min(0.1 * 2 ** min(deaths - 1, 60), LONGEST_PAUSE) if deaths else 0.0


class Generation:
    """The hosts of one state of the code: shared ones, some for each queue that wants isolation, one for suspects."""

    def __init__(self, name: str, settings: Settings, queues: list[str]) -> None:
        self.name = name
        self.settings = settings
        self.queues = queues
        #: What the handlers turned out to be, by queue.
        self.found: dict[str, Found] = {}
        self.shared: list[Host] = []
        #: Hosts of one job each, by queue.
        self.isolated: dict[str, list[Host]] = {}
        #: How many of those are starting, by queue.
        self.starting: dict[str, int] = {}
        self.quarantine: Host | None = None
        self.quarantine_starting = False
        #: Deaths of shared hosts that were not lived down yet.
        self.deaths = 0

    @property
    def common(self) -> list[str]:
        """The queues that the shared hosts serve."""
        return [name for name in self.queues if self.settings.queues[name].isolation != "process"]

    def hosts(self) -> list[Host]:
        """The hosts that serve it now; one that was dropped may still be ending."""
        isolated = itertools.chain.from_iterable(self.isolated.values())
        return [*self.shared, *isolated, *([self.quarantine] if self.quarantine is not None else [])]

    def remove(self, host: Host) -> None:
        if host is self.quarantine:
            self.quarantine = None
        for hosts in (self.shared, *self.isolated.values()):
            if host in hosts:
                hosts.remove(host)


class Fleet:
    """All hosts of a worker. *ready* is called whenever one can take jobs that could not before."""

    def __init__(
        self,
        *,
        make_body: Callable[[], Body],
        board: Board | None,
        processes: int,
        receive: Receive,
        lost: Callable[[Host, str], None],
        ready: Callable[[], None],
    ) -> None:
        self._make_body = make_body
        self._board = board
        self._processes = processes
        self._receive = receive
        self._lost = lost
        self._ready = ready
        self._names = itertools.count(1)
        self._tasks = Tasks("starting or ending a host")
        self.current: Generation | None = None
        self._retired: list[Generation] = []
        #: Every host that was started and has not ended for good, wherever it belongs.
        self._living: set[Host] = set()
        self.stopping = False

    # -- generations ---------------------------------------------------------------------------------------------------

    async def load(self, settings: Settings, queues: list[str]) -> Generation:
        """Start the hosts of a new generation and wait until they are ready. Raises LoadError; then nothing of it is left."""
        if self.stopping:
            raise LoadError(["the worker stops: nothing is loaded any more"])
        generation = Generation(f"{next(self._names)}", settings, queues)
        if generation.common:
            generation.shared = [self._new(generation, generation.common) for _ in range(self._processes)]
        for name in queues:
            if name not in generation.common:
                # one at once, so that its handler is known to load and the first job need not wait
                generation.isolated[name] = [self._new(generation, [name], alone=True)]
        hosts = generation.hosts()
        try:
            results = await asyncio.gather(*(self._begin(host) for host in hosts), return_exceptions=True)
            problems: dict[str, None] = {}
            for result in results:
                if isinstance(result, LoadError):
                    problems.update(dict.fromkeys(result.problems))
                elif isinstance(result, BaseException):
                    raise result
            if problems:
                raise LoadError(list(problems))
            if self.stopping:
                raise LoadError(["the worker stops: what was loaded is not used any more"])
        except BaseException:
            await self.discard(generation, hosts)
            raise
        for host in hosts:
            generation.found.update({found.queue: found for found in host.found})
        return generation

    @staticmethod
    async def discard(generation: Generation, hosts: list[Host] | None = None) -> None:
        """Kill the hosts of a *generation* that was not promoted; returns when nothing of them is left."""
        await asyncio.gather(*(host.ended_for_good() for host in hosts or generation.hosts()))

    def promote(self, generation: Generation) -> None:
        """From now on *generation* gets the new jobs. The one before it keeps what it runs until :meth:`retire_old`."""
        if self.current is not None:
            self._retired.append(self.current)
        self.current = generation
        for host in generation.hosts():
            if host.ended:  # between being ready and this
                self._missing(generation, host)

    def retire_old(self) -> None:
        """Let the hosts of former generations end as soon as nothing runs in them."""
        for generation in self._retired:
            for host in generation.hosts():
                self.retire(host)

    def __iter__(self) -> Iterator[Host]:
        return iter(list(self._living))

    # -- choosing ------------------------------------------------------------------------------------------------------

    def pick(self, lane: Lane) -> Host | None:
        """A host that may take a job of *lane* now. None when there is none; `ready` will tell when one is."""
        generation = self.current
        assert generation is not None
        if lane.isolated:
            return self._pick_isolated(generation, lane)
        best = None
        for host in generation.shared:
            if host.ready and not host.draining and (best is None or len(host.runs) < len(best.runs)):
                best = host
        return best

    def _pick_isolated(self, generation: Generation, lane: Lane) -> Host | None:
        name = lane.queue.name
        hosts = generation.isolated.setdefault(name, [])
        for host in hosts:
            if host.ready and not host.draining and not host.runs and not host.lingering:
                return host
        staying = sum(1 for host in hosts if not host.draining)
        if staying + generation.starting.get(name, 0) < lane.capacity:
            generation.starting[name] = generation.starting.get(name, 0) + 1
            self._tasks.spawn(self._start_isolated(generation, name))
        return None

    def pick_for_suspect(self) -> Host | None:
        """The host in which suspects run, one at a time, so that a further death harms no bystander."""
        generation = self.current
        assert generation is not None
        host = generation.quarantine
        if host is not None and host.ready and not host.draining:
            return host
        if not generation.quarantine_starting:
            generation.quarantine_starting = True
            self._tasks.spawn(self._start_quarantine(generation))
        return None

    def suspect_ended(self, idle: Callable[[], bool]) -> None:
        """A suspect ran to its end: unless *idle* says otherwise after a while, their host is no longer needed."""
        self._tasks.spawn(self._end_quarantine(idle))

    # -- starting ------------------------------------------------------------------------------------------------------

    def _new(self, generation: Generation, queues: list[str], *, alone: bool = False) -> Host:
        return Host(
            self._make_body(),
            generation.settings,
            queues,
            generation=generation.name,
            board=self._board,
            receive=self._receive,
            lost=self._gone,
            alone=alone,
        )

    async def _begin(self, host: Host) -> None:
        self._living.add(host)
        try:
            await host.start()
        except BaseException:
            self._living.discard(host)  # `start` has seen to its end
            raise

    async def _start(self, generation: Generation, queues: list[str], what: str, *, alone: bool = False) -> Host | None:
        """One more host for *queues*, or None when it does not load; then it says so and waits a second."""
        host = self._new(generation, queues, alone=alone)
        try:
            await self._begin(host)
        except LoadError as error:
            log.error("a host did not start; it is tried again", serves=what, error=str(error))
            await asyncio.sleep(1.0)
            return None
        return host

    def _started(self, generation: Generation, host: Host | None) -> None:
        if host is not None and (generation is not self.current or self.stopping):
            self.retire(host)  # it came too late to be of use
        self._ready()

    async def _start_isolated(self, generation: Generation, name: str) -> None:
        try:
            host = await self._start(generation, [name], name, alone=True)
            if host is not None:
                generation.isolated[name].append(host)
        finally:
            generation.starting[name] -= 1
        self._started(generation, host)

    async def _start_quarantine(self, generation: Generation) -> None:
        try:
            host = await self._start(generation, generation.common, "messages whose process died", alone=True)
            if host is not None:
                generation.quarantine = host
        finally:
            generation.quarantine_starting = False
        self._started(generation, host)

    async def _start_shared(self, generation: Generation) -> None:
        """One more shared host, tried again with growing pauses until it is up."""
        while generation is self.current and not self.stopping:
            await asyncio.sleep(pause(generation.deaths))
            generation.deaths += 1
            host = await self._start(generation, generation.common, ", ".join(generation.common))
            if host is not None:
                generation.shared.append(host)
                self._started(generation, host)
                asyncio.get_running_loop().call_later(CALM, self._calm, generation, host)
                return

    @staticmethod
    def _calm(generation: Generation, host: Host) -> None:
        if not host.ended:
            generation.deaths = 0

    # -- ending --------------------------------------------------------------------------------------------------------

    def retire(self, host: Host) -> None:
        """No new work for *host*; it ends when what it runs has ended."""
        host.draining = True
        if not host.runs and not host.ended and not host.ending:
            host.ending = True
            self._tasks.spawn(self._leave(host))

    async def _leave(self, host: Host) -> None:
        until = time.monotonic() + UNWIND
        while host.lingering and not host.ended and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await host.leave()

    def replace(self, host: Host) -> None:
        """Retire the shared *host* once another has taken its place; until then it serves."""
        generation = self.current
        if generation is not None and host in generation.shared and not host.replaced and not self.stopping:
            log.warning("the host is replaced: as many threads are abandoned as may run", pid=host.pid)
            host.replaced = True
            self._tasks.spawn(self._replace(generation, host))

    async def _replace(self, generation: Generation, host: Host) -> None:
        await self._start_shared(generation)
        self.retire(host)

    def drop(self, host: Host) -> None:
        """Kill *host* now, with everything it started."""
        for generation in self._generations():
            generation.remove(host)
        host.end()

    async def _end_quarantine(self, idle: Callable[[], bool]) -> None:
        await asyncio.sleep(QUARANTINE_IDLE)
        generation = self.current
        if generation is not None and generation.quarantine is not None and idle():
            self.retire(generation.quarantine)

    def _generations(self) -> list[Generation]:
        return [*([self.current] if self.current is not None else []), *self._retired]

    def _gone(self, host: Host, how: str) -> None:
        self._living.discard(host)
        crashed = not host.ending
        self._lost(host, how)
        for generation in self._generations():
            self._missing(generation, host)
        self._retired = [generation for generation in self._retired if generation.hosts()]
        if crashed:
            self._ready()

    def _missing(self, generation: Generation, host: Host) -> None:
        """*host* has ended: it serves *generation* no more, and another takes its place where one must."""
        was_shared = host in generation.shared
        generation.remove(host)
        # one that left because it was told to, or whose successor starts already, leaves no gap
        if was_shared and generation is self.current and not (host.ending or host.replaced or self.stopping):
            self._tasks.spawn(self._start_shared(generation))

    async def stop(self) -> None:
        """Let every host leave its lifespan and end."""
        self.stopping = True
        hosts = list(self)
        for host in hosts:
            if not host.ready:  # it loads, perhaps for long, what nobody wants any more; or is being killed
                host.end()
            host.ending = True
        await asyncio.gather(*(self._leave(host) for host in hosts))
        await self._tasks.cancel()

    def kill(self) -> None:
        """Kill all hosts now, :meth:`stop` being under way: it returns soon."""
        self.stopping = True
        for host in self:
            host.end()

    async def end(self) -> None:
        """Kill all hosts now; returns when nothing of them is left."""
        self.stopping = True
        await self._tasks.cancel()
        await asyncio.gather(*(host.ended_for_good() for host in self))
