"""Learns of workers of this machine that died: what they were running, and what they were members of. It decides nothing.

Kafka gives a dead worker's partitions to others late, and without a word about it. So each worker writes the path of its
board beside the watermarks that it commits, and keeps a lock beside the board for as long as its process lives; in that file
stands under which names it is in which consumer groups, so that whoever finds it dead can tell the groups at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from handrail.board import running_at, sendings_completed_at

#: Seconds for which a dead worker's board is kept: its partitions may be taken over as late as somebody serves the queue.
KEPT = 86_400.0
_SUFFIX = ".kafka"

#: The locks of this process: they bind others alone, and closing any descriptor of such a file would drop them.
_mine: set[str] = set()


class Left(msgspec.Struct):
    """What a worker left behind of one partition of a queue when it died. Whoever takes a message of it takes it out."""

    board: str
    #: The end of the log when its death was noticed: what stands from there on is none of it.
    below: int
    #: Was running: id → crashes before.
    running: dict[str, int]
    #: Was completed, with nothing left to do but to acknowledge it: id, and name of the sending.
    completed: set[tuple[str, str]]


class Deaths:
    """This worker's own sign of life, and a look at others'."""

    def __init__(self, board: Path | None) -> None:
        self.board = "" if board is None else str(board.absolute())
        self._fd = -1
        self._members: dict[str, str] = {}
        if board is not None:
            _mine.add(self.board)
            self._fd = os.open(_lock(self.board), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # a lock of the process, not of the descriptor: children that inherit the descriptor do not keep it alive
            fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def member(self, group: str, name: str) -> None:
        """This worker is in *group* as *name* from now on; with an empty name, no longer."""
        if self._fd < 0 or self._members.get(group, "") == name:
            return
        self._members[group] = name
        data = msgspec.json.encode({one: named for one, named in self._members.items() if named})
        os.ftruncate(self._fd, 0)  # read half written it is no JSON, and says nothing
        os.pwrite(self._fd, data, 0)

    def end(self) -> None:
        """An orderly end leaves nothing to explain."""
        if self._fd >= 0:
            _lock(self.board).unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
            _mine.discard(self.board)

    def orphans(self) -> Iterator[tuple[str, str]]:
        """Group and name of each membership of a worker that is dead, once."""
        if not self.board:
            return
        for file in Path(self.board).parent.glob(f"*{_SUFFIX}"):
            board = str(file)[: -len(_SUFFIX)]
            fd = _dead(board)
            if fd < 0:
                continue
            try:
                members = msgspec.json.decode(os.pread(fd, 1 << 20, 0) or b"{}", type=dict[str, str])
                os.ftruncate(fd, 0)
                if time.time() - Path(board).stat().st_mtime > KEPT:
                    file.unlink(missing_ok=True)
                    Path(board).unlink(missing_ok=True)
            except FileNotFoundError:  # its board was tidied up by whoever had other messages of it
                file.unlink(missing_ok=True)
                continue
            except (msgspec.DecodeError, OSError):
                continue
            finally:
                os.close(fd)
            yield from members.items()

    @staticmethod
    def left(board: str, queue: str, below: int) -> Left | None:
        """What the worker of *board* left of *queue* when it died; None while it lives, or when it left nothing."""
        fd = _dead(board)
        if fd < 0:
            return None
        os.close(fd)
        path = Path(board)
        running = {message_id: crashes for (name, message_id), crashes in running_at(path).items() if name == queue}
        completed = {(message_id, send) for name, message_id, send in sendings_completed_at(path) if name == queue}
        return Left(board, below, running, completed) if running or completed else None


def _lock(board: str) -> Path:
    return Path(board + _SUFFIX)


def _dead(board: str) -> int:
    """The lock of a worker that is dead, open and ours; -1 when it lives, ended in order, or is on another machine."""
    if board in _mine:
        return -1
    try:
        fd = os.open(_lock(board), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    with contextlib.suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, or two who ask would take each other for it
        return fd
    os.close(fd)
    return -1
