"""The thread with an event loop of its own on which all of aiokafka lives, so that heartbeats go on whatever else happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Thread:
    """A loop on a thread. ``run`` is called from another loop, ``post`` from anywhere."""

    def __init__(self) -> None:
        # uvloop, where an application has made it the policy, is slower for aiokafka
        self.loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._main, name="handrail-kafka", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* there and wait for it here; cancelling the wait cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def post(self, call: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(call)

    async def stop(self) -> None:
        """End the loop with whatever is still on it."""
        await self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join, 10.0)
        if not self._thread.is_alive():
            self.loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5.0)
        await asyncio.sleep(0)  # transports close in the next turn
