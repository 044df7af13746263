"""Middleware around a handler: ``mw(job, call_next)``. It decides nothing about outcomes.

``call_next()`` (awaited in an async middleware) calls what stands further in, at last the handler. It returns when the
handler function has returned, with its return value, and raises what it raised; a handler that takes a callback may fire
it later still, and the middleware does not see that. What an exception means is decided outside the outermost
middleware, so one that swallows it makes the attempt a success of a one-parameter handler. For such a handler the
outermost middleware's return value is the result. ``call_next`` works once.

An async middleware fits both kinds of handler: around a plain one it runs on the loop while the handler runs in its
thread. A plain middleware fits only a plain handler, and runs in that thread; in a mixed list the async ones come first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from handrail.host.job import Job

_TWICE = "call_next() was called twice; a middleware calls it once"


async def on_loop(middleware: tuple[Callable[..., Any], ...], job: Job, innermost: Callable[[], Awaitable[Any]]) -> Any:
    """Call *innermost* through async *middleware*, outermost first."""

    def step(at: int) -> Callable[[], Awaitable[Any]]:
        called = False

        async def call_next() -> Any:
            nonlocal called
            if called:
                raise RuntimeError(_TWICE)
            called = True
            if at == len(middleware):
                return await innermost()
            return await middleware[at](job, step(at + 1))

        return call_next

    return await step(0)()


def in_thread(middleware: tuple[Callable[..., Any], ...], job: Job, innermost: Callable[[], Any]) -> Any:
    """Call *innermost* through plain *middleware*, outermost first, in this thread."""

    def step(at: int) -> Callable[[], Any]:
        called = False

        def call_next() -> Any:
            nonlocal called
            if called:
                raise RuntimeError(_TWICE)
            called = True
            if at == len(middleware):
                return innermost()
            return middleware[at](job, step(at + 1))

        return call_next

    return step(0)()
