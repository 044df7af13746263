"""A file that is locked for as long as a process lives: by it others on the machine learn that it died. It judges nobody.

For adapters whose brokers give a dead worker's messages to others without a word about its death.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

#: The files of this process: its locks bind others alone, and closing any descriptor of such a file would drop them.
_mine: set[str] = set()


class Lifeline:
    """This process's own. Raises OSError when the file cannot be made."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        _mine.add(str(self.file))
        self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # a lock of the process, not of the descriptor: children that inherit the descriptor do not keep it alive
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def write(self, content: bytes) -> None:
        """Say *content* to whoever finds us dead. Read half written it is empty, or cut off."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, content, 0)

    def end(self) -> None:
        """An orderly end leaves nothing to explain."""
        if self._fd >= 0:
            self.file.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
            _mine.discard(str(self.file))


def dead(file: Path) -> int | None:
    """A descriptor of *file*, to be closed, when the process that it stands for is dead; None while it lives, or without one."""
    file = file.absolute()
    if str(file) in _mine:
        return None
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, or two who ask would take each other for it
    except OSError:
        os.close(fd)
        return None
    return fd
