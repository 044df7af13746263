"""What the first process of a container owes it: pass signals on, reap orphans. It runs nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGWINCH,
)


def become_init() -> None:
    """Fork. The child returns and does the work; the parent reaps until the child ends, then exits as it did.

    The kernel gives process 1 every orphan of the container, and drops signals it has no handler for. Keeping that
    apart from the work means no reaper can take the exit status of a host from whoever waits for it. Called before
    any thread or loop exists, so the fork is safe.
    """
    # blocked across the fork, so that a signal that comes before the handlers stand is not lost
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        # a group of its own: Ctrl-C on the container's terminal must reach the worker once, not twice
        os.setpgid(0, 0)
        _to_foreground(os.getpid())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return
    with contextlib.suppress(OSError):  # the child may have been quicker, or gone
        os.setpgid(child, child)
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _frame: _pass_on(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            # sys.exit would run atexit handlers that belong to the child
            os._exit(code if code >= 0 else 128 - code)


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _to_foreground(group: int) -> None:
    if not sys.stdin.isatty():
        return
    old = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # taking the terminal from the background raises it
    with contextlib.suppress(OSError):
        os.tcsetpgrp(sys.stdin.fileno(), group)
    signal.signal(signal.SIGTTOU, old)
