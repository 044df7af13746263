"""``from handrail import context``: what application code and handlers hold. It only gathers what others do.

``context.queues`` sends. ``context.job`` is the delivery that the running handler handles, ``context.state`` what
``_lifespan.py`` opened; both exist inside handlers only. ``context.configure`` says which project to send by, where
``HANDRAIL_CONFIG`` and the working directory do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handrail.context.process import configure
from handrail.context.queues import Item, Queues
from handrail.context.receipt import BulkReceipt, Receipt
from handrail.errors import HandrailError

if TYPE_CHECKING:
    from handrail.host.job import Job

    job: Job
    state: dict[str, Any]

__all__ = ["BulkReceipt", "Item", "Queues", "Receipt", "configure", "job", "queues", "state"]

#: Sends to the project's queues.
queues = Queues()


def __getattr__(name: str) -> Any:
    if name not in {"job", "state"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from handrail.host import job as jobs  # noqa: PLC0415 - only handlers need it, and they have it loaded

    if name == "state":
        return jobs.state
    current = jobs.current_job.get()
    if current is None:
        raise HandrailError(
            "there is no job here: context.job exists only inside a handler, and in a thread that a handler starts "
            "by itself only when contextvars.copy_context() carries it there"
        )
    return current
