"""The lines of the outcome table that are decided in the host."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import pytest

from handrail.board import COMPLETED, ENDED, RUNNING
from handrail.pipe import End, ToDispatcher, ToHost

KINDS = pytest.mark.parametrize("define", ["def", "async def"])


def go(test: Any) -> None:
    asyncio.run(test)


def simple(project: Any, define: str, body: str, parameters: str = "message, callback", head: str = "") -> None:
    source = f"import asyncio, threading, time\nfrom handrail.errors import Reject, RetryLater\n{head}\n"
    project.handler(f"{source}{define} handler({parameters}):\n    {body}\n")


@KINDS
def test_callback_completes(project, memory, define):
    """callback() is a completed job without a result."""
    simple(project, define, "callback()")

    async def test():
        async with memory() as host:
            assert await host.call() == [End.COMPLETED, None]

    go(test())


@KINDS
@pytest.mark.parametrize(
    ("result", "data"), [("{'a': [1, 2]}", b'{"a":[1,2]}'), ("0", b"0"), ("''", b'""'), ("None", None)]
)
def test_callback_keeps_its_result(project, memory, define, result, data):
    """callback(None, result) completes the job with the result as JSON; None is no result."""
    simple(project, define, f"callback(None, {result})")

    async def test():
        async with memory() as host:
            assert await host.call() == [End.COMPLETED, data]

    go(test())


@KINDS
def test_return_is_the_acknowledgement_of_one_parameter(project, memory, define):
    """A handler with one parameter completes by returning, and what it returns is the result."""
    simple(project, define, "return message['n'] + 1", "message")

    async def test():
        async with memory() as host:
            assert await host.call(b'{"n": 41}') == [End.COMPLETED, b"42"]

    go(test())


@KINDS
@pytest.mark.parametrize(
    "error",
    [
        "ValueError('no such user')",
        "SystemExit('no such user')",
        "KeyboardInterrupt('no such user')",
        "asyncio.CancelledError('no such user')",
        "GeneratorExit('no such user')",
        "ExceptionGroup('no such user', [ValueError(1), KeyError(2)])",
        "BaseExceptionGroup('no such user', [KeyboardInterrupt()])",
    ],
)
def test_raising_anything_fails_the_attempt(project, memory, define, error):
    """Whatever a handler raises, the attempt fails with its class, text and traceback, and the host lives on."""
    simple(project, define, f"raise {error}")

    async def test():
        async with memory() as host:
            end, name, text, trace, rule = await host.call()
            assert (end, name, rule) == (End.FAILED, error.partition("(")[0].removeprefix("asyncio."), -1)
            assert text.startswith("no such user")
            assert "handlers/h.py" in trace
            assert (await host.call())[0] == End.FAILED

    go(test())


def test_a_plain_handler_may_raise_stop_iteration(project, memory):
    """StopIteration, which asyncio treats apart, is a failure like any other."""
    simple(project, "def", "raise StopIteration('x')")

    async def test():
        async with memory() as host:
            assert (await host.call())[:3] == [End.FAILED, "StopIteration", "x"]

    go(test())


@KINDS
@pytest.mark.parametrize(
    ("argument", "name", "text"),
    [
        ("ValueError('bad')", "ValueError", "bad"),
        ("'just words'", "", "just words"),
        ("ValueError", "ValueError", ""),
        ("''", "", ""),
    ],
)
def test_callback_with_an_error_fails_the_attempt(project, memory, define, argument, name, text):
    """callback(error) takes an exception, its class or a text."""
    simple(project, define, f"callback({argument})")

    async def test():
        async with memory() as host:
            assert await host.call() == [End.FAILED, name, text, "", -1]

    go(test())


def test_callback_with_a_result_in_the_wrong_place_is_told(project, memory):
    """callback(result) is a failure whose text says where a result goes."""
    simple(project, "def", "callback({'id': 7})")

    async def test():
        async with memory() as host:
            _end, _name, text, *_ = await host.call()
            assert text.startswith("{'id': 7}")
            assert "callback(None, result)" in text

    go(test())


def test_an_error_that_was_caught_keeps_its_traceback(project, memory):
    """An exception given to the callback after it was caught shows where it was raised."""
    project.handler("""
        def handler(message, callback):
            try:
                1 / 0
            except ZeroDivisionError as error:
                callback(error)
        """)

    async def test():
        async with memory() as host:
            _end, name, _text, trace, _rule = await host.call()
            assert name == "ZeroDivisionError"
            assert "1 / 0" in trace

    go(test())


@KINDS
@pytest.mark.parametrize(
    ("act", "path"),
    [("callback(None, {'a': [1, object()]})", "result.a[1]"), ("callback(None, float('nan'))", "result")],
)
def test_a_result_that_cannot_be_serialised_fails_with_its_path(project, memory, define, act, path):
    """The attempt fails and names the place inside the result."""
    simple(project, define, act)

    async def test():
        async with memory() as host:
            end, name, text, *_ = await host.call()
            assert (end, name) == (End.FAILED, "SerialisationError")
            assert text.startswith(path)

    go(test())


@KINDS
@pytest.mark.parametrize(
    "act", ["callback(Reject('why'))", "raise Reject('why')", "raise ExceptionGroup('g', [Reject('why')])"]
)
def test_reject_is_dead_now(project, memory, define, act):
    """Reject, raised or given, alone or as a whole group, rejects with its reason."""
    simple(project, define, act)

    async def test():
        async with memory() as host:
            assert (await host.call())[:2] == [End.REJECTED, "why"]

    go(test())


@KINDS
@pytest.mark.parametrize(
    ("act", "seconds"),
    [("callback(RetryLater(30))", 30), ("raise RetryLater('1h30m')", 5400), ("raise RetryLater()", 0)],
)
def test_retry_later_comes_back(project, memory, define, act, seconds):
    """RetryLater, raised or given, carries its delay in seconds."""
    simple(project, define, act)

    async def test():
        async with memory() as host:
            assert await host.call() == [End.LATER, seconds]

    go(test())


@pytest.mark.parametrize("delay", ["-1", "'soon'", "None"])
def test_retry_later_with_a_senseless_delay_fails(project, memory, delay):
    """A delay that is none fails the attempt and says what a delay looks like."""
    simple(project, "def", f"raise RetryLater({delay})")

    async def test():
        async with memory() as host:
            assert (await host.call())[:2] == [End.FAILED, "RetryLater"]

    go(test())


def test_a_timed_out_async_handler_is_cancelled(project, memory):
    """It gets CancelledError where it waits, no outcome of it counts, and FREED says that it has ended."""
    simple(project, "async def", "await asyncio.sleep(3600)")

    async def test():
        async with memory() as host:
            token = host.run()
            await host.ping()
            host.send(ToHost.CANCEL, token, "timeout")
            await host.until(lambda: host.has(ToDispatcher.FREED, token))
            assert host.outcome(token) is None
            assert host.said("h.py") is None

    go(test())


def test_a_handler_that_swallows_its_cancellation_is_freed_when_it_ends(project, memory):
    """FREED comes only when the function has really returned, and its late callback is logged and ignored."""
    project.handler("""
        import asyncio
        import release

        async def handler(message, callback):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await release.event.wait()
            callback()
        """)
    project.write("handlers/release.py", "import asyncio\nevent = asyncio.Event()\n")

    async def test():
        async with memory() as host:
            token = host.run()
            await host.ping()
            host.send(ToHost.CANCEL, token, "timeout")
            await host.ping()
            await host.ping()
            assert not host.has(ToDispatcher.FREED, token)
            sys.modules["handlers.release"].event.set()
            await host.until(lambda: host.has(ToDispatcher.FREED, token))
            said = await host.until(lambda: host.said("too late"))
            assert said[3]["reason"] == "it had timed out"
            assert host.outcome(token) is None

    go(test())


def test_a_timed_out_thread_is_abandoned_then_freed(project, memory):
    """A thread cannot be stopped: ABANDONED at once, FREED when it returns; job.cancelled tells it, its word is ignored."""
    project.handler("""
        import time
        from handlers import release
        from handrail.host.job import current_job

        def handler(message, callback):
            while not current_job.get().cancelled:
                time.sleep(0.001)
            release.event.wait()
            callback()
        """)
    project.write("handlers/release.py", "import threading\nevent = threading.Event()\n")

    async def test():
        async with memory() as host:
            token = host.run()
            await host.until(lambda: host.host.calls.live and host.host.calls.live[token].message is not None)
            host.send(ToHost.CANCEL, token, "timeout")
            await host.until(lambda: host.has(ToDispatcher.ABANDONED, token))
            sys.modules["handlers.release"].event.set()
            await host.until(lambda: host.has(ToDispatcher.FREED, token))
            ops = [one[0] for one in host.heard if one[0] in (ToDispatcher.ABANDONED, ToDispatcher.FREED)]
            assert ops == [ToDispatcher.ABANDONED, ToDispatcher.FREED]
            await host.until(lambda: host.said("too late"))
            assert host.outcome(token) is None

    go(test())


def test_a_job_cancelled_before_it_began_never_runs(project, memory):
    """Handed over and cancelled in one breath, it is freed and its handler not called."""
    simple(project, "async def", "open('ran', 'w')")

    async def test():
        async with memory() as host:
            tokens = [host.run() for _ in range(100)]
            for token in tokens:
                host.send(ToHost.CANCEL, token, "cancelled")
            for token in tokens:
                await host.until(lambda token=token: host.has(ToDispatcher.FREED, token))
                assert host.outcome(token) is None
            assert sum(one[0] == ToDispatcher.FREED for one in host.heard) == 100

    go(test())


def test_cancelling_a_job_of_which_nothing_is_left_frees_it(project, memory):
    """A CANCEL that crossed the outcome on its way is answered, so that no slot stays taken."""
    simple(project, "def", "callback()")

    async def test():
        async with memory() as host:
            token = host.run()
            await host.done(token)
            await host.until(lambda: not host.host.calls.live)
            host.send(ToHost.CANCEL, token, "timeout")
            await host.until(lambda: host.has(ToDispatcher.FREED, token))

    go(test())


def test_a_timeout_after_the_handler_returned_frees_at_once(project, memory):
    """Only its callback is left; firing it later is logged and ignored."""
    simple(project, "def", "kept.append(callback)", head="kept = []")

    async def test():
        async with memory() as host:
            token = host.run()
            await host.until(lambda: not host.host.calls.live and token in host.host.calls.open)
            host.send(ToHost.CANCEL, token, "timeout")
            await host.until(lambda: host.has(ToDispatcher.FREED, token))
            sys.modules["handlers.h"].kept.pop()()
            await host.until(lambda: host.said("too late"))
            assert host.outcome(token) is None

    go(test())


@KINDS
@pytest.mark.parametrize("body", ["pass", "del callback", "return 5"])
def test_a_callback_that_can_no_longer_fire_fails_at_once(project, memory, define, body):
    """The handler has returned and nobody holds its callback: a failed attempt that says so."""
    simple(project, define, body)

    async def test():
        async with memory() as host:
            assert await host.call() == [End.FAILED, "", "handler returned without calling its callback", "", -1]

    go(test())


@KINDS
def test_a_callback_let_go_before_the_handler_returns_is_not_held_against_it_yet(project, memory, define):
    """While the handler still runs it may yet say Reject by raising it."""
    simple(project, define, "del callback; raise Reject('no')")

    async def test():
        async with memory() as host:
            assert (await host.call())[:2] == [End.REJECTED, "no"]

    go(test())


@KINDS
def test_a_callback_that_is_collected_later_fails_then(project, memory, define):
    """As long as somebody holds it, it may fire; when the last holder lets go, the attempt fails."""
    simple(project, define, "kept.append(callback)", head="kept = []")

    async def test():
        async with memory() as host:
            token = host.run()
            await host.until(lambda: not host.host.calls.live and token in host.host.calls.open)
            assert host.outcome(token) is None
            sys.modules["handlers.h"].kept.clear()
            assert (await host.done(token))[2] == "handler returned without calling its callback"

    go(test())


def test_a_callback_collected_by_the_garbage_collector_in_any_thread_is_noticed(project, memory):
    """A callback in a reference cycle is found by the collector, whichever thread that runs in."""
    simple(project, "def", "cycle = [callback]; cycle.append(cycle)")

    async def test():
        async with memory() as host:
            gc.disable()  # the collector would find it before it was looked for
            try:
                token = host.run()
                await host.until(lambda: not host.host.calls.live and token in host.host.calls.open)
                await asyncio.to_thread(gc.collect)
            finally:
                gc.enable()
            assert (await host.done(token))[2] == "handler returned without calling its callback"

    go(test())


@pytest.mark.parametrize(
    "body",
    [
        "threading.Thread(target=callback).start()",
        "threading.Timer(0.01, callback, (None, 7)).start()",
    ],
)
@KINDS
def test_a_callback_fires_from_another_thread(project, memory, define, body):
    """The handler may hand its callback to a thread and return."""
    simple(project, define, body)

    async def test():
        async with memory() as host:
            assert (await host.call())[0] == End.COMPLETED

    go(test())


def test_a_callback_fires_from_another_task_and_later(project, memory):
    """The handler may hand its callback to a task or a timer and return."""
    project.handler("""
        import asyncio

        async def handler(message, callback):
            asyncio.get_running_loop().call_later(0.01, callback, None, "later")
        """)

    async def test():
        async with memory() as host:
            assert await host.call() == [End.COMPLETED, b'"later"']

    go(test())


@KINDS
@pytest.mark.parametrize(("first", "end"), [("callback(None, 1)", End.COMPLETED), ("callback('no')", End.FAILED)])
def test_a_callback_fired_twice_counts_once(project, memory, define, first, end):
    """The first call counts, the second is logged."""
    simple(project, define, f"{first}; callback(None, 2)")

    async def test():
        async with memory() as host:
            token = host.run()
            assert (await host.done(token))[0] == end
            said = await host.until(lambda: host.said("called twice"))
            assert said[1] == "warning"
            assert said[3] == {"queue": "q", "id": f"id-{token}", "attempt": 1}
            assert host.outcomes(token) == 1

    go(test())


def test_a_callback_raced_by_many_threads_counts_once(project, memory):
    """However many threads fire it at once, there is one outcome."""
    project.handler("""
        import threading

        def handler(message, callback):
            gate = threading.Barrier(8)
            def fire():
                gate.wait()
                callback()
            threads = [threading.Thread(target=fire) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        """)

    async def test():
        async with memory() as host:
            for _ in range(20):
                token = host.run()
                await host.done(token)
                await host.until(lambda: not host.host.calls.live)
                await host.ping()
                assert host.outcomes(token) == 1

    go(test())


@KINDS
def test_raising_after_the_callback_changes_nothing(project, memory, define):
    """The callback counts, what was raised afterwards is logged."""
    simple(project, define, "callback(); raise ValueError('afterwards')")

    async def test():
        async with memory() as host:
            token = host.run()
            assert await host.done(token) == [End.COMPLETED, None]
            said = await host.until(lambda: host.said("raised after"))
            assert said[3]["error"] == "ValueError: afterwards"
            await host.ping()
            assert host.outcomes(token) == 1

    go(test())


@pytest.mark.parametrize("parameters", ["message", "message, callback"])
def test_a_plain_function_that_returns_a_coroutine_fails(project, memory, parameters):
    """It would seem to succeed without having run: the attempt fails and says what to write."""
    simple(project, "def", f"return inner({parameters})", parameters, head="async def inner(*a): pass")

    async def test():
        async with memory() as host:
            end, name, text, *_ = await host.call()
            assert (end, name) == (End.FAILED, "")
            assert text.startswith("handlers/h.py:handler is a plain function that returned a coroutine")
            assert "async def" in text

    go(test())


@KINDS
@pytest.mark.parametrize("body", [b"{not json", b"", b"\xff\xfe", b"[1, 2"])
def test_a_body_that_cannot_be_decoded_is_unfit(project, memory, define, body):
    """The handler is not called, and the reason is told."""
    simple(project, define, "raise AssertionError")

    async def test():
        async with memory() as host:
            end, reason = await host.call(body)
            assert end == End.UNFIT
            assert reason

    go(test())


@KINDS
def test_a_body_that_does_not_fit_the_annotated_type_is_unfit(project, memory, define):
    """The reason names the place in the message; a body that fits becomes the type."""
    head = "from dataclasses import dataclass\n@dataclass\nclass User:\n    name: str\n    age: int = 0"
    simple(project, define, "return f'{type(message).__name__} {message.name}'", "message: 'User'", head=head)

    async def test():
        async with memory() as host:
            assert await host.call(b'{"name": "Ada"}') == [End.COMPLETED, b'"User Ada"']
            end, reason = await host.call(b'{"name": "Ada", "age": "x"}')
            assert end == End.UNFIT
            assert "age" in reason
            assert host.found[0].type == "User"

    go(test())


@pytest.mark.parametrize(
    ("content", "body", "facts", "shown"),
    [
        ("json", b'{"a": 1}', {}, "{'a': 1}"),
        ("json", b"null", {}, "None"),
        ("json", b"12345678901234567890123", {}, "12345678901234567890123"),
        ("json", b"\x00\xff", {"content_type": "application/octet-stream"}, "b'\\x00\\xff'"),
        ("text", "grün".encode(), {}, "'grün'"),
        ("bytes", b"\x00", {}, "b'\\x00'"),
    ],
)
def test_content_decides_what_the_message_is(project, memory, content, body, facts, shown):
    """json, text and bytes; bytes that were sent as bytes arrive as bytes on a json queue too."""
    project.handler("def handler(message): return repr(message)", content=content)

    async def test():
        async with memory() as host:
            end, result = await host.call(body, **facts)
            assert (end, result.decode().strip('"').replace("\\\\", "\\")) == (End.COMPLETED, shown)

    go(test())


def test_the_board_shows_what_runs(project, memory):
    """A slot is RUNNING while its handler runs, then COMPLETED, or ENDED where more is to be done than to acknowledge."""
    project.write("handlers/release.py", "import asyncio\nevent = asyncio.Event()\n")
    project.handler("""
        import asyncio
        from handlers import release

        async def handler(message, callback):
            if message == 1:
                await release.event.wait()
            callback(None, "a result" if message == 2 else None)
            await asyncio.sleep(3600)
        """)

    async def test():
        async with memory(board=True) as host:
            token = host.run(b"1")
            slot = 0
            await host.until(lambda: host.board.state(slot) == RUNNING)
            assert host.outcome(token) is None
            sys.modules["handlers.release"].event.set()
            await host.done(token)
            assert host.board.state(slot) == COMPLETED
            host.send(ToHost.CANCEL, token, "cancelled")
            await host.until(lambda: host.has(ToDispatcher.FREED, token))
            await host.done(host.run(b"2"))
            assert host.board.state(1) == ENDED

    go(test())


def test_texts_that_no_encoding_carries_harm_nothing(project, memory):
    """Surrogates, huge texts and a __str__ that raises still give an outcome, clipped and valid."""
    project.handler("""
        class Mute(Exception):
            def __str__(self):
                raise SystemExit

        def handler(message):
            raise {"s": ValueError("\\ud800"), "h": ValueError("x" * 1_000_000), "m": Mute()}[message]
        """)

    async def test():
        async with memory() as host:
            for body in (b'"s"', b'"h"', b'"m"'):
                end, _name, text, trace, _rule = await host.call(body)
                assert end == End.FAILED
                assert 0 < len(text.encode()) <= 8192
                assert len(trace.encode()) <= 8192

    go(test())
