"""The hot path: calls handlers and tells the dispatcher how each job ended. It loads nothing and settles nothing.

Who takes a token out of ``open`` decides that job's outcome; a dict's ``pop`` is atomic, so threads need no lock. A job
stays in ``live`` as long as its function has not returned, whatever became of its outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from handrail import codec, duration
from handrail.board import COMPLETED, ENDED, Board
from handrail.errors import HandlerError, Reject, RetryLater, SerialisationError
from handrail.host import middleware, rules, tracebacks
from handrail.host.callback import Callback
from handrail.host.job import Job, current_job
from handrail.host.loader import Binding
from handrail.host.threads import Threads
from handrail.message import JSON
from handrail.outcome import clip
from handrail.pipe import End, Pipe, ToDispatcher

#: Jobs begun in one turn of the loop: few enough that outcomes leave, and pings are answered, while more are begun.
BATCH = 32

_DONE, _FREED, _ABANDONED, _SAY = (
    int(ToDispatcher.DONE),
    int(ToDispatcher.FREED),
    int(ToDispatcher.ABANDONED),
    int(ToDispatcher.SAY),
)
_COMPLETED, _FAILED, _REJECTED, _LATER, _UNFIT = (int(end) for end in End)

NOT_CALLED = "handler returned without calling its callback"
_GIVEN_UP = {"timeout": "it had timed out", "cancelled": "it was cancelled", "drain": "the worker stopped"}

_copy_context = contextvars.copy_context
_thread_id = threading.get_ident
_monotonic = time.monotonic


class Calls:
    """All jobs of one host. Made on the loop it serves; ``send``, ``say`` and callbacks work from any thread."""

    def __init__(self, pipe: Pipe, root: str, *, board: Board | None = None) -> None:
        self._pipe = pipe
        self._root = root
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._thread = _thread_id()
        self._threads = Threads()
        self._bindings: list[Binding] = []
        #: What handlers' contexts are copied from: that of the lifespan.
        self._context = _copy_context()
        self._new_task: Callable[..., asyncio.Task[None]] = self._loop.create_task
        #: Jobs without an outcome, by token.
        self.open: dict[int, Job] = {}
        #: Jobs whose function has not returned, by token.
        self.live: dict[int, Job] = {}
        #: Cancelled jobs of which something is left, by token.
        self._lingering: dict[int, Job] = {}
        self._waiting: deque[list[Any]] = deque()
        self._turning = False
        #: What other threads want done on the loop: messages for the pipe, and calls.
        self._foreign: deque[list[Any] | Callable[[], None]] = deque()
        self._awake = False
        self._closed = False
        #: Whether some send of this host has no answer yet.
        self.sends_busy: Callable[[], bool] = bool
        #: Shown each exception before it becomes text; for a debugger.
        self.on_error: Callable[[BaseException], None] | None = None

    def serve(self, bindings: list[Binding]) -> None:
        """Take jobs for *bindings* from now on; handlers see the context variables of the caller."""
        self._bindings = bindings
        self._context = _copy_context()

    # -- to the dispatcher ---------------------------------------------------------------------------------------------

    def send(self, message: list[Any]) -> None:
        if _thread_id() == self._thread:
            self._pipe.send(message)
        else:
            self.post(message)

    def post(self, item: list[Any] | Callable[[], None]) -> None:
        """Have *item* sent, or called, on the loop, soon. From any thread, and from ``__del__`` in the midst of anything."""
        self._foreign.append(item)
        if not self._awake and not self._closed:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                self._closed = True  # the loop is closed: there is nobody left to tell

    def _drain(self) -> None:
        # the flag goes first: what is appended from here on wakes the loop again
        self._awake = False
        foreign = self._foreign
        while foreign:
            item = foreign.popleft()
            if isinstance(item, list):
                self._tell(item)
            else:
                item()

    def say(self, level: str, event: str, **fields: Any) -> None:
        """A line of the host itself for the worker's log."""
        self.send([_SAY, level, event, fields])

    # -- from the dispatcher -------------------------------------------------------------------------------------------

    def run(self, message: list[Any]) -> None:
        """A RUN came; :meth:`turn` begins it."""
        self._waiting.append(message)

    def turn(self) -> None:
        """Begin what waits, so much now and the rest in the next turns of the loop."""
        if not self._turning:
            self._turn()

    def _turn(self) -> None:
        waiting = self._waiting
        for _ in range(min(BATCH, len(waiting))):
            self._begin(waiting.popleft())
        self._turning = bool(waiting)
        if waiting:
            self._loop.call_soon(self._turn)

    def _begin(self, message: list[Any]) -> None:
        _op, token, slot, number, body, facts = message
        binding = self._bindings[number]
        job = Job(self, token, slot, binding, body, facts)
        self.open[token] = self.live[token] = job
        if binding.on_loop:
            job.task = self._new_task(self._on_loop(job, binding), name=facts[0], context=self._context.copy())
        else:
            try:
                self._threads.run(self._context.copy(), self._in_thread, job, binding)
            except RuntimeError as error:  # the system gives no further thread
                self._raised(job, error)
                self._left(job)

    def cancel(self, token: int, reason: str) -> None:
        """Give the job up: nothing it reports counts any more. FREED follows when nothing of it is left."""
        job = self.live.get(token) or self.open.get(token)
        if job is None:
            for message in self._waiting:
                if message[1] == token:
                    self._waiting.remove(message)
                    break
            self._pipe.send([_FREED, token])
            return
        job._reason = reason
        self.open.pop(token, None)
        self._lingering[token] = job
        if token not in self.live:
            self._free(token)
            return
        if job.task is None or job.in_thread:
            self._pipe.send([_ABANDONED, token])
        if job.task is not None:
            job.task.cancel()
            if not job.began:  # cancelled before its first step, a coroutine runs no line of its own
                self._left(job)

    # -- a job, on the loop or in a thread -----------------------------------------------------------------------------

    async def _on_loop(self, job: Job, binding: Binding) -> None:
        job.began = True
        current_job.set(job)
        try:
            if self._enter(job, binding):
                try:
                    if binding.loop_middleware:
                        value = await self._through(job, binding)
                    elif binding.callback:
                        # the callback must be held by the handler alone, so that its end is noticed
                        value = await binding.function(job._message, Callback(self, job))
                    else:
                        value = await binding.function(job._message)
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is this job's affair
                    self._raised(job, error)
                else:
                    self._returned(job, binding, value)
        finally:
            self._left(job)

    def _in_thread(self, job: Job, binding: Binding) -> None:
        job.began = True
        current_job.set(job)
        try:
            if self._enter(job, binding):
                try:
                    value = self._plain(job, binding)
                except BaseException as error:  # noqa: BLE001 - as above
                    self._raised(job, error)
                else:
                    self._returned(job, binding, value)
        finally:
            self._left(job)

    def _enter(self, job: Job, binding: Binding) -> bool:
        """Note that it runs, and decode its message; False when it cannot be handled."""
        if job.token not in self.open:
            return False  # given up before its thread began
        if self._board is not None and job.slot >= 0:
            self._board.begin(job.slot, _monotonic())
        facts = job._facts
        try:
            if facts[5] == JSON or codec.content_of(binding.content, facts[5], facts[4]) != "bytes":
                job._message = binding.decode(job._body)
            else:
                job._message = binding.decode_bytes(job._body)
        except codec.DecodeError as error:
            if self._claim(job):
                self._done(job, [_DONE, job.token, _UNFIT, clip(str(error))])
            return False
        except BaseException as error:  # noqa: BLE001 - a RecursionError or MemoryError, say
            self._raised(job, error)
            return False
        return True

    def _plain(self, job: Job, binding: Binding) -> Any:
        """Call a plain handler, in its thread, through its plain middleware."""
        if not binding.thread_middleware:
            return self._call_plain(job, binding)
        return middleware.in_thread(binding.thread_middleware, job, lambda: self._call_plain(job, binding))

    def _call_plain(self, job: Job, binding: Binding) -> Any:
        job.entered = True
        # the callback must be held by the handler alone, so that its end is noticed
        value = binding.function(job._message, *((Callback(self, job),) if binding.callback else ()))
        if value is not None and inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise HandlerError(
                f"{binding.where} is a plain function that returned {_article(type(value).__name__)}, which nobody awaits; "
                "write async def (also for the decorators around it)"
            )
        return value

    async def _through(self, job: Job, binding: Binding) -> Any:
        """Call a handler through its async middleware."""

        async def innermost() -> Any:
            if not binding.is_async:
                return await self._thread_of(job, binding)
            job.entered = True
            if binding.callback:
                return await binding.function(job._message, Callback(self, job))
            return await binding.function(job._message)

        return await middleware.on_loop(binding.loop_middleware, job, innermost)

    async def _thread_of(self, job: Job, binding: Binding) -> Any:
        """A plain handler in its thread, awaited by the async middleware around it."""
        future: asyncio.Future[Any] = self._loop.create_future()
        job.in_thread = True

        def finish(value: Any, error: BaseException | None) -> None:
            job.in_thread = False
            if not future.done():
                if error is None:
                    future.set_result(value)
                elif isinstance(error, StopIteration):  # a future cannot carry it
                    future.set_exception(RuntimeError(f"{binding.where} raised StopIteration"))
                else:
                    future.set_exception(error)
            if job.task is None:  # its task has ended before it
                self._left(job)

        def work() -> None:
            try:
                value = self._plain(job, binding)
            except BaseException as error:  # noqa: BLE001 - carried to the task
                self.post(partial(finish, None, error))
            else:
                self.post(partial(finish, value, None))

        self._threads.run(_copy_context(), work)
        return await future

    def _left(self, job: Job) -> None:
        """The function of *job* has returned."""
        job.task = None  # the task holds the context, which holds the job
        if job.in_thread:
            return
        if self.live.pop(job.token, None) is not None and self._lingering:
            self._free(job.token)

    def _free(self, token: int) -> None:
        # as with `open`: the one who takes it tells
        if self._lingering.pop(token, None) is not None:
            self.send([_FREED, token])

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def _claim(self, job: Job) -> bool:
        """Whether the caller is the first to have an outcome for *job*."""
        return self.open.pop(job.token, None) is not None

    def _done(self, job: Job, message: list[Any]) -> None:
        # the mark goes before the word, after which the slot may be another job's
        if self._board is not None and job.slot >= 0:
            # were all processes killed now, a job that leaves nothing to tell would not have to run again
            silent = message[2] == _COMPLETED and message[3] is None and not self.sends_busy()
            self._board.mark(job.slot, COMPLETED if silent else ENDED)
        if _thread_id() == self._thread:
            self._tell(message)
        else:
            self.post(message)

    def _tell(self, message: list[Any]) -> None:
        """Send *message*; where it is an outcome that is too large for the pipe, that is the outcome."""
        try:
            self._pipe.send(message)
        except (OverflowError, ValueError) as error:
            if message[0] != _DONE:
                raise
            self._pipe.send([_DONE, message[1], _FAILED, "", f"its result cannot be kept: {error}", "", -1])

    def fired(self, job: Job, error: Any, result: Any) -> None:
        """The callback was called."""
        if self.open.pop(job.token, None) is None:
            self._late(job, "callback", error)
        elif error is None:
            self._complete(job, result)
        else:
            if self.on_error is not None and isinstance(error, BaseException):
                self.on_error(error)
            self._end(job, error)

    def dropped(self, job: Job) -> None:
        """The callback was collected without having fired. Called from ``__del__``: takes note, no more."""
        job.dropped = True
        if job.returned and self._claim(job):
            self.post(lambda: self._done(job, [_DONE, job.token, _FAILED, "", NOT_CALLED, "", -1]))

    def _returned(self, job: Job, binding: Binding, value: Any) -> None:
        if not binding.callback:
            if self._claim(job):
                self._complete(job, value)
            else:
                self._late(job, "return", None)
            return
        job.returned = True
        if job.token not in self.open:
            return
        # in this order, and in `dropped` in the other: whoever comes second sees what the first has noted
        if job.dropped:
            text = NOT_CALLED
        elif binding.has_middleware and not job.entered:
            text = "its middleware returned without calling call_next()"
        else:
            return
        if self._claim(job):
            self._done(job, [_DONE, job.token, _FAILED, "", text, "", -1])

    def _raised(self, job: Job, error: BaseException) -> None:
        if self.on_error is not None:
            self.on_error(error)
        if self._claim(job):
            self._end(job, error)
        elif not (job._reason and isinstance(error, asyncio.CancelledError)):
            self._late(job, "raise", error)

    def _complete(self, job: Job, result: Any) -> None:
        data = None
        if result is not None:
            try:
                data = codec.encode_result(result)
            except SerialisationError as error:
                if inspect.iscoroutine(result):
                    result.close()
                self._end(job, error)
                return
        self._done(job, [_DONE, job.token, _COMPLETED, data])

    def _end(self, job: Job, error: Any) -> None:
        """The outcome that *error* stands for, given to the callback or raised."""
        self._done(job, [_DONE, job.token, *self._verdict(job, error)])

    def _verdict(self, job: Job, error: Any) -> list[Any]:
        if isinstance(error, type) and issubclass(error, BaseException):
            try:
                error = error()
            except Exception:  # noqa: BLE001 - a class whose making needs arguments, or fails
                return [_FAILED, clip(error.__name__), "", "", -1]
        if not isinstance(error, BaseException):
            return [_FAILED, "", _told(error), "", -1]
        plain = _plain_verdict(error)
        if isinstance(plain, Reject):
            reason = getattr(plain, "reason", None) or tracebacks.text_of(plain)
            return [_REJECTED, clip(_text(reason)), tracebacks.render(error, self._root)]
        if isinstance(plain, RetryLater):
            try:
                return [_LATER, duration.seconds(plain.delay)]
            except (ValueError, TypeError, AttributeError) as wrong:
                return [_FAILED, "RetryLater", clip(_text(wrong)), tracebacks.render(error, self._root), -1]
        try:
            rule = rules.match(job.binding.rules, error)
        except Exception:  # noqa: BLE001 - a class may answer isinstance() with an error
            rule = -1
        text = "" if isinstance(error, HandlerError) else tracebacks.name_of(error)
        return [_FAILED, text, tracebacks.text_of(error), tracebacks.render(error, self._root), rule]

    def _late(self, job: Job, what: str, error: Any) -> None:
        """Something came after the outcome was known: it is logged, and changes nothing."""
        fields = {"queue": job.queue, "id": job.id, "attempt": job.attempt}
        if error is not None:
            fields["error"] = tracebacks.one_line(error) if isinstance(error, BaseException) else _told(error)
        if job._reason:
            event = {
                "callback": "the callback was called too late and is ignored",
                "return": "the handler returned too late; its result is ignored",
                "raise": "the handler raised after the job was given up; that is ignored",
            }[what]
            fields["reason"] = _GIVEN_UP.get(job._reason, job._reason)
        else:
            event = {
                "callback": "the callback was called twice; the first call counts",
                "return": "the handler returned after its outcome was known",
                "raise": "the handler raised after its outcome was known; the callback counts",
            }[what]
        self.send([_SAY, "warning", event, fields])

    # -- the end -------------------------------------------------------------------------------------------------------

    async def finish(self, patience: float, unwind: float) -> None:
        """Let functions that still run return within *patience* seconds; then cancel, and wait *unwind* seconds more."""
        await self._quiet(patience)
        for job in list(self.live.values()):
            if job.task is not None:
                job._reason = job._reason or "drain"
                job.task.cancel()
        await self._quiet(unwind)

    async def _quiet(self, seconds: float) -> None:
        """Wait until nothing runs but threads that were given up."""
        end = self._loop.time() + seconds
        while self._loop.time() < end:
            if all(job._reason and job.task is None for job in list(self.live.values())):
                return
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Nothing more is told to anybody, and what still runs on the loop is cancelled."""
        self._closed = True
        self.open.clear()
        for job in list(self.live.values()):
            job._reason = job._reason or "drain"
            if job.task is not None:
                job.task.cancel()


def _plain_verdict(error: BaseException) -> BaseException:
    """*error*, or what a group consists of when that is one verdict: all Reject, or all RetryLater (the longest wait)."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves: list[BaseException] = []
    todo: list[BaseException] = [error]
    while todo:
        one = todo.pop()
        if isinstance(one, BaseExceptionGroup):
            todo += reversed(one.exceptions)
        else:
            leaves.append(one)
    if all(isinstance(leaf, Reject) for leaf in leaves):
        return leaves[0]
    if all(isinstance(leaf, RetryLater) for leaf in leaves):
        return max(leaves, key=_delay)
    return error


def _delay(error: BaseException) -> float:
    try:
        return duration.seconds(getattr(error, "delay", 0.0))
    except (ValueError, TypeError):
        return float("inf")  # a wait that is none must be told


def _told(error: Any) -> str:
    """A callback's first argument that is no exception, as the reason of the failure."""
    if isinstance(error, str):
        return clip(error)
    return clip(f"{_text(error)} (callback's first argument is an error; a result goes second: callback(None, result))")


def _text(value: Any) -> str:
    try:
        return str(value)
    except BaseException as another:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"(a {type(value).__name__} whose __str__ raised {type(another).__name__})"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiouAEIOU' else 'a'} {noun}"
