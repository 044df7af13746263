"""Deadlines: finds the runs whose timeout is over, with one timer for all of them. It judges nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from handrail.board import GIVEN, Board
from handrail.dispatcher.run import Run

#: Seconds between a deadline and the look that finds it passed; also the least time between two looks.
GRAIN = 0.005


class Deadlines:
    """One timer, set to the earliest deadline. Most runs end long before theirs, so ended runs cost nothing here."""

    def __init__(self, runs: dict[int, Run], board: Board | None, passed: Callable[[list[Run]], None]) -> None:
        self._runs = runs
        self._board = board
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._next: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float) -> None:
        """A run with this *deadline* was added to the runs."""
        if self._next is None or deadline < self._next:
            self._set(deadline)

    def _set(self, deadline: float) -> None:
        self.stop()
        self._next = deadline
        self._timer = self._loop.call_later(max(deadline - time.monotonic(), 0.0) + GRAIN, self._look)

    def _look(self) -> None:
        self._next = self._timer = None
        moment = time.monotonic()
        earliest: float | None = None
        passed: list[Run] = []
        for run in self._runs.values():
            if run.deadline is None or run.limit is None:
                continue
            if run.deadline <= moment:
                begun = self._begun(run)
                if begun is None:
                    # handed over but not begun, for its host is busy: its time has not started to run
                    run.deadline = moment + run.limit
                elif begun + run.limit <= moment:
                    passed.append(run)
                    continue
                else:
                    run.deadline = begun + run.limit
            if earliest is None or run.deadline < earliest:
                earliest = run.deadline
        if earliest is not None:
            self._set(earliest)
        if passed:
            self._passed(passed)

    def _begun(self, run: Run) -> float | None:
        """When the handler of *run* was entered, or None while it is not."""
        if self._board is None:
            return run.begun
        if self._board.state(run.slot) == GIVEN:
            return None
        return max(run.begun, self._board.begun(run.slot))

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = self._timer = None
