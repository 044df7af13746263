"""Middleware around handlers, on the loop and in threads."""

from __future__ import annotations

import asyncio
import sys

import pytest

from handrail.pipe import End, ToDispatcher, ToHost

HANDLERS = {
    "async": "async def handler(message, callback):\n    log.append('handler')\n    callback(None, log)\n",
    "plain": "def handler(message, callback):\n    log.append('handler')\n    callback(None, log)\n",
    "async1": "async def handler(message):\n    log.append('handler')\n    return log\n",
    "plain1": "def handler(message):\n    log.append('handler')\n    return log\n",
}
OPS = """
import asyncio, threading
from handrail.errors import Reject
from handrail.host.job import current_job
from contextvars import ContextVar
var = ContextVar("var", default=None)

async def outer(job, call_next):
    assert current_job.get() is job
    var.set("outer")
    job.message.append("outer")
    return await call_next()

async def inner(job, call_next):
    job.message.append("inner")
    return await call_next()

def plain(job, call_next):
    assert threading.current_thread() is not threading.main_thread()
    assert current_job.get() is job
    job.message.append("plain")
    return call_next()

async def skip(job, call_next):
    return "skipped"

async def twice(job, call_next):
    await call_next()
    return await call_next()

async def swallow(job, call_next):
    try:
        return await call_next()
    except ValueError as error:
        return f"swallowed {error}"

async def reject(job, call_next):
    raise Reject("by middleware")

class Wrap:
    async def __call__(self, job, call_next):
        return [await call_next()]
wrap = Wrap()

def odd(job): pass
"""


def bind(project, ref, handler, *names):
    project.write("handlers/ops.py", OPS)
    source = HANDLERS.get(handler, handler).replace("log.append", "message.append").replace("log", "message")
    project.handler(source, middleware=tuple(ref(f"ops.{name}") for name in names))


@pytest.fixture
def ref():
    from handrail.config.model import HandlerRef

    return lambda text: HandlerRef(text, f"{text.partition('.')[0]}.py", text.partition(".")[2])


@pytest.mark.parametrize("handler", HANDLERS)
def test_async_middleware_fits_every_handler(project, memory, ref, handler):
    """The outermost comes first; a plain handler runs in its thread meanwhile."""
    bind(project, ref, handler, "outer", "inner")

    async def test():
        async with memory() as host:
            assert await host.call(b"[]") == [End.COMPLETED, b'["outer","inner","handler"]']
            assert host.found[0].kind == handler.replace("plain", "thread").rstrip("1")

    asyncio.run(test())


@pytest.mark.parametrize("handler", ["plain", "plain1"])
def test_plain_middleware_runs_in_the_handlers_thread(project, memory, ref, handler):
    """Alone, or inside async middleware."""

    async def test(*names):
        bind(project, ref, handler, *names)
        async with memory() as host:
            end, result = await host.call(b"[]")
            assert (end, result) == (
                End.COMPLETED,
                str([*names, "handler"]).replace("'", '"').replace(" ", "").encode(),
            )

    asyncio.run(test("plain"))
    asyncio.run(test("outer", "plain"))


def test_context_variables_set_by_middleware_reach_a_plain_handler(project, memory, ref):
    """The handler's thread sees what the async middleware around it has set."""
    bind(project, ref, "import ops\ndef handler(message): return ops.var.get()", "outer")

    async def test():
        async with memory() as host:
            assert await host.call(b"[]") == [End.COMPLETED, b'"outer"']

    asyncio.run(test())


@pytest.mark.parametrize(
    ("handler", "names", "says"),
    [
        ("async", ["plain"], "the plain middleware ops.plain cannot stand around the async handler of queue q"),
        ("plain", ["plain", "outer"], "the async middleware ops.outer of queue q stands inside a plain one"),
        ("plain", ["odd"], "odd does not fit: a middleware takes (job, call_next)"),
        ("plain", ["gone"], "no function gone; there is inner, odd, outer"),
    ],
)
def test_what_does_not_combine_is_a_problem(project, memory, ref, handler, names, says):
    """Told at load, with the place and the way out."""
    bind(project, ref, handler, *names)

    async def test():
        async with memory() as host:
            assert len(host.problems) == 1
            assert host.problems[0].startswith("handlers/ops.py")
            assert says in host.problems[0]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("handler", "name", "outcome"),
    [
        ("async1", "skip", [End.COMPLETED, b'"skipped"']),
        ("async1", "wrap", [End.COMPLETED, b'[["handler"]]']),
        ("async", "skip", [End.FAILED, "", "its middleware returned without calling call_next()"]),
        ("plain", "skip", [End.FAILED, "", "its middleware returned without calling call_next()"]),
        ("async1", "twice", [End.FAILED, "RuntimeError", "call_next() was called twice; a middleware calls it once"]),
        ("async1", "reject", [End.REJECTED, "by middleware"]),
        ("plain", "reject", [End.REJECTED, "by middleware"]),
        ("async def handler(message): raise ValueError(1)", "swallow", [End.COMPLETED, b'"swallowed 1"']),
        ("def handler(message): raise ValueError(1)", "swallow", [End.COMPLETED, b'"swallowed 1"']),
        ("def handler(message): raise KeyError(1)", "swallow", [End.FAILED, "KeyError", "1"]),
        ("def handler(message): raise StopIteration(1)", "swallow", [End.FAILED, "RuntimeError"]),
        ("def handler(message): raise SystemExit(1)", "swallow", [End.FAILED, "SystemExit", "1"]),
        (
            "async def handler(message, callback): pass",
            "inner",
            [End.FAILED, "", "handler returned without calling its callback"],
        ),
        (
            "def handler(message, callback): pass",
            "inner",
            [End.FAILED, "", "handler returned without calling its callback"],
        ),
    ],
)
def test_outcomes_through_middleware(project, memory, ref, handler, name, outcome):
    """A middleware sees what the handler returned and raised; what comes out of the outermost is what counts."""
    bind(project, ref, handler, name)

    async def test():
        async with memory() as host:
            assert (await host.call(b"[]"))[: len(outcome)] == outcome

    asyncio.run(test())


def test_a_body_that_cannot_be_decoded_reaches_no_middleware(project, memory, ref):
    """It is unfit before anything of the user's is called."""
    bind(project, ref, "async1", "reject")

    async def test():
        async with memory() as host:
            assert (await host.call(b"{"))[0] == End.UNFIT

    asyncio.run(test())


def test_a_timeout_of_a_thread_under_async_middleware(project, memory, ref):
    """The middleware is cancelled, the thread abandoned, and the job freed when both have ended."""
    source = """
import time
from handrail.host.job import current_job
from handlers import release
def handler(message):
    while not current_job.get().cancelled: time.sleep(0.001)
    release.event.wait()
"""
    project.write("handlers/release.py", "import threading\nevent = threading.Event()\n")
    bind(project, ref, source, "inner")

    async def test():
        async with memory() as host:
            token = host.run(b"[]")
            await host.until(lambda: host.host.calls.live and host.host.calls.live[token].in_thread)
            host.send(ToHost.CANCEL, token, "timeout")
            await host.until(lambda: host.has(ToDispatcher.ABANDONED, token))
            assert not host.has(ToDispatcher.FREED, token)
            sys.modules["handlers.release"].event.set()
            await host.until(lambda: host.has(ToDispatcher.FREED, token))
            assert host.outcome(token) is None
            assert not host.host.calls.live

    asyncio.run(test())
