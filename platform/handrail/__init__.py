"""handrail: drop a handler file, bind a queue, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handrail.errors import HandrailError, Reject, RetryLater

if TYPE_CHECKING:
    from handrail import context

__version__ = "0.1.0"

__all__ = ["HandrailError", "Reject", "RetryLater", "__version__", "context"]


def __getattr__(name: str) -> Any:
    if name == "context":  # only now, for it brings the whole sending side
        import importlib  # noqa: PLC0415

        return importlib.import_module("handrail.context")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
