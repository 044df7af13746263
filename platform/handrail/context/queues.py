"""``context.queues``: checks a send, makes its message, hands it on. It waits for no broker.

One rule for errors. With a callback, every error goes to the callback and the receipt, and nothing is raised. Without
one, a call that can never work (unknown queue, wrong option, payload that cannot be sent, no project) raises at once,
and what the broker is to blame for (timeout, full buffer, refusal) goes to the receipt.
"""

from __future__ import annotations

import difflib
import random
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from handrail import codec
from handrail.config.model import QueueSettings, Settings
from handrail.context import process
from handrail.context.callbacks import Callback
from handrail.context.options import NOTHING, Duration, Given, Header, check, merge
from handrail.context.receipt import BulkReceipt, Receipt
from handrail.errors import HandrailError, InvalidOptionError, SendError, TooLargeError, UnknownQueueError
from handrail.message import JSON, Message, new_id
from handrail.outcome import Backoff


class Item:
    """One message of a bulk with options of its own; they go before those given for the whole bulk."""

    __slots__ = ("message", "options")

    def __init__(
        self,
        message: Any,
        *,
        delay: Duration | None = None,
        at: datetime | float | None = None,
        priority: int | None = None,
        attempts: int | None = None,
        backoff: Mapping[str, Any] | list[Any] | Duration | Backoff | None = None,
        timeout: Duration | None = None,
        expires: Duration | None = None,
        id: str | None = None,  # noqa: A002 - the public name
        headers: Mapping[str, Header] | None = None,
        key: str | None = None,
    ) -> None:
        #: The payload.
        self.message = message
        #: What was given, unchecked: send_bulk checks it, to name the item's place.
        self.options: dict[str, Any] = {
            "delay": delay,
            "at": at,
            "priority": priority,
            "attempts": attempts,
            "backoff": backoff,
            "timeout": timeout,
            "expires": expires,
            "id": id,
            "headers": headers,
            "key": key,
        }


class Queues:
    """Sends to the queues of this project's queues.yaml. Its methods may be called on any thread and in any event loop."""

    #: ``queues.item(message, delay="1h")``: one message of a bulk with options of its own.
    item = Item

    def send_to_queue(
        self,
        queue: str,
        message: Any,
        callback: Callback | None = None,
        *,
        delay: Duration | None = None,
        at: datetime | float | None = None,
        priority: int | None = None,
        attempts: int | None = None,
        backoff: Mapping[str, Any] | list[Any] | Duration | Backoff | None = None,
        timeout: Duration | None = None,
        expires: Duration | None = None,
        id: str | None = None,  # noqa: A002 - the public name
        headers: Mapping[str, Header] | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Send *message* to *queue*; returns at once, never blocking on the broker.

        *callback* gets None once the broker has the message safely, else the error: exactly once, on a thread of its
        own. *delay*, *timeout* and *expires* are durations (``"1h30m"``, seconds, timedelta). *at* is a datetime (one
        without a time zone is local time) or Unix time in seconds; a time that has passed means at once. *priority* is
        0 to 9, 9 first. *attempts* counts runs in all. *backoff* is written as in queues.yaml. *id* names the message
        (empty: one is made); a second send of an id that is unfinished when it is sent is dropped by workers. *headers*
        travel beside the message. *key* is what queues ordered by key order by, at most 256 bytes.

        With a callback nothing is raised. Without one, a call that can never work raises at once:
        :class:`UnknownQueueError`, :class:`InvalidOptionError`, :class:`SerialisationError`, :class:`TooLargeError`,
        :class:`ConfigError`, :class:`NoProjectError`; what is the broker's fault goes to the receipt.
        """
        _check_callback(callback)
        try:
            given = (
                NOTHING
                if delay is at is priority is attempts is backoff is timeout is expires is None
                and id is None
                and headers is None
                and key is None
                else check(
                    delay=delay,
                    at=at,
                    priority=priority,
                    attempts=attempts,
                    backoff=backoff,
                    timeout=timeout,
                    expires=expires,
                    id=id,
                    headers=headers,
                    key=key,
                )
            )
            transport = process.current()
            settings = transport.settings
            made = _message(settings, _queue(settings, queue), message, given, time.time(), "")
        except HandrailError as error:
            if callback is None:
                raise
            receipt = Receipt(str(queue), id if isinstance(id, str) else "", callback)
            receipt._settle(error)
            return receipt
        receipt = Receipt(made.queue, made.id, callback)
        try:
            transport.submit([made], receipt._take)
        except HandrailError as error:
            receipt._settle(error)
        return receipt

    def send_bulk(
        self,
        queue: str,
        messages: Iterable[Any],
        callback: Callback | None = None,
        *,
        delay: Duration | None = None,
        at: datetime | float | None = None,
        priority: int | None = None,
        attempts: int | None = None,
        backoff: Mapping[str, Any] | list[Any] | Duration | Backoff | None = None,
        timeout: Duration | None = None,
        expires: Duration | None = None,
        headers: Mapping[str, Header] | None = None,
        key: str | None = None,
    ) -> BulkReceipt:
        """Send *messages* to *queue* in their order; returns at once. The fast way to send many.

        The options hold for all; a message with options of its own is an :class:`Item`. When one item cannot be sent
        as it is, the whole call is refused and the error names its place. *callback* gets None once the broker has all
        of them, else a :class:`BulkSendError`. Errors are as for :meth:`send_to_queue`.
        """
        _check_callback(callback)
        try:
            shared = check(
                delay=delay,
                at=at,
                priority=priority,
                attempts=attempts,
                backoff=backoff,
                timeout=timeout,
                expires=expires,
                headers=headers,
                key=key,
            )
            if isinstance(messages, str | bytes | bytearray | Mapping) or not isinstance(messages, Iterable):
                raise InvalidOptionError(f"send_bulk takes a list of messages, not {type(messages).__name__}")
            transport = process.current()
            settings = transport.settings
            made = _messages(settings, _queue(settings, queue), messages, shared)
        except HandrailError as error:
            if callback is None:
                raise
            receipt = BulkReceipt(str(queue), [], callback)
            receipt._settle(error)
            return receipt
        receipt = BulkReceipt(queue, [message.id for message in made], callback)
        if not made:
            receipt._settle(None)
            return receipt
        try:
            transport.submit(made, receipt._take)
        except HandrailError as error:
            receipt._settle(error)
        return receipt

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything this process has sent so far has met its fate, at most *timeout* seconds; whether it has.

        None is ``send_timeout`` and a little. It blocks the thread.
        """
        return process.flush(timeout)


def _check_callback(callback: object) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={callback!r} cannot be called; options such as delay= are given by name")


def _queue(settings: Settings, name: object) -> QueueSettings:
    found = settings.queues.get(name) if isinstance(name, str) else None
    if found is not None:
        return found
    known = sorted(settings.queues)
    if not isinstance(name, str):
        raise UnknownQueueError(f"a queue is named by a str, not {type(name).__name__}")
    folded = {queue.lower(): queue for queue in known}
    near = difflib.get_close_matches(name.lower(), folded, 1)
    mend = f"did you mean {folded[near[0]]!r}?" if near else f"it has {_list(known)}" if known else "it has none"
    raise UnknownQueueError(f"no queue {name!r} in {settings.path}; {mend}")


def _list(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _message(
    settings: Settings, queue: QueueSettings, payload: Any, given: Given, now: float, message_id: str
) -> Message:
    body, content_type = codec.encode(payload)
    if len(body) > settings.max_message_bytes:
        raise _too_large(settings, queue, body, content_type)
    if given is NOTHING:
        return Message(
            queue=queue.name,
            id=message_id or new_id(),
            body=body,
            content_type=content_type,
            priority=queue.priority,
            sent_at=now,
        )
    return Message(
        queue=queue.name,
        id=given.id or message_id or new_id(),
        body=body,
        content_type=content_type,
        headers=given.headers,
        priority=queue.priority if given.priority is None else given.priority,
        key=given.key,
        sent_at=now,
        due=given.due(now),
        options=given.options,
        send="" if given.id is None else new_id(),
    )


def _messages(settings: Settings, queue: QueueSettings, payloads: Iterable[Any], shared: Given) -> list[Message]:
    now = time.time()
    # as new_id() makes them, but drawn once for all: the time, chance, and the place in the bulk
    stem = f"{int(now * 1000):012x}{random.getrandbits(48):012x}"
    if shared == NOTHING:
        shared = NOTHING
    made: list[Message] = []
    append = made.append
    encode, limit, name, priority = codec.encode, settings.max_message_bytes, queue.name, queue.priority
    index = 0
    try:
        for index, payload in enumerate(payloads):
            if type(payload) is not Item and shared is NOTHING:
                # the same as _message, unrolled: a bulk of a hundred thousand is what this loop is for
                body, content_type = encode(payload)
                if len(body) > limit:
                    raise _too_large(settings, queue, body, content_type)
                append(
                    Message(
                        queue=name,
                        id=f"{stem}{index:08x}",
                        body=body,
                        content_type=content_type,
                        priority=priority,
                        sent_at=now,
                    )
                )
                continue
            given = shared
            if isinstance(payload, Item):
                given = merge(shared, check(**payload.options))
                payload = payload.message  # noqa: PLW2901 - unpacked
            append(_message(settings, queue, payload, given, now, f"{stem}{index:08x}"))
    except SendError as error:
        raise type(error)(f"item {index} of the bulk: {error}") from None
    return made


def _too_large(settings: Settings, queue: QueueSettings, body: bytes, content_type: str) -> TooLargeError:
    form = "as JSON" if content_type == JSON else "long"
    return TooLargeError(
        f"the message for queue {queue.name!r} is {len(body):,} bytes {form}, more than max_message_bytes "
        f"({settings.max_message_bytes:,}); send a reference to it, or raise max_message_bytes in {settings.path}"
    )
