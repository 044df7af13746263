"""Sends made inside handlers: they cross the pipe, and the dispatcher publishes them. It checks no message."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

import msgspec

from handrail import duration
from handrail.config.model import Settings
from handrail.errors import BufferFullError, SendError, SendTimeoutError
from handrail.host import tracebacks
from handrail.host.call import Calls
from handrail.message import Message
from handrail.pipe import ToDispatcher
from handrail.transport import Done

_SEND = int(ToDispatcher.SEND)
#: Seconds beyond ``send_timeout`` that the dispatcher gets for its answer: what it knows of the broker says more.
GRACE = 1.0

_encode = msgspec.msgpack.Encoder().encode


class PipeTransport:
    """A :class:`handrail.transport.Transport` whose other end is the dispatcher."""

    def __init__(self, calls: Calls, settings: Settings) -> None:
        self._calls = calls
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._change = threading.Condition()
        self._number = 0
        #: Messages without an answer, and the sends they belong to: how many, and whom to tell.
        self._messages = 0
        self._sends: dict[int, tuple[int, Done]] = {}
        #: Send number and the monotonic time at which it is given up, oldest first.
        self._deadlines: deque[tuple[int, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether some send has no answer yet."""
        return bool(self._sends)

    @property
    def settings(self) -> Settings:
        return self._settings

    def submit(self, messages: list[Message], done: Done) -> None:
        data = _encode(messages)
        with self._change:
            if self._closed:
                raise BufferFullError("this worker has ended; nothing more can be sent")
            # one bulk larger than the whole buffer is taken when it is alone: it could never be sent otherwise
            if self._messages and self._messages + len(messages) > self._settings.send_buffer:
                raise BufferFullError(
                    f"{self._messages} messages wait for the broker already (send_buffer: {self._settings.send_buffer}); "
                    "send more slowly, or wait for the receipts"
                )
            self._number += 1
            number = self._number
            self._messages += len(messages)
            self._sends[number] = (len(messages), done)
            self._deadlines.append((number, time.monotonic() + self._settings.send_timeout + GRACE))
            # under the lock, so that messages leave in the order of their calls
            self._calls.post([_SEND, number, data])
            if len(self._deadlines) == 1:
                self._calls.post(self._watch)

    def sent(self, number: int, failures: list[tuple[int, str]]) -> None:
        """The dispatcher's answer."""
        self._settle(number, {index: SendError(text) for index, text in failures})

    def _settle(self, number: int, failures: dict[int, SendError]) -> None:
        with self._change:
            found = self._sends.pop(number, None)
            if found is None:
                return
            self._messages -= found[0]
            while self._deadlines and self._deadlines[0][0] not in self._sends:
                self._deadlines.popleft()
            self._change.notify_all()
        try:
            found[1](failures)
        except Exception as error:  # noqa: BLE001 - whoever is told may not harm the others
            self._calls.say("error", "what waited for a send failed", error=tracebacks.one_line(error))

    def _watch(self) -> None:
        """Give up what is overdue; on the loop, where one timer serves all, since all wait equally long."""
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][1] <= now:
            number = self._deadlines[0][0]
            count = self._sends[number][0] if number in self._sends else 0
            text = f"the dispatcher did not confirm within {duration.text(self._settings.send_timeout)}; it may be stored or not"
            self._settle(number, {index: SendTimeoutError(text) for index in range(count)})
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadlines and not self._closed:
            self._timer = self._loop.call_later(max(0.0, self._deadlines[0][1] - now), self._watch)

    def flush(self, timeout: float) -> bool:
        if threading.get_ident() == self._thread:
            return not self._sends  # the answers come on this very thread: waiting here would only delay them
        with self._change:
            return self._change.wait_for(lambda: not self._sends, timeout)

    async def flushed(self) -> None:
        """Returns when everything submitted so far has met its fate; ``send_timeout`` bounds it."""
        while self._sends:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """The pipe is gone: what has no answer will get none."""
        with self._change:  # a thread that sends just now has either put its send among those below, or is refused
            self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for number, (count, _done) in list(self._sends.items()):
            text = "the worker ended before the broker confirmed; the message may be stored or not"
            self._settle(number, {index: SendError(text) for index in range(count)})
