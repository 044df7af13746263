"""What a host does to the process that is its own: group, signals, standard streams. It loads and calls nothing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import io
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: prctl(2): the signal this process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
#: The signals by which people and supervisors end processes.
_OURS = frozenset({signal.SIGINT, signal.SIGTERM})
#: What a write to a reader who has left may fail with.
_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF})


def settle_in() -> None:
    """Make this process a host's: dies with its parent, obeys only the dispatcher, never fails over its output."""
    _own_group()
    _die_with_parent()
    _ignore_signals()
    _streams()
    faulthandler.enable()


def die() -> NoReturn:
    """The dispatcher is gone: end at once, and everything that was started here with it."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)  # reached only without a group of our own


def exit_within(seconds: float) -> None:
    """End the process in *seconds*, whatever users' exit functions and threads are still about."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=end, name="handrail-exit", daemon=True).start()


def _own_group() -> None:
    if os.getpgrp() != os.getpid():
        # PermissionError: it leads a session already, and so a group
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return  # the closed pipe, and the dispatcher's sentinel, do it elsewhere
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _ignore_signals() -> None:
    # a handler rather than SIG_IGN, which programs that handlers start would inherit; they get the defaults
    for number in _OURS:
        signal.signal(number, _nothing)
    # forked children keep handlers; a process pool ends its workers by SIGTERM, perhaps in the moment they are born
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_go, after_in_child=_default_signals)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Ignored: the dispatcher decides when a host ends."""


_held = threading.local()


def _hold_signals() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


def _let_signals_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_signals_go()


def _streams() -> None:
    with open(os.devnull, "rb") as null:  # noqa: PTH123 - a device
        os.dup2(null.fileno(), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = _stream(1)
    sys.stderr = _stream(2)


def _stream(fd: int) -> io.TextIOWrapper:
    try:
        os.fstat(fd)
    except OSError:  # closed before we began; the number must not become some other file's
        null = os.open(os.devnull, os.O_WRONLY)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
    buffered = io.BufferedWriter(_Quiet(fd))
    return io.TextIOWrapper(buffered, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class _Quiet(io.FileIO):
    """A file that falls silent when nobody reads it any more, where another would fail every print()."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._silent = False

    def write(self, data: ReadableBuffer, /) -> int:
        if not self._silent:
            try:
                return super().write(data)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self._silent = True
        return memoryview(data).nbytes
