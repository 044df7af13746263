"""The board: a small mapped file in which a worker's processes note what is running, so that a death can be explained.

The dispatcher gives every job that it hands to a host a slot and writes there which message it is; the host sets the
slot's one state byte when the handler is entered and again when its outcome is known. Neither is a system call, and
the page cache keeps both when every process is killed: whoever finds the board of a dead worker learns exactly what
was running, as opposed to merely handed over, and what had been completed without the broker having heard of it yet.
A power cut may lose or garble it: a power cut is no message's fault, and completions of another boot are not believed.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from handrail.errors import StartError

#: COMPLETED is ENDED with nothing left to do but to acknowledge: no result to keep, no send under way in its host.
EMPTY, GIVEN, RUNNING, ENDED, COMPLETED = 0, 1, 2, 3, 4

#: Slots on a board. A worker may run more jobs than that; those without a slot pass for running wherever that is asked.
SLOTS = 16_384
#: The slot of a job for which there was none.
NO_SLOT = -1
#: state, crashes so far, length of the name; then the name itself: queue, NUL, id, of 257 bytes at most, and where the sender
#: chose the id NUL and what names that one sending.
_HEAD = struct.Struct("=BHH")
#: At the end of a slot: when its handler was entered, in monotonic seconds.
_BEGUN = struct.Struct("=d")
_SIZE = 320
_NAME = _SIZE - _HEAD.size - _BEGUN.size
#: The file begins with as much as a slot: which boot of the machine it belongs to.
_FIRST = _SIZE
#: From the beginning of one slot to where the time of its beginning stands, counted from the file's.
_BEGUN_AT = _FIRST + _SIZE - _BEGUN.size
_LENGTH = _FIRST + SLOTS * _SIZE


class Board:
    """A mapped board. The dispatcher creates it; hosts open it by its descriptor; the bereaved read it by path."""

    __slots__ = ("_free", "fd", "map", "path")

    def __init__(self, fd: int, path: Path | None) -> None:
        self.fd = fd
        self.path = path
        self.map = mmap.mmap(fd, _LENGTH)
        self._free: list[int] | None = None

    @classmethod
    def create(cls, path: Path | None) -> Board:
        """A new, empty board at *path*, or a nameless one that nobody outside this worker's processes can read.

        Raises :class:`StartError` when there is no room for it, or no right to make it.
        """
        fd = -1
        try:
            if path is None:
                fd, name = tempfile.mkstemp(prefix="handrail-board-")
                os.unlink(name)  # noqa: PTH108 - nameless from here on
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _reserve(fd, _LENGTH)
            os.pwrite(fd, _boot(), 0)
            return cls(fd, path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                if path is not None:
                    path.unlink(missing_ok=True)
            raise StartError(
                f"{path or tempfile.gettempdir()}: cannot make the board of running jobs "
                f"({_LENGTH >> 20} MB): {error.strerror}"
            ) from error

    def take(self, queue: str, message_id: str, crashes: int, send: str = "") -> int:
        """A free slot, now GIVEN to that message; :data:`NO_SLOT` when all are taken. *send* tells it from others of its id."""
        if self._free is None:
            self._free = list(range(SLOTS - 1, -1, -1))
        # an id from the wire may be text that is no UTF-8
        text = f"{queue}\0{message_id}\0{send}" if send else f"{queue}\0{message_id}"
        name = text.encode("utf-8", "replace")[:_NAME]
        if not self._free:
            return NO_SLOT
        slot = self._free.pop()
        at = _FIRST + slot * _SIZE
        # the state byte goes last: a reader after a kill between the two sees an empty slot, never a wrong name
        self.map[at + _HEAD.size : at + _HEAD.size + len(name)] = name
        _HEAD.pack_into(self.map, at, GIVEN, min(crashes, 0xFFFF), len(name))
        return slot

    def give_back(self, slot: int) -> None:
        """Empty *slot* for the next job."""
        if slot < 0:
            return
        self.map[_FIRST + slot * _SIZE] = EMPTY
        assert self._free is not None
        self._free.append(slot)

    def mark(self, slot: int, state: int) -> None:
        """Note that the job in *slot* is RUNNING, ENDED or COMPLETED."""
        if slot >= 0:
            self.map[_FIRST + slot * _SIZE] = state

    def begin(self, slot: int, moment: float) -> None:
        """Note that the job in *slot* is RUNNING, its handler having been entered at *moment*, in monotonic seconds."""
        if slot >= 0:
            # the state byte goes last, as above
            _BEGUN.pack_into(self.map, _BEGUN_AT + slot * _SIZE, moment)
            self.map[_FIRST + slot * _SIZE] = RUNNING

    def state(self, slot: int) -> int:
        return self.map[_FIRST + slot * _SIZE] if slot >= 0 else RUNNING

    def begun(self, slot: int) -> float:
        """When the job in *slot* was begun, in monotonic seconds; 0 when nobody said."""
        if slot < 0:
            return 0.0
        (moment,) = _BEGUN.unpack_from(self.map, _BEGUN_AT + slot * _SIZE)
        return float(moment)

    @property
    def free(self) -> int:
        return SLOTS if self._free is None else len(self._free)

    def close(self, *, unlink: bool = False) -> None:
        self.map.close()
        os.close(self.fd)
        if unlink and self.path is not None:
            self.path.unlink(missing_ok=True)


def _reserve(fd: int, size: int) -> None:
    # a hole in a mapped file on a full disk kills its writer (SIGBUS), at any later time: take the space now
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    chunk = bytes(1 << 16)  # type: ignore[unreachable,unused-ignore]  # macOS
    for at in range(0, size, len(chunk)):
        os.pwrite(fd, chunk[: size - at], at)


def running_at(path: Path) -> dict[tuple[str, str], int]:
    """What was running by the board at *path*: (queue, id) → crashes it had before. Empty when there is no such board."""
    return {(queue, id_): crashes for state, queue, id_, _send, crashes in _read(path) if state == RUNNING}


def completed_at(path: Path) -> list[tuple[str, str]]:
    """What was completed by the board at *path* and perhaps never acknowledged: (queue, id), once for each message."""
    return [(queue, id_) for state, queue, id_, _send, _crashes in _read(path) if state == COMPLETED]


def sendings_completed_at(path: Path) -> set[tuple[str, str, str]]:
    """As :func:`completed_at`, for brokers on which many messages may bear one id: (queue, id, send).

    To be believed only of messages that are named so for certain: ``Message.unique``.
    """
    return {(queue, id_, send) for state, queue, id_, send, _crashes in _read(path) if state == COMPLETED}


def _read(path: Path) -> Iterator[tuple[int, str, str, str, int]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    believed = data[:_FIRST].rstrip(b"\0") == _boot() != b""
    for at in range(_FIRST, len(data) - _SIZE + 1, _SIZE):
        state = data[at]
        if state == EMPTY or (state == COMPLETED and not believed):
            continue
        _state, crashes, length = _HEAD.unpack_from(data, at)
        name = data[at + _HEAD.size : at + _HEAD.size + length].decode("utf-8", "replace")
        queue, _, rest = name.partition("\0")
        message_id, _, send = rest.partition("\0")
        yield state, queue, message_id, send, crashes


@functools.cache
def _boot() -> bytes:
    """What names this boot of the machine, or nothing where that cannot be known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:  # macOS
        found = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, check=False)
        return found.stdout.strip()
