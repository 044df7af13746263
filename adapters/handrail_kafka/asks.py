"""What callers wait for: closing the adapter ends it, so that nobody waits for what nobody is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Asks:
    """The operations under way, each a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of *coroutine*; cancelling the wait cancels it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await task

    async def end(self) -> None:
        """Cancel what is under way, but for the caller itself; returns when it has ended, or after some seconds."""
        left = self._tasks - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5.0)
