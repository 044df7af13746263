"""Background steps of the dispatcher: kept until they end, and never failing silently."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from handrail.logger import get_logger

log = get_logger("handrail")


class Tasks:
    """A group of tasks that nobody awaits one by one. An exception in one is logged and ends only that one."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background step failed", what=self._what, error=repr(error), exc_info=error)

    async def cancel(self) -> None:
        """Cancel what is left, and return when it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
