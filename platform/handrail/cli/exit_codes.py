"""The numbers the command exits with. They are an interface: scripts and supervisors read them."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Why the command ended. A worker that drained after SIGTERM or SIGINT exits with OK."""

    OK = 0  #: done, or drained after a signal
    FAILED = 1  #: it could not be done: not found, not confirmed, or an unexpected error
    USAGE = 2  #: the command line, queues.yaml or a handler file is wrong; starting again does not help
    BROKER = 3  #: the broker cannot be reached, or refused
    RUNNING = 4  #: another `platform run` watches this project
    START = 5  #: the worker could not start, or the invoked handler failed
    INTERRUPTED = 130  #: Ctrl-C in a command that serves nothing, or a second SIGINT cut the drain short
    TERMINATED = 143  #: a second SIGTERM cut the drain short


#: For `platform --help`.
HELP = (
    "Exit codes: 0 done, or drained after a signal · 1 it could not be done · 2 the command line, queues.yaml or a "
    "handler is wrong · 3 the broker cannot be reached or refused · 4 already running · 5 the worker could not start, "
    "or the invoked handler failed · 130, 143 a second signal cut the drain short."
)
