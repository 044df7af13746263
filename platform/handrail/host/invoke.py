"""One call of a handler in this very process, without a broker, by the machinery that a worker uses."""

from __future__ import annotations

import asyncio
import pdb  # noqa: T100 - opened only when the user asks for it
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from handrail import message as messages
from handrail.config.model import HandlerRef, QueueSettings, Settings
from handrail.errors import ConfigError
from handrail.host.main import Host
from handrail.message import Message
from handrail.pipe import Batch, End, Facts, Found, Load, MemoryPipe, ToDispatcher, ToHost

#: The queue that a handler gets which is named by its reference rather than by a queue.
ADHOC = "invoke"

#: Is told the messages a handler sends; what it returns, by index, was not accepted.
Publish = Callable[[list[Message]], dict[int, str]]


class Invoked(msgspec.Struct, frozen=True):
    """What came of one call."""

    #: None: the job had no outcome within its timeout.
    end: End | None
    #: The further elements of DONE, see :class:`handrail.pipe.End`.
    detail: list[Any]
    found: Found
    #: How long the call took, loading not included.
    seconds: float
    #: What the handler sent.
    sends: list[Message]
    #: Level and text of what it wrote with ``context.job.log``, and of what the host itself had to say.
    logs: list[tuple[str, str]]

    @property
    def reason(self) -> str:
        """Why it did not complete, in one line; empty when it did."""
        match self.end:
            case None:
                return "callback not called within the timeout"
            case End.COMPLETED:
                return ""
            case End.FAILED:
                name, text = self.detail[:2]
                return f"{name}: {text}" if name and text else name or text
            case End.LATER:
                return f"the handler asked for it again in {self.detail[0]:g} s"
            case _:
                return str(self.detail[0])


def invoke(
    settings: Settings,
    target: str | HandlerRef,
    body: bytes,
    *,
    content_type: str = messages.JSON,
    message_id: str = "",
    attempt: int = 1,
    headers: dict[str, Any] | None = None,
    priority: int = messages.DEFAULT_PRIORITY,
    key: str | None = None,
    timeout: float | None = -1.0,
    publish: Publish | None = None,
    debug: bool = False,
    in_process: bool = False,
) -> Invoked:
    """Load and call the handler of the queue *target*, or the handler that *target* refers to, with *body*.

    *timeout* in seconds; -1 is the queue's own, None is none. With *debug* there is none, and an exception that the
    handler raises opens the debugger where it was raised. What the handler sends goes to *publish*, or is only noted.
    *in_process*: leave ``sys.path`` alone. Raises :class:`ConfigError`, with all problems, when it cannot be loaded.
    """
    queue = _queue_of(settings, target)
    limit = queue.timeout if timeout is not None and timeout < 0 else timeout
    facts: Facts = (
        message_id or messages.new_id(),
        attempt,
        attempt,
        0,
        time.time(),
        content_type,
        priority,
        key,
        headers,
        None if limit is None or debug else time.monotonic() + limit,
    )
    only = msgspec.structs.replace(settings, queues={**settings.queues, queue.name: queue})
    call = _Call(only, queue.name, publish)
    invoked = asyncio.run(call.run(body, facts, None if debug else limit, in_process=in_process))
    if debug and call.error is not None and call.error.__traceback__ is not None:
        sys.stderr.write(f"{type(call.error).__name__}: {call.error}\n")
        pdb.post_mortem(call.error.__traceback__)
    return invoked


def _queue_of(settings: Settings, target: str | HandlerRef) -> QueueSettings:
    if isinstance(target, HandlerRef):
        return QueueSettings(name=ADHOC, handler=target)
    if target not in settings.queues:
        raise ConfigError([f"queues.yaml has no queue {target}; it has {', '.join(settings.queues) or 'none'}"])
    return settings.queues[target]


class _Call:
    """The dispatcher's side of a pipe, for one job."""

    def __init__(self, settings: Settings, queue: str, publish: Publish | None) -> None:
        self._settings = settings
        self._queue = queue
        self._publish = publish
        self._problems: list[str] = []
        self._found: list[Found] = []
        self._ready = asyncio.Event()
        self._done = asyncio.Event()
        self._end: list[Any] = []
        self._sends: list[Message] = []
        self._logs: list[tuple[str, str]] = []
        self._pipe, self._theirs = MemoryPipe.pair()
        #: The last exception that the handler raised.
        self.error: BaseException | None = None

    async def run(self, body: bytes, facts: Facts, limit: float | None, *, in_process: bool) -> Invoked:
        host = Host(self._theirs, in_process=in_process)
        self._pipe.listen(self._receive, self._ready.set)
        self._theirs.listen(host.receive, lambda: None)
        living = asyncio.create_task(host.run())
        load = Load(settings=self._settings, queues=[self._queue], generation="invoke")
        self._pipe.send([int(ToHost.LOAD), msgspec.to_builtins(load)])
        await self._ready.wait()
        seconds = 0.0
        if not self._problems:
            assert host.calls is not None
            host.calls.on_error = self._note
            begun = time.monotonic()
            self._pipe.send([int(ToHost.RUN), 1, -1, 0, body, facts])
            try:
                async with asyncio.timeout(limit):
                    await self._done.wait()
            except TimeoutError:
                self._pipe.send([int(ToHost.CANCEL), 1, "timeout"])
            seconds = time.monotonic() - begun
        self._pipe.send([int(ToHost.STOP)])
        await living
        await asyncio.sleep(0)  # what it said last is on its way
        if self._problems:
            raise ConfigError(self._problems)
        end = End(self._end[0]) if self._end else None
        return Invoked(end, self._end[1:], self._found[0], seconds, self._sends, self._logs)

    def _note(self, error: BaseException) -> None:
        self.error = error

    def _receive(self, batch: Batch) -> None:
        for message in batch:
            match message[0]:
                case ToDispatcher.FOUND:
                    self._found = msgspec.convert(message[1], list[Found])
                    self._problems = list(message[2])
                    if self._problems:
                        self._ready.set()
                case ToDispatcher.READY:
                    self._ready.set()
                case ToDispatcher.DONE:
                    self._end = message[2:]
                    self._done.set()
                case ToDispatcher.SEND:
                    sent = msgspec.msgpack.decode(message[2], type=list[Message])
                    self._sends += sent
                    refused = self._publish(sent) if self._publish is not None else {}
                    self._pipe.send([int(ToHost.SENT), message[1], list(refused.items())])
                case ToDispatcher.LOG:
                    self._logs.append((message[3], message[2]))
                case ToDispatcher.SAY:
                    extra = "".join(f" {name}={value}" for name, value in message[3].items())
                    self._logs.append((message[1], f"{message[2]}{extra}"))
                case _:
                    continue
