"""Where a SQLite broker's files lie, from its URL. It opens nothing but the folder of a ``:memory:`` broker."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

import msgspec

from handrail.adapter import BrokerSettings
from handrail.errors import BrokerError

_FORMS = "use sqlite:relative/path.db, sqlite:/absolute/path.db or sqlite::memory:"


class Place(msgspec.Struct, frozen=True):
    """The files of one broker."""

    file: Path
    memory: bool = False

    @property
    def owners(self) -> Path:
        """The folder of lock files and wake-up sockets."""
        return self.file.with_name(self.file.name + ".owners")

    def __str__(self) -> str:
        return "memory of this process" if self.memory else str(self.file)


def parse(settings: BrokerSettings) -> Path | None:
    """The absolute path that ``settings.url`` names, None for ``:memory:``. Raises :class:`BrokerError`; no I/O."""
    where = f"broker {settings.name!r}: {settings.url!r}"
    text = settings.url.partition(":")[2]
    if text == ":memory:":
        return None
    if text.startswith("//"):
        host, slash, path = text[2:].partition("/")
        if host or not slash:
            raise BrokerError(f"{where} names the host {host!r}, but a SQLite file has none; {_FORMS}")
        text = "/" + path.lstrip("/")
    if not text:
        raise BrokerError(f"{where} names no file; {_FORMS}")
    if "\0" in text:
        raise BrokerError(f"{where} holds a NUL character; {_FORMS}")
    if "?" in text or "#" in text:
        raise BrokerError(f"{where} has parameters, but a SQLite file takes none; {_FORMS}")
    if text.endswith("/"):
        raise BrokerError(f"{where} is a folder; name a file in it, such as {settings.url}queues.db")
    # normalised by text alone, for resolving symbolic links would be I/O
    return Path(os.path.normpath(Path(settings.root, text)))


class _Memory:
    """The folders of the ``:memory:`` brokers of this process: each lives as long as one adapter has it open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], tuple[str, int]] = {}
        self._pid = os.getpid()

    def acquire(self, key: tuple[str, str]) -> Path:
        with self._lock:
            self._forget_parents()
            folder, users = self._open.get(key) or (tempfile.mkdtemp(prefix="handrail-memory-"), 0)
            self._open[key] = folder, users + 1
            return Path(folder, "queues.db")

    def release(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._forget_parents()
            folder, users = self._open.pop(key, ("", 0))
            if users > 1:
                self._open[key] = folder, users - 1
            elif users:
                shutil.rmtree(folder, ignore_errors=True)

    def _forget_parents(self) -> None:
        # a forked child must not remove what its parent uses
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._open.clear()


memory = _Memory()
