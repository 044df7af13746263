"""The key bar of ``platform run``: single keys from the terminal, which is given back as it was whatever happens."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import sys
import termios
from collections.abc import Callable
from typing import Any

BAR = "s send the last message again · r reload · p pause · c clear · ? help · q quit"
HELP = """\
  s  send the last message again, as a new message
  r  reload handlers and queues.yaml now
  p  pause: start nothing new; press it again to go on
  c  clear the screen
  ?  this help
  q  quit: let running handlers finish (Ctrl-C does the same; a second one does not wait)"""


class Keys:
    """Calls *pressed* with each key while the process is in the foreground of its terminal."""

    def __init__(self, pressed: Callable[[str], None]) -> None:
        self._pressed = pressed
        self._fd = -1
        self._before: list[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> bool:
        """Begin; False when there is no terminal to read keys from."""
        try:
            self._fd = sys.stdin.fileno()
            if not os.isatty(self._fd):
                return False
            self._before = termios.tcgetattr(self._fd)
        except (OSError, ValueError, termios.error, AttributeError):
            return False  # no stdin, or not a terminal
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._loop.add_signal_handler(signal.SIGCONT, self._resume)
        atexit.register(self.stop)
        self._resume()
        return True

    def stop(self) -> None:
        """Give the terminal back. Safe to call twice."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._fd)
            loop.remove_signal_handler(signal.SIGTSTP)
            loop.remove_signal_handler(signal.SIGCONT)
        if self._before is not None:
            self._restore()
            self._before = None
        atexit.unregister(self.stop)

    def _foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False  # the terminal is gone

    def _restore(self) -> None:
        # from the background the terminal belongs to somebody else, and changing it would stop this process
        if self._before is not None and self._foreground():
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _resume(self) -> None:
        """Take keys as they come; in the background take none, for reading there would stop this process."""
        if self._loop is None or self._before is None:
            return
        if not self._foreground():
            self._loop.remove_reader(self._fd)
            return
        mode = list(self._before)
        # no line editing and no echo; signals and output processing stay, so Ctrl-C, Ctrl-Z and print work as ever
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
            self._loop.add_reader(self._fd, self._read)

    def _suspend(self) -> None:
        self._restore()
        # the default action, which this handler replaced: the shell must see a stopped job
        os.kill(os.getpid(), signal.SIGSTOP)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 64)
        except OSError:
            data = b""
        if not data:  # the terminal is gone; SIGHUP follows where it means anything
            if self._loop is not None:
                self._loop.remove_reader(self._fd)
            return
        if data.startswith(b"\x1b"):
            return  # an arrow or function key, whose letters mean nothing here
        for key in data.decode("utf-8", "ignore"):
            self._pressed(key)
