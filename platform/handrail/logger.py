"""The logger of all code that may run inside an application: an application's stdout is never written to. It formats nothing.

The command sets structlog up (``logs.configure``). An application may have done so too, in its own way, or not at all:
structlog that was never configured prints to stdout, so there the standard library's logging gets the line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


class Logger:
    """Has structlog's methods for lines of a level: an event and facts by name; ``exc_info`` as in ``logging``."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **facts: Any) -> None:
        self._say("debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        self._say("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._say("warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        self._say("error", event, facts)

    def exception(self, event: str, **facts: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._say("error", event, {"exc_info": True, **facts})

    def _say(self, level: str, event: str, facts: dict[str, Any]) -> None:
        structlog = sys.modules.get("structlog")  # a process that has not imported it has not set it up
        if structlog is not None and structlog.is_configured():
            getattr(structlog.get_logger(self._name), level)(event, **facts)
            return
        exc_info = facts.pop("exc_info", None)
        text = " ".join([event, *(f"{name}={value!r}" for name, value in facts.items())])
        logging.getLogger(self._name).log(getattr(logging, level.upper()), "%s", text, exc_info=exc_info)


def get_logger(name: str) -> Logger:
    """The logger *name*: ``handrail``, or ``handrail.<adapter>``."""
    return Logger(name)
