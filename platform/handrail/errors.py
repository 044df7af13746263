"""Every error handrail raises, in one shallow tree. It may import nothing of handrail."""

from __future__ import annotations

from typing import NoReturn


class HandrailError(Exception):
    """The root of all errors that handrail raises on purpose. Its text is one line meant for the user."""


class ConfigError(HandrailError):
    """``queues.yaml`` (or what it points to) is wrong. Carries every problem found, each one line with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        #: One line a problem: ``queues.yaml:LINE:COL: what is wrong; what to do``.
        self.problems = problems


class NoProjectError(HandrailError):
    """No ``queues.yaml`` was found from the working directory upward, nor by ``HANDRAIL_CONFIG``."""


class SendError(HandrailError):
    """A message was not accepted: nothing of it will be delivered."""


class UnknownQueueError(SendError):
    """The queue is not in ``queues.yaml``. The text names the nearest one that is."""


class InvalidOptionError(SendError, ValueError):
    """An option of a send (``delay=``, ``priority=``, ``id=`` …) has a value that cannot be used."""


class SerialisationError(SendError, TypeError):
    """A payload, or a handler's result, cannot be written as JSON. The text names the path inside it."""


class TooLargeError(SendError):
    """The encoded body is larger than ``max_message_bytes``."""


class SendTimeoutError(SendError, TimeoutError):
    """The broker did not confirm within ``send_timeout``. The text names the broker's state.

    The message may or may not have been stored: the broker was asked and did not answer.
    """

    @classmethod
    def after(cls, seconds: float, why: str) -> SendTimeoutError:
        """The error of what is not confirmed after *seconds*, which are shown to a tenth: they are what was left of the limit."""
        return cls(f"not confirmed within {round(seconds, 1) or seconds:.3g}s: {why}")


class BufferFullError(SendError):
    """The bounded send buffer is full: the broker takes messages more slowly than they are sent, or not at all."""


class BulkSendError(SendError):
    """Some messages of a bulk were not accepted; the others were. Carries an error for each that was not."""

    def __init__(self, errors: dict[int, SendError], total: int) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {total} messages were not sent; the first is number {first}: {errors[first]}"
        )
        #: Why, by the message's place in the bulk, from 0.
        self.errors = errors


class BrokerError(HandrailError):
    """The broker refused or cannot be reached. One line: which broker (password masked), why, what to do."""


class SchemaError(BrokerError):
    """What stands in the broker was made by another version of handrail, or by somebody else."""


class AlreadyRunningError(HandrailError):
    """Another ``platform run`` watches this project already."""


class StartError(HandrailError):
    """The worker cannot start, and starting again would not help."""


class Reject(Exception):  # noqa: N818 - handlers write `raise Reject("why")`; it is a verdict, not a mishap
    """Raised by a handler, or given to its callback: dead-letter this message now, without a retry."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class RetryLater(Exception):  # noqa: N818 - as Reject
    """Raised by a handler, or given to its callback: give me this message again after *delay*.

    *delay* is in seconds, or a duration such as ``"1h30m"``. It counts as a start, not as a failed attempt.
    """

    def __init__(self, delay: float | str = 0.0) -> None:
        super().__init__(delay)
        self.delay = delay


class HandlerError(HandrailError):
    """A failed attempt that handrail itself found, such as a callback not called within its timeout."""


def unreachable(what: object) -> NoReturn:
    """A branch that no input can reach; reaching it is a fault in handrail."""
    raise AssertionError(f"unexpected {what!r}: please report this as a bug in handrail")
