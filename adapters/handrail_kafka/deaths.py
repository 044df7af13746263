"""Learns of workers of this machine that died: what they were running, and what they were members of. It decides nothing.

Kafka gives a dead worker's partitions to others late, and without a word about it. So each worker writes the path of its
board beside the watermarks that it commits, and keeps a lock beside the board for as long as its process lives; in that file
stands under which names it is in which consumer groups, so that whoever finds it dead can tell the groups at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from handrail import lifeline
from handrail.board import running_at, sendings_completed_at

#: Seconds for which a dead worker's board is kept: its partitions may be taken over as late as somebody serves the queue.
KEPT = 86_400.0


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

    def __init__(self, board: Path | None, broker: str) -> None:
        # a worker has one board, and may have several Kafkas
        self._suffix = f".{quote(broker, safe='')}.kafka"
        self.board = "" if board is None else str(board.absolute())
        self._members: dict[str, str] = {}
        self._lifeline = None if board is None else lifeline.Lifeline(self._lock(self.board))

    def member(self, group: str, name: str) -> None:
        """This worker is in *group* as *name* from now on; with an empty name, no longer."""
        if self._lifeline is None or self._members.get(group, "") == name:
            return
        self._members[group] = name
        self._lifeline.write(msgspec.json.encode({one: named for one, named in self._members.items() if named}))

    def end(self) -> None:
        """An orderly end leaves nothing to explain."""
        if self._lifeline is not None:
            self._lifeline.end()
            self._lifeline = None

    def orphans(self) -> Iterator[tuple[str, str]]:
        """Group and name of each membership of a worker that is dead, once."""
        if not self.board:
            return
        for file in Path(self.board).parent.iterdir():
            if not file.name.endswith(self._suffix):
                continue
            board = str(file)[: -len(self._suffix)]
            fd = lifeline.dead(file)
            if fd is None:
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

    def left(self, board: str, queue: str, below: int) -> Left | None:
        """What the worker of *board* left of *queue* when it died; None while it lives, or when it left nothing."""
        fd = lifeline.dead(self._lock(board))
        if fd is None:
            return None
        os.close(fd)
        path = Path(board)
        running = {message_id: crashes for (name, message_id), crashes in running_at(path).items() if name == queue}
        completed = {(message_id, send) for name, message_id, send in sendings_completed_at(path) if name == queue}
        return Left(board, below, running, completed) if running or completed else None

    def _lock(self, board: str) -> Path:
        return Path(board + self._suffix)
