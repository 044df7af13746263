"""The message: a payload and the metadata that travels beside it, never inside it. It does no I/O."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import msgspec

from handrail.outcome import Backoff, Fault

JSON = "application/json"
#: Priorities follow JMS: 0 to 9, 9 first.
LOWEST, DEFAULT_PRIORITY, HIGHEST = 0, 4, 9
#: Names of the headers in which metadata travels on brokers that have headers. The user's own are never touched.
PREFIX = "handrail-"

#: Seconds between the making of an id and the sending of its message, at most.
_SAME_MOMENT = 60.0

_ID = re.compile(r"[A-Za-z0-9\-_.:@/]{1,128}")


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a sender chose for this one message; what is None comes from the queue. Durations are seconds."""

    attempts: int | None = None
    backoff: Backoff | None = None
    timeout: float | None = None
    expires: float | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A payload (``body``) and what travels with it. The body is the user's bytes exactly."""

    queue: str
    id: str
    body: bytes
    content_type: str = JSON
    #: The user's headers, and those of foreign senders; None when there are none. Values: str, bytes, int, float, bool.
    headers: dict[str, Any] | None = None
    priority: int = DEFAULT_PRIORITY
    #: The ordering key, for queues that keep order by key.
    key: str | None = None
    #: Unix time in seconds at which it was sent; 0 when a foreign sender did not say.
    sent_at: float = 0.0
    #: Unix time in seconds before which it must not be delivered; None is at once.
    due: float | None = None
    options: Options | None = None
    #: Failed attempts so far. The next run is attempt ``attempts + 1``.
    attempts: int = 0
    #: Calls of the handler so far, of any kind and end.
    starts: int = 0
    #: Times a process died while it ran.
    crashes: int = 0
    #: Names this one act of sending; set only when the sender chose the id, and used to drop a second sending of that id.
    send: str = ""
    #: Set only on dead letters.
    fault: Fault | None = None
    #: For the adapter alone: what its broker delivered that has no place above and must survive a republish.
    native: Any = None

    @property
    def unique(self) -> bool:
        """Whether no other message can bear its ``id`` and ``send``: handrail made one of them for this one sending.

        Of an id that handrail made the time is that of the sending. Foreign clients use ids as they like, the same for many.
        """
        if self.send:
            return True
        moment = moment_of(self.id)
        return moment >= 0 and self.sent_at > 0 and abs(moment / 1000 - self.sent_at) < _SAME_MOMENT


def valid_id(value: str) -> bool:
    """Whether *value* can be a message id on every broker: 1 to 128 letters, digits and ``-_.:@/``."""
    return _ID.fullmatch(value) is not None


def new_id() -> str:
    """A fresh id: 32 hexadecimal digits, the first 12 the time in milliseconds, so that ids sort by age."""
    return f"{(time.time_ns() // 1_000_000) << 80 | random.getrandbits(80):032x}"


def moment_of(message_id: str) -> int:
    """When *message_id* was made, Unix time in milliseconds, if it is one of :func:`new_id`'s; else -1."""
    if len(message_id) == 32 and message_id.isascii() and message_id.isalnum():
        try:
            return int(message_id[:12], 16)
        except ValueError:
            pass
    return -1


_encode = msgspec.json.encode


def metadata(message: Message) -> dict[str, str]:
    """The metadata of *message* that differs from the defaults, as header name → text, for brokers with headers.

    Id, priority, content type, user headers and body are not in it: brokers have places of their own for those.
    """
    found: dict[str, str] = {}
    if message.sent_at:
        found["handrail-sent-at"] = f"{message.sent_at:.6f}"
    if message.due is not None:
        found["handrail-due"] = f"{message.due:.6f}"
    if message.attempts:
        found["handrail-attempts"] = str(message.attempts)
    if message.starts:
        found["handrail-starts"] = str(message.starts)
    if message.crashes:
        found["handrail-crashes"] = str(message.crashes)
    if message.send:
        found["handrail-send"] = message.send
    if message.options is not None:
        found["handrail-options"] = _encode(message.options).decode()
    if message.fault is not None:
        found["handrail-reason"] = message.fault.reason
        found["handrail-traceback"] = message.fault.traceback
        found["handrail-dead-at"] = f"{message.fault.at:.6f}"
        found["handrail-dead-queue"] = message.fault.queue
    return found


def apply_metadata(message: Message, found: dict[str, str]) -> None:
    """Set on *message* what :func:`metadata` wrote. A value that cannot be read is left at its default.

    Headers come from the wire, where anybody may write: a bad one must never stop a queue.
    """
    message.sent_at = number(found.get("handrail-sent-at"), 0.0)
    due = number(found.get("handrail-due"), -1.0)
    message.due = due if due >= 0 else None
    message.attempts = _count(found.get("handrail-attempts"))
    message.starts = _count(found.get("handrail-starts"))
    message.crashes = _count(found.get("handrail-crashes"))
    message.send = found.get("handrail-send", "")
    if raw := found.get("handrail-options"):
        try:
            message.options = msgspec.json.decode(raw, type=Options)
        except msgspec.DecodeError:
            message.options = None
    if "handrail-reason" in found:
        message.fault = Fault(
            reason=found["handrail-reason"],
            traceback=found.get("handrail-traceback", ""),
            at=number(found.get("handrail-dead-at"), 0.0),
            queue=found.get("handrail-dead-queue", ""),
        )


def number(text: str | bytes | None, default: float) -> float:
    """The time that a header says, Unix seconds; *default* where it says none that can be."""
    try:
        value = float(text) if text else default
    except ValueError:
        return default
    return value if 0 <= value < 1e11 else default


def _count(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0
