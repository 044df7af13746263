"""What surrounds the calls: the job in its context, the lifespan, sends, pings, the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import msgspec
import pytest

from handrail import transport
from handrail.errors import BufferFullError, SendError, SendTimeoutError
from handrail.host import job as jobs
from handrail.message import Message
from handrail.pipe import End, ToDispatcher, ToHost

MANAGED = """
import contextlib
@contextlib.asynccontextmanager
async def lifespan():
    log.append("open"); var.set("seen")
    yield {"db": 1}
    log.append("close")
"""
ENTERED = """
class Entered:
    async def __aenter__(self):
        log.append("open"); var.set("seen")
        return {"db": 1}
    async def __aexit__(self, *_exc): log.append("close")
lifespan = Entered()
"""
KINDS = pytest.mark.parametrize("define", ["def", "async def"])
HEAD = "from handrail.host.job import current_job, state\n"


@KINDS
def test_the_job_is_in_the_context_of_every_kind_of_handler(project, memory, define):
    """Its facts are those of the delivery, and each job has its own."""
    project.handler(
        f"{HEAD}{define} handler(message):\n    j = current_job.get()\n"
        "    return [j.id, j.queue, j.attempt, j.starts, j.crashes, j.sent_at, j.priority, j.key, j.headers, "
        "j.content_type, j.deadline, j.remaining, j.cancelled, j.message, len(j.body)]\n"
    )

    async def test():
        async with memory() as host:
            facts = {"id": "x", "attempt": 2, "starts": 4, "crashes": 1, "sent_at": 7.5, "priority": 9, "key": "k"}
            end, result = await host.call(b'{"a":1}', **facts, headers={"h": "v"}, deadline=1.0)
            assert end == End.COMPLETED
            assert msgspec.json.decode(result) == (
                ["x", "q", 2, 4, 1, 7.5, 9, "k", {"h": "v"}, "application/json", 1.0, 0.0, False, {"a": 1}, 7]
            )
            plain = msgspec.json.decode((await host.call())[1])
            assert plain[8] == {}
            assert plain[10] is plain[11] is None
        assert jobs.current_job.get() is None

    asyncio.run(test())


@KINDS
def test_progress_and_log_lines_cross_the_pipe_in_order(project, memory, define):
    """They arrive before the outcome, whatever thread they come from."""
    project.handler(
        f"{HEAD}{define} handler(message, callback):\n    j = current_job.get()\n    j.progress(0.5)\n"
        "    j.log('half \\ud800', 'warning')\n    j.progress(1)\n    callback()\n"
    )

    async def test():
        async with memory() as host:
            token = host.run()
            await host.done(token)
            said = [one for one in host.heard if one[0] in (ToDispatcher.PROGRESS, ToDispatcher.LOG, ToDispatcher.DONE)]
            assert said[0] == [ToDispatcher.PROGRESS, token, 0.5]
            assert said[1] == [ToDispatcher.LOG, token, "half \\ud800", "warning"]
            assert said[2] == [ToDispatcher.PROGRESS, token, 1.0]
            assert said[3][0] == ToDispatcher.DONE

    asyncio.run(test())


@pytest.mark.parametrize("act", ["progress(50)", "progress(-0.1)", "progress(float('nan'))", "log('x', 'loud')"])
def test_senseless_progress_and_levels_are_refused(project, memory, act):
    """The error says what fits."""
    project.handler(f"{HEAD}def handler(message): current_job.get().{act}")

    async def test():
        async with memory() as host:
            assert (await host.call())[:2] == [End.FAILED, "ValueError"]

    asyncio.run(test())


def test_async_handlers_run_as_tasks_of_their_own(project, memory):
    """asyncio.timeout, task groups and context variables work, and nothing of one job is seen by the next."""
    project.handler("""
        import asyncio
        from contextvars import ContextVar
        var = ContextVar("var", default=0)

        async def handler(message):
            before = var.get()
            var.set(before + 1)
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(3600)
            except TimeoutError:
                pass
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            return [before, asyncio.current_task().get_name()]
        """)

    async def test():
        async with memory() as host:
            for _ in range(2):
                token = host.run()
                assert await host.done(token) == [End.COMPLETED, f'[0,"id-{token}"]'.encode()]

    asyncio.run(test())


def test_a_flood_is_begun_in_turns_so_that_pings_are_answered(project, memory):
    """A thousand jobs given at once do not keep the loop from a ping that follows them."""
    project.handler("async def handler(message, callback): callback()")

    async def test():
        async with memory() as host:
            tokens = [host.run() for _ in range(1000)]
            await host.ping()
            before = sum(host.outcome(token) is not None for token in tokens[-1:])
            assert before == 0
            for token in tokens:
                await host.done(token)

    asyncio.run(test())


def test_threads_are_used_again_and_grow_with_need(project, memory):
    """Ten handlers that wait for one another run at once, and later ones take the idle threads."""
    project.handler("""
        import threading
        gate = threading.Barrier(10)
        def handler(message, callback):
            if message: gate.wait(20)
            callback(None, threading.current_thread().name)
        """)

    async def test():
        async with memory() as host:
            tokens = [host.run(b"1") for _ in range(10)]
            names = {(await host.done(token))[1] for token in tokens}
            assert len(names) == 10
            await host.until(lambda: not host.host.calls.live)
            assert (await host.call(b"0"))[1] in names

    asyncio.run(test())


@pytest.mark.parametrize(
    "source",
    [
        "async def lifespan():\n    log.append('open'); var.set('seen')\n    yield {'db': 1}\n    log.append('close')",
        "def lifespan():\n    log.append('open'); var.set('seen')\n    yield {'db': 1}\n    log.append('close')",
        MANAGED,
        ENTERED,
    ],
)
def test_the_lifespan_is_entered_before_ready_and_left_on_stop(project, memory, source):
    """What it yields is the state, and handlers see the context variables that it set."""
    head = "from contextvars import ContextVar\nvar = ContextVar('v', default=None)\nlog = []\n"
    project.write("handlers/_lifespan.py", head + source)
    project.handler(
        f"{HEAD}from handlers import _lifespan as life\n"
        "async def handler(message): return [life.log, state['db'], life.var.get()]"
    )

    async def test():
        import sys

        async with memory() as host:
            assert await host.call() == [End.COMPLETED, b'[["open"],1,"seen"]']
            log = sys.modules["handlers._lifespan"].log
        assert log == ["open", "close"]
        assert jobs.state == {}

    asyncio.run(test())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1/0", "handlers/_lifespan.py:1: ZeroDivisionError"),
        ("x = 1", "handlers/_lifespan.py: no function lifespan"),
        ("async def lifespan(): pass", "handlers/_lifespan.py:1: lifespan never yields"),
        ("async def lifespan(db):\n    yield", "handlers/_lifespan.py:1: lifespan failed to open\nTypeError"),
        (
            "async def lifespan():\n    yield [1]",
            "handlers/_lifespan.py:1: lifespan failed to open\nTypeError: lifespan yielded list",
        ),
        ("lifespan = lambda: 5", "handlers/_lifespan.py:1: lifespan failed to open\nTypeError: lifespan gave int"),
        (
            "async def lifespan():\n    raise OSError('no database')\n    yield",
            "handlers/_lifespan.py:1: lifespan failed to open\nhandlers/_lifespan.py:2: OSError: no database",
        ),
    ],
)
def test_a_lifespan_that_cannot_be_entered_is_a_problem(project, memory, source, says):
    """It is found before READY, told with its place, and no job is taken."""
    project.write("handlers/_lifespan.py", source)
    project.handler("def handler(message): pass")

    async def test():
        async with memory() as host:
            assert not host.ready
            assert [one.queue for one in host.found] == ["q"]
            assert len(host.problems) == 1
            assert host.problems[0].startswith(says)

    asyncio.run(test())


def test_a_lifespan_that_fails_to_close_is_said_and_the_host_ends(project, memory):
    """The closing error is in the log, with where it was raised."""
    project.write("handlers/_lifespan.py", "async def lifespan():\n    yield\n    raise OSError('late')")
    project.handler("def handler(message): pass")

    async def test():
        async with memory() as host:
            pass
        said = host.said("could not be left")
        assert said[3]["error"] == "OSError: late"
        assert "_lifespan.py" in said[3]["traceback"]

    asyncio.run(test())


def test_what_goes_on_after_its_callback_may_finish_before_the_lifespan_is_left(project, memory, monkeypatch):
    """A function that acknowledged early still finds its state open."""
    monkeypatch.setattr("handrail.host.main.PATIENCE", 60.0)
    project.write("handlers/_lifespan.py", "log = []\nasync def lifespan():\n    yield\n    log.append('closed')")
    project.handler("""
        import asyncio
        from handlers import _lifespan
        async def handler(message, callback):
            callback()
            await asyncio.sleep(0.05)
            _lifespan.log.append("finished")
        """)

    async def test():
        import sys

        async with memory() as host:
            await host.call()
            log = sys.modules["handlers._lifespan"].log
        assert log == ["finished", "closed"]

    asyncio.run(test())


class Receipts:
    """Remembers what became of each submit."""

    def __init__(self) -> None:
        self.fates: list[dict[int, SendError]] = []
        self.event = threading.Event()

    def done(self, failures: dict[int, SendError]) -> None:
        self.fates.append(failures)
        self.event.set()


def messages(*names: str) -> list[Message]:
    return [Message(queue=name, id=f"id-{name}", body=b"1") for name in names]


def test_a_send_in_a_handler_crosses_the_pipe_and_is_answered(project, memory):
    """From the loop and from a thread; failures come back by index."""
    project.handler("def handler(message): pass")

    async def test():
        async with memory() as host:
            receipts = Receipts()
            slot = transport.current()
            assert slot.settings.root == str(project.root)
            slot.submit(messages("a", "b"), receipts.done)
            await host.until(lambda: receipts.fates == [{}])
            sent = next(one for one in host.heard if one[0] == ToDispatcher.SEND)
            assert [one.id for one in msgspec.msgpack.decode(sent[2], type=list[Message])] == ["id-a", "id-b"]

            host.answer = lambda _number: [(1, "full disk")]

            def from_thread():
                slot.submit(messages("a", "b"), receipts.done)
                return slot.flush(10)

            assert await asyncio.to_thread(from_thread)
            assert list(receipts.fates[1]) == [1]
            assert str(receipts.fates[1][1]) == "full disk"
        assert transport.current() is None

    asyncio.run(test())


def test_a_send_that_is_not_answered_fails_after_its_timeout(project, memory, monkeypatch):
    """The receipt gets an error that says so; a late answer changes nothing."""
    monkeypatch.setattr("handrail.host.sends.GRACE", 0.0)
    project.send_timeout = 0.05
    project.handler("def handler(message): pass")

    async def test():
        async with memory() as host:
            host.answer = None
            receipts = Receipts()
            transport.current().submit(messages("a"), receipts.done)
            await host.until(lambda: receipts.fates)
            assert isinstance(receipts.fates[0][0], SendTimeoutError)
            assert "50ms" in str(receipts.fates[0][0])
            host.send(ToHost.SENT, 1, [])
            await host.ping()
            assert len(receipts.fates) == 1

    asyncio.run(test())


def test_the_send_buffer_is_bounded(project, memory):
    """What does not fit is refused, and its receipt never called."""
    project.send_buffer = 2
    project.handler("def handler(message): pass")

    async def test():
        async with memory() as host:
            host.answer = None
            receipts = Receipts()
            transport.current().submit(messages("a", "b"), receipts.done)
            with pytest.raises(BufferFullError, match="send_buffer: 2"):
                transport.current().submit(messages("c"), receipts.done)
            await host.ping()
            host.send(ToHost.SENT, 1, [])
            await host.until(lambda: receipts.fates)
            assert receipts.fates == [{}]

    asyncio.run(test())


def test_what_was_sent_is_answered_before_the_host_ends(project, memory):
    """STOP waits for the fate of what handlers sent."""
    project.handler("def handler(message): pass")

    async def test():
        receipts = Receipts()
        async with memory() as host:
            host.answer = None
            transport.current().submit(messages("a"), receipts.done)
            await host.ping()
            asyncio.get_running_loop().call_later(0.05, host.send, ToHost.SENT, 1, [])
        assert receipts.fates == [{}]

    asyncio.run(test())


def test_a_host_without_work_ends_when_it_is_cancelled(project, memory):
    """Whoever embeds it may cancel it; its sends are told that nothing will come."""
    project.handler("async def handler(message, callback): await __import__('asyncio').sleep(3600)")

    receipts = Receipts()

    async def leave_early():
        async with memory() as host:
            host.answer = None
            token = host.run()
            await host.ping()
            transport.current().submit(messages("a"), receipts.done)
            assert host.outcome(token) is None
            raise RuntimeError("enough")

    async def test():
        with pytest.raises(RuntimeError, match="enough"):
            await leave_early()
        assert isinstance(receipts.fates[0][0], SendError)

    asyncio.run(test())


def test_a_host_that_follows_another_in_one_process_keeps_what_is_its_own(project, memory):
    """At a reload the new host is entered before the old one is left: state, sends and imports are the new one's."""
    project.write("handlers/_lifespan.py", "N = 1\nasync def lifespan():\n    yield {'n': N}")
    project.write("handlers/side.py", "N = 1")
    project.handler(f"{HEAD}async def handler(message):\n    import side\n    return [state['n'], side.N]")

    async def test():
        async with contextlib.AsyncExitStack() as newer:
            async with memory() as old:
                assert await old.call() == [End.COMPLETED, b"[1,1]"]
                project.write("handlers/_lifespan.py", "N = 2\nasync def lifespan():\n    yield {'n': N}")
                project.write("handlers/side.py", "N = 2")
                new = await newer.enter_async_context(memory())
                slot = transport.current()
            assert transport.current() is slot
            assert await new.call() == [End.COMPLETED, b"[2,2]"]
        assert transport.current() is None
        assert jobs.state == {}

    asyncio.run(test())
