"""Learns from the boards of dead workers of this machine what they were running, and what was done. It decides nothing.

The server gives a dead worker's messages to others without a word about which of them were running. So each worker keeps a
file, locked for as long as its process lives, that names its board; a file that nobody has locked is a dead worker's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
import uuid
from pathlib import Path

from handrail import lifeline
from handrail.board import running_at, sendings_completed_at
from handrail.errors import BrokerError
from handrail.message import Message

#: Seconds for which a dead worker's board is kept: its messages come back as slowly as somebody takes them.
KEPT = 3600.0
#: Seconds between two looks into the folder.
LOOK_EVERY = 0.02


class Deaths:
    """What was running when workers of this machine died, by (queue, id)."""

    def __init__(self, broker: str) -> None:
        name = hashlib.sha256(broker.encode()).hexdigest()[:16]
        self._root = Path(tempfile.gettempdir(), f"handrail-{os.getuid()}")
        self._folder = Path(self._root, "workers", name)
        #: Whether nobody else can write into the folder.
        self._trusted = False
        self._lifeline: lifeline.Lifeline | None = None
        self._known: set[str] = set()
        self._suspects: dict[tuple[str, str], int] = {}
        self._completed: set[tuple[str, str, str]] = set()
        self._looked = 0.0

    def begin(self, board: Path) -> None:
        """Let it be known that this process writes *board*. Raises :class:`BrokerError` where others could lie to it."""
        _own(self._root)
        self._trusted = True
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lifeline = lifeline.Lifeline(self._folder / uuid.uuid4().hex)
        self._lifeline.write(os.fsencode(board))

    def end(self) -> None:
        """An orderly end leaves nothing to explain."""
        if self._lifeline is not None:
            self._lifeline.end()
            self._lifeline = None

    def crashes(self, queue: str, message_id: str) -> int:
        """How often the message has crashed by the boards of the dead; 0 when none of them was running it."""
        self._look_now_and_then()
        return self._suspects.pop((queue, message_id), 0) if self._suspects else 0

    def completed(self, message: Message) -> bool:
        """Whether a dead worker had completed *message*, and only the word of it did not reach the server."""
        self._look_now_and_then()
        return (message.queue, message.id, message.send) in self._completed and message.unique

    def _look_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY:
            self._look()
            self._looked = now

    def _look(self) -> None:
        if not self._trusted:
            try:
                _own(self._root)
            except BrokerError:
                return  # what others may have written there is not believed; a worker with a board has said so at its start
            self._trusted = True
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name not in self._known:
                    self._judge(Path(entry.path))

    def _judge(self, file: Path) -> None:
        fd = lifeline.dead(file)
        if fd is None:
            return  # it lives, or another worker tidied up
        content = os.read(fd, 4096)
        os.close(fd)
        if not content:
            return  # it is just beginning
        board = Path(os.fsdecode(content))
        self._known.add(file.name)
        for name, before in running_at(board).items():
            self._suspects[name] = max(self._suspects.get(name, 0), before + 1)
        self._completed |= sendings_completed_at(board)
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > KEPT:
                file.unlink()
                board.unlink(missing_ok=True)


def _own(folder: Path) -> None:
    """Make *folder*, for this user alone. Everybody may write beside it, so what is there already must be ours."""
    mend = "remove it, or set TMPDIR to a folder of this user's own"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise BrokerError(f"{folder}: is no folder, so workers cannot tell each other of crashes there; {mend}")
        if found.st_uid != os.getuid():
            raise BrokerError(
                f"{folder}: belongs to another user (uid {found.st_uid}), who could forge crashes; {mend}"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise BrokerError(f"{folder}: cannot be made: {error.strerror}; set TMPDIR to a folder that can be") from error
