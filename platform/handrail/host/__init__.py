"""The host: finds, loads and calls handlers, and speaks with the dispatcher through a pipe. It knows no broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handrail.host.main import Host

__all__ = ["Host"]


def __getattr__(name: str) -> Any:
    # app code that only sends imports `host.job` by way of `context`, and should not pay for the rest
    if name == "Host":
        from handrail.host.main import Host  # noqa: PLC0415

        return Host
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
