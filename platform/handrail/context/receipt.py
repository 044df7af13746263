"""Receipts: what a sender holds of a message that is on its way to the broker. They send nothing themselves."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Sequence

from handrail.context import callbacks
from handrail.context.callbacks import Callback
from handrail.errors import BulkSendError, HandrailError, SendError

#: One lock for all receipts: it is held for a few instructions only, and a lock each would double their cost.
#: Reentrant, for a finaliser or a signal handler may send, too, at any instruction.
_lock = threading.RLock()
_failed: weakref.WeakSet[_Pending] = weakref.WeakSet()
_pid = os.getpid()


class _Pending:
    """Something whose fate will be known: settled once, on any thread; waited for on any thread or event loop."""

    __slots__ = ("__weakref__", "_callback", "_error", "_looked", "_pid", "_settled", "_waiters", "queue")

    def __init__(self, queue: str, callback: Callback | None) -> None:
        #: The queue it was sent to.
        self.queue = queue
        self._callback = callback
        self._error: HandrailError | None = None
        self._settled = False
        self._looked = callback is not None
        self._waiters: list[Callable[[], None]] | None = None
        self._pid = _pid

    @property
    def done(self) -> bool:
        """Whether its fate is known: the broker has it safely, or it failed."""
        return self._settled

    def wait(self, timeout: float | None = None) -> None:
        """Return when the broker has it safely; raise why it has not.

        *timeout* is in seconds; when it passes first, ``TimeoutError`` is raised and the send goes on. It blocks the
        thread: in a coroutine, ``await`` the receipt instead.
        """
        if not self._settled:
            self._check_process()
            event = threading.Event()
            if self._join(event.set) and not event.wait(timeout):
                raise TimeoutError(f"the broker has not confirmed within {timeout:g}s; the send goes on")
        self._raise()

    def __await__(self) -> Generator[object, None, None]:
        if not self._settled:
            self._check_process()
            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def wake() -> None:
                try:
                    loop.call_soon_threadsafe(_finish, future)
                except RuntimeError:
                    return  # the loop was closed: whoever waited is gone with it

            if self._join(wake):
                yield from future
        self._raise()

    def _raise(self) -> None:
        self._looked = True
        if self._error is not None:
            raise self._error

    def _join(self, wake: Callable[[], None]) -> bool:
        with _lock:
            if self._settled:
                return False
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(wake)
            return True

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise SendError(
                f"process {self._pid} sent this and only it learns what became of it; this process was forked from it"
            )

    def _settle(self, error: HandrailError | None) -> None:
        """Make the fate known. Called once."""
        with _lock:
            self._error = error
            self._settled = True
            waiters, self._waiters = self._waiters, None
            callback, self._callback = self._callback, None
        for wake in waiters or ():
            wake()
        if callback is not None:
            callbacks.runner().call(callback, error)
        elif error is not None:
            callbacks.runner()  # a finaliser must not be the one to start it
            with _lock:
                _failed.add(self)

    def _reasons(self) -> Counter[str]:
        """How many messages failed, by why."""
        return Counter([str(self._error)])

    def _report(self) -> None:
        self._looked = True
        if (running := callbacks.running()) is not None:
            for reason, count in self._reasons().items():
                running.note(self.queue, reason, count)

    def __del__(self) -> None:
        if self._error is not None and not self._looked and self._pid == _pid:
            self._report()


class Receipt(_Pending):
    """What became of one message. Done once the broker has it safely, so that no crash loses it.

    ``wait()`` on any thread or ``await`` it in any asyncio task. A failure that nobody looks at is logged once.
    """

    __slots__ = ("id",)

    def __init__(self, queue: str, message_id: str, callback: Callback | None = None) -> None:
        super().__init__(queue, callback)
        #: The message's id.
        self.id = message_id

    @property
    def error(self) -> HandrailError | None:
        """Why it was not sent; None while that is open and when it was."""
        self._looked = self._looked or self._settled
        return self._error

    def _take(self, errors: dict[int, SendError]) -> None:
        self._settle(errors[0] if errors else None)

    def __repr__(self) -> str:
        return f"<Receipt {self.id!r} for {self.queue!r}: {_state(self)}>"


class BulkReceipt(_Pending):
    """What became of the messages of one ``send_bulk``. Done once the fate of all is known."""

    __slots__ = ("errors", "ids")

    def __init__(self, queue: str, ids: Sequence[str], callback: Callback | None = None) -> None:
        super().__init__(queue, callback)
        #: The messages' ids, in their order.
        self.ids = ids
        #: Why messages were not sent, by their place in the bulk; empty until it is done.
        self.errors: dict[int, SendError] = {}

    @property
    def error(self) -> HandrailError | None:
        """A :class:`BulkSendError` that tells which were not sent and why; None while that is open and when all were."""
        self._looked = self._looked or self._settled
        return self._error

    def _take(self, errors: dict[int, SendError]) -> None:
        self.errors = errors
        self._settle(BulkSendError(errors, len(self.ids)) if errors else None)

    def _reasons(self) -> Counter[str]:
        return Counter(map(str, self.errors.values())) if self.errors else super()._reasons()

    def __len__(self) -> int:
        return len(self.ids)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<BulkReceipt of {len(self.ids)} for {self.queue!r}: {_state(self)}>"


def _state(pending: _Pending) -> str:
    if not pending._settled:
        return "on its way"
    return "sent" if pending._error is None else f"failed: {pending._error}"


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def report_unseen() -> None:
    """Have every failure logged that nobody has looked at, though its receipt still lives."""
    with _lock:
        failed = list(_failed)
    for pending in failed:
        if not pending._looked:
            pending._report()


def after_fork() -> None:
    """In a forked child: what is on its way is the parent's."""
    global _lock, _failed, _pid
    _lock = threading.RLock()
    _failed = weakref.WeakSet()
    _pid = os.getpid()
