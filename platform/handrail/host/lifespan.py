"""``handlers/_lifespan.py``: what handlers share, opened before the first message, closed after the last. No more.

``lifespan`` is an async generator function without parameters (``async def lifespan(): …; yield {…}; …``); a plain
generator function, a function that gives an (async) context manager, or such a manager itself, will do as well. The
dict it yields is ``context.state``.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from handrail.host import job

#: Whose state it is: at a reload in one process the next lifespan is entered before this one is left.
_owner: Lifespan | None = None


class Lifespan:
    """One lifespan, entered and left in the same task, as cancel scopes need it."""

    def __init__(self, found: Any) -> None:
        self._found = found
        self._stack = contextlib.AsyncExitStack()

    async def enter(self) -> None:
        """Raises whatever the user's code raises, and ``TypeError`` when it cannot be entered or yields no dict."""
        value = await self._enter()
        if value is None:
            value = {}
        if not isinstance(value, dict):
            await self._stack.aclose()
            raise TypeError(f"lifespan yielded {type(value).__name__}; yield a dict, which becomes context.state")
        global _owner
        _owner = self
        job.state.clear()
        job.state.update(value)

    async def _enter(self) -> Any:
        manager = self._found
        if inspect.isasyncgenfunction(manager):
            manager = contextlib.asynccontextmanager(manager)
        elif inspect.isgeneratorfunction(manager):
            manager = contextlib.contextmanager(manager)
        if not _enterable(manager):
            manager = manager()
        if hasattr(type(manager), "__aenter__"):
            return await self._stack.enter_async_context(manager)
        if hasattr(type(manager), "__enter__"):
            return self._stack.enter_context(manager)
        raise TypeError(
            f"lifespan gave {type(manager).__name__}, which cannot be entered; write an async generator function"
        )

    async def leave(self) -> None:
        """Raises what the user's closing code raises."""
        try:
            await self._stack.aclose()
        finally:
            if _owner is self:
                job.state.clear()


def _enterable(found: Any) -> bool:
    return not isinstance(found, type) and (hasattr(type(found), "__aenter__") or hasattr(type(found), "__enter__"))
