"""Learns what a dead worker of this machine was running. It decides nothing.

Kafka gives a dead worker's partitions to others without a word about it. So each worker writes the path of its board beside
the watermarks that it commits, and keeps a lock beside the board for as long as its process lives.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from handrail.board import running_at

#: The locks of this process: they bind others alone, and closing any descriptor of such a file would drop them.
_mine: set[str] = set()


class Deaths:
    """This worker's own sign of life, and a look at others'."""

    def __init__(self, board: Path | None) -> None:
        self.board = "" if board is None else str(board.absolute())
        self._fd = -1
        if board is not None:
            _mine.add(self.board)
            self._fd = os.open(_lock(self.board), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # a lock of the process, not of the descriptor: children that inherit the descriptor do not keep it alive
            fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def end(self) -> None:
        """An orderly end leaves nothing to explain."""
        if self._fd >= 0:
            _lock(self.board).unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
            _mine.discard(self.board)

    @staticmethod
    def suspects(board: str, queue: str) -> dict[str, int]:
        """What the worker of *board* was running of *queue* when it died: id → crashes before; nothing while it lives."""
        if board in _mine:
            return {}
        try:
            fd = os.open(_lock(board), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return {}  # it ended in order, or on another machine
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return {}  # it lives
        finally:
            os.close(fd)
        return {message_id: crashes for (name, message_id), crashes in running_at(Path(board)).items() if name == queue}


def _lock(board: str) -> Path:
    return Path(board + ".kafka")
