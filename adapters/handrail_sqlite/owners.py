"""Who lives: a worker's lock file, the turn of writers, and the datagrams that wake other processes. No SQL.

A lock of ``flock`` ends with its process, however that dies, so a free lock file is a dead owner and no clock is asked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

#: Seconds for which a lock file may be missing before its owner counts as dead: an owner whose file was removed
#: under it makes a new one within a second.
MISSING_GRACE = 3.0
#: Seconds after which a free lock file that no owner answers to is litter of a start that failed.
LITTER_AGE = 60.0
#: The longest path of a unix socket that every system takes, in bytes.
_LONGEST_SOCKET = 100

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "lustre"}

#: What holds descriptors that a forked child must not keep: a child's copy would keep the lock of a dead parent.
_open: weakref.WeakSet[Any] = weakref.WeakSet()


class _Forgetting(Protocol):
    def forget(self) -> None: ...


def in_child(one: _Forgetting) -> None:
    """Call ``one.forget()`` in every child that this process forks, as long as *one* lives."""
    _open.add(one)


def _forked() -> None:
    for one in list(_open):
        one.forget()


os.register_at_fork(after_in_child=_forked)


class Dead(msgspec.Struct, frozen=True):
    """An owner found dead; its lock is held by us until :meth:`bury`."""

    id: int
    name: str
    fd: int
    board: Path | None
    prefix: str

    def bury(self, folder: Path) -> None:
        """Remove what it left; call this once its messages are back."""
        for path in (folder / f"{self.name}.sock", self.board, folder / f"{self.name}.lock"):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Let go of its lock and leave it for the next who looks."""
        if self.fd >= 0:
            os.close(self.fd)


class Lease:
    """This worker's life, as a lock on a file of its own. *name* is fresh with every one: a pid or host comes again."""

    def __init__(self, folder: Path, board: Path | None, prefix: str) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        self._path = folder / f"{self.name}.lock"
        self._content = {
            "pid": os.getpid(),
            "board": None if board is None else str(board.absolute()),
            "started": time.time(),
            "prefix": prefix,
        }
        self._fd = -1
        self._inode = 0
        self._missing: dict[str, float] = {}
        self._take()
        in_child(self)

    def _take(self) -> None:
        # under another name until it is locked: a free lock is a dead owner
        half = self._path.with_suffix(".new")
        fd = os.open(half, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, json.dumps(self._content).encode())
            half.replace(self._path)
        except OSError:
            os.close(fd)
            raise
        self.forget()
        self._fd, self._inode = fd, os.fstat(fd).st_ino

    def keep(self) -> None:
        """Make the lock file again if somebody removed it or put a copy in its place, which nobody holds.

        Raises ``OSError`` when its folder is gone.
        """
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                return
        self._take()

    def dead(self, owners: list[tuple[int, str]]) -> Iterator[Dead]:
        """Those of *owners* whose lock is free. The caller buries or leaves each."""
        for number, name in owners:
            if name == self.name:
                continue
            try:
                fd = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                if time.monotonic() - self._missing.setdefault(name, time.monotonic()) >= MISSING_GRACE:
                    del self._missing[name]
                    yield Dead(number, name, -1, None, "")
                continue
            except OSError:
                continue  # unreadable is not dead
            self._missing.pop(name, None)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                continue
            if not _lies_at(fd, self._folder / f"{name}.lock"):
                os.close(fd)  # it was made again meanwhile
                continue
            board, prefix = _content(fd)
            yield Dead(number, name, fd, board, prefix)

    def sweep(self, owners: list[tuple[int, str]]) -> None:
        """Remove old lock files that belong to nobody: their workers died before they were known."""
        known = {name for _number, name in owners} | {self.name}
        for path in (*self._folder.glob("*.lock"), *self._folder.glob("*.new")):
            with contextlib.suppress(OSError):
                if path.stem in known or time.time() - path.stat().st_mtime < LITTER_AGE:
                    continue
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    path.with_suffix(".sock").unlink(missing_ok=True)
                finally:
                    os.close(fd)

    def end(self, *, remove: bool) -> None:
        """Stop living. Without *remove* the file stays, and the next worker returns what this one held."""
        if self._fd >= 0 and remove:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self.forget()
        _open.discard(self)

    def forget(self) -> None:
        """Close the descriptor, in a forked child as at the end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lies_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _content(fd: int) -> tuple[Path | None, str]:
    try:
        found = json.loads(os.read(fd, 65536))
        board, prefix = found.get("board"), found.get("prefix")
    except (ValueError, AttributeError):
        return None, ""  # it died while it wrote this, so it held nothing yet
    return Path(board) if isinstance(board, str) else None, prefix if isinstance(prefix, str) else ""


class Turn:
    """The turn of writers: an ``flock`` around each transaction. SQLite's own waiting is polling, and starves."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        in_child(self)

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            # a file system without locks: SQLite's own wait serves, less fairly
            if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}:
                raise

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def end(self) -> None:
        self.forget()
        _open.discard(self)

    def forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Bell:
    """Wakes the workers of one file by a datagram each. Best effort: the second's poll is the safety net."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: str | None = None
        self._names: list[str] = []
        self._listed = (0, 0.0)
        self._dir = -1
        self.socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        in_child(self)

    def listen(self, name: str) -> None:
        """Be woken through ``<name>.sock``; silently not, where the file system has no sockets."""
        assert self.socket is not None
        address = self._address(f"{name}.sock")
        if address is None:
            return
        with contextlib.suppress(OSError):
            self.socket.bind(address)
            self._own = f"{name}.sock"

    def _address(self, name: str) -> str | None:
        direct = str(self._folder / name)
        if len(os.fsencode(direct)) <= _LONGEST_SOCKET:
            return direct
        # a deep project: reach the folder through a descriptor of ours, which is short
        if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - nothing to be gained by an object
            return None
        if self._dir < 0:
            try:
                self._dir = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                return None
        return f"/proc/self/fd/{self._dir}/{name}"

    def ring(self) -> None:
        """Wake all other workers."""
        if self.socket is None:
            return
        for name in self._listening():
            address = self._address(name)
            if address is not None:
                # a full buffer means it is awake already; a refusal, that it is dead
                with contextlib.suppress(OSError):
                    self.socket.sendto(b"", address)

    def _listening(self) -> list[str]:
        now = time.monotonic()
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116 - once a commit
            # listed again each second all the same, for two changes can bear one time stamp
            if (changed, now) > (self._listed[0], self._listed[1] + 1.0) or changed != self._listed[0]:
                self._names = [
                    name
                    for name in os.listdir(self._folder)  # noqa: PTH208 - names alone, once a commit
                    if name.endswith(".sock") and name != self._own
                ]
                self._listed = (changed, now)
        except OSError:
            self._names = []
        return self._names

    def drain(self) -> None:
        """Take the datagrams that came."""
        if self.socket is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.recv(16)

    def end(self) -> None:
        if self._own is not None and self.socket is not None:
            address = self._address(self._own)
            if address is not None:
                with contextlib.suppress(OSError):
                    os.unlink(address)  # noqa: PTH108 - an address, perhaps through /proc
        self.forget()
        _open.discard(self)

    def forget(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that *path* lies on, where that can be told; locks prove little there."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    best, kind = "", None
    where = os.path.realpath(path)
    for line in mounts:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if (where + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind if kind in _NETWORK else None


def is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False
