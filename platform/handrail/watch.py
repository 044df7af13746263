"""Watches a project's code and queues.yaml for changes of content. It reads nothing else, and plans no reload.

Events of the file system are only the occasion to look: what changed is found by comparing the tree with what it was,
so lost, doubled or misleading events (editors' renames, backups, folders that come and go) do no harm.
"""

# A look goes over thousands of paths, for which Path objects cost more than the looking.
# ruff: noqa: PTH110, PTH114, PTH116, PTH118, PTH119, PTH120
from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from handrail.config.model import Settings
from handrail.errors import ConfigError
from handrail.logger import get_logger

# it finds a folder twice that is made while it looks, and says so on stderr
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)

log = get_logger("handrail")

#: The variable that says how to watch: ``auto`` (the default), or ``poll`` for file systems that tell no events, such as
#: network shares and folders of the host that are mounted in a virtual machine.
VARIABLE = "HANDRAIL_WATCH"
#: Seconds without an event after which a burst of changes counts as over, and the longest that a burst is waited for.
SETTLE, LONGEST = 0.1, 2.0
#: Seconds between two looks where there are no events.
POLL = 1.0
#: Seconds between two looks where there are: for what no event told, such as the target of a symbolic link.
SAFETY = 5.0
#: A look that took long is repeated more rarely: at most this share of one core goes into looking without an occasion.
SHARE = 0.005
#: The least pause after a look that took long for what it waited for, as on a network's files: this many times as long.
REST = 3.0

#: Folders that hold no code of the project, at any depth; hidden ones and virtual environments go without saying.
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
#: Folders at the project's root that no handler imports.
_ASIDE = frozenset({"tests", "test"})
#: A file written this shortly before it was read may be written again without a change of its times (the clock of file
#: systems is coarse), so the next look reads it again.
_RACY = 2.0

_OCCASIONS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


class Change(msgspec.Struct, frozen=True):
    """Files whose content is not what it was. Paths are relative to the project, with ``/``, and sorted."""

    #: Changed and new files.
    files: tuple[str, ...]
    #: Files that are no more. A renamed file is in both.
    gone: tuple[str, ...] = ()
    #: Whether queues.yaml is among them.
    config: bool = False


class _Seen(msgspec.Struct, frozen=True):
    """A file as it was when it was read."""

    #: Device, inode, size, time of content and time of anything: equal ones need no reading.
    sign: tuple[int, ...]
    digest: bytes
    empty: bool
    racy: bool


class _Look(msgspec.Struct, frozen=True):
    """The project at one moment."""

    files: dict[str, _Seen]
    #: Folders to watch: real path → whether everything below is to be watched as well.
    folders: dict[str, bool]
    #: How much of a core it took, and how long: one that was held up says nothing of how much there is to look at.
    seconds: float
    lasted: float


def _while_it_runs(record: logging.LogRecord) -> bool:
    return "thread is inactive" not in record.getMessage()


class _Tree:
    """The files of a project that matter. Blocking."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.root
        self.config = os.path.relpath(settings.path, settings.root)

    def look(self, before: dict[str, _Seen]) -> _Look:
        started, began = time.thread_time(), time.monotonic()
        files: dict[str, _Seen] = {}
        folders: dict[str, bool] = {}
        self._file(self.config, files, before, folders)
        self._folder("", files, before, folders, set())
        return _Look(files, folders, time.thread_time() - started, time.monotonic() - began)

    def checking_out(self) -> bool:
        """Whether git is at work on the files: it may pause for longer than any editor."""
        return os.path.exists(os.path.join(self.root, ".git", "index.lock"))

    def _folder(
        self,
        relative: str,
        files: dict[str, _Seen],
        before: dict[str, _Seen],
        folders: dict[str, bool],
        above: set[tuple[int, int]],
    ) -> bool:
        """Look at one folder; whether all below it is code that may be watched as a whole."""
        path = os.path.join(self.root, relative)
        try:
            found = os.stat(path)
            identity = found.st_dev, found.st_ino
            if identity in above:  # a symbolic link to a folder that we are in
                return False
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            return True  # it went away or cannot be read: nothing in it can be imported
        whole = bool(relative)
        below: dict[str, bool] = {}
        for entry in listed:
            inner = f"{relative}/{entry.name}" if relative else entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:
                continue
            if not is_folder:
                if entry.name.endswith(".py"):
                    self._file(inner, files, before, folders, link=entry.is_symlink())
            elif not self._ours(relative, entry):
                # bytecode is little, the others may be huge: those are not worth a watch
                whole = whole and entry.name == "__pycache__"
            elif entry.is_symlink():
                # events do not follow links
                if self._folder(inner, files, before, folders, above | {identity}):
                    folders[os.path.realpath(entry.path)] = True
            elif self._folder(inner, files, before, folders, above | {identity}):
                below[os.path.realpath(entry.path)] = True
            else:
                whole = False
        if not whole:
            folders |= below
            folders.setdefault(os.path.realpath(path), False)
        return whole

    def _ours(self, relative: str, entry: os.DirEntry[str]) -> bool:
        name = entry.name
        if name.startswith(".") or name in _FOREIGN or (not relative and name in _ASIDE):
            return False
        if os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
            return False
        # outside handlers/, a link to a folder may lead anywhere; only a package is followed
        handlers = name == "handlers" if not relative else relative.partition("/")[0] == "handlers"
        return handlers or not entry.is_symlink() or os.path.exists(os.path.join(entry.path, "__init__.py"))

    def _file(
        self,
        relative: str,
        files: dict[str, _Seen],
        before: dict[str, _Seen],
        folders: dict[str, bool],
        *,
        link: bool | None = None,
    ) -> None:
        path = os.path.join(self.root, relative)
        try:
            found = os.stat(path)
        except OSError:
            return
        if not stat.S_ISREG(found.st_mode):  # reading a named pipe would wait for its writer
            return
        if link or (link is None and os.path.islink(path)):
            folders.setdefault(os.path.dirname(os.path.realpath(path)), False)
        sign = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        seen = before.get(relative)
        if seen is not None and seen.sign == sign and not seen.racy:
            files[relative] = seen
            return
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            content = f"unreadable: {error.errno}".encode()  # to become readable is a change
        racy = time.time() - max(found.st_mtime, found.st_ctime) < _RACY
        files[relative] = _Seen(sign, hashlib.blake2b(content, digest_size=16).digest(), not content, racy)


class Watcher:
    """Tells what changed in a project since the watcher was made."""

    def __init__(self, settings: Settings) -> None:
        """Take in the project as it is now (blocking: milliseconds for a thousand files).

        Raises :class:`ConfigError` when ``HANDRAIL_WATCH`` is neither ``auto`` nor ``poll``.
        """
        how = os.environ.get(VARIABLE, "").strip().lower() or "auto"
        if how not in {"auto", "poll"}:
            raise ConfigError([f"{VARIABLE} is {how!r}; use auto or poll"])
        self._tree = _Tree(settings)
        self._names = {os.path.basename(settings.path), os.path.basename(os.path.realpath(settings.path))}
        self._look = self._tree.look({})
        self._polling = how == "poll"
        self._observer: BaseObserver | None = None
        #: Real path → (watch, whether it is recursive, identity of the folder it stands on).
        self._watches: dict[str, tuple[ObservedWatch, bool, tuple[int, int]]] = {}
        self._handler = _Handler(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self._signalled = False
        self._closed = False

    @property
    def polling(self) -> bool:
        """Whether the files are looked at periodically rather than on events."""
        return self._polling

    async def changes(self) -> AsyncIterator[Change]:
        """Changes, as they happen, for one consumer; ends when the watcher is closed.

        A burst of changes (a checkout, a formatter) is one: it is waited for until 0.1 s passed without another and git,
        if it was at work, is done; for 2 s at most. What changes while the consumer is busy comes as one change
        afterwards.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._rewatch, self._look)
        self._event.set()  # what changed before the watches stood
        while not self._closed:
            told = await self._occasion()
            if told:
                await self._settled()
            change = await self._compare(told=told)
            if change is not None and not self._closed:
                yield change

    def close(self) -> None:
        """Stop watching; :meth:`changes` ends. Safe to call twice, from any thread."""
        self._closed = True
        self._stop_observer()
        self.signal()

    # -- events --------------------------------------------------------------------------------------------------------

    def signal(self) -> None:
        """Something may have changed. From any thread; a thousand calls wake the loop once."""
        loop = self._loop
        if self._signalled or loop is None:
            return
        self._signalled = True
        # a loop that is closed has no consumer either
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._arrived)

    def _arrived(self) -> None:
        self._signalled = False
        self._event.set()

    def matters(self, path: str, *, folder: bool, content: bool) -> bool:
        """Whether an event on *path* is an occasion to look; *content*: of a file that was there before."""
        name = os.path.basename(path)
        if name.endswith(".py") or name in self._names:
            return True
        # a folder, or a link to one: those come and go without an event of what is in them
        return not content and not name.startswith(".") and name not in _FOREIGN and (folder or "." not in name)

    async def _occasion(self) -> bool:
        """Wait until it is time to look; whether an event said so."""
        pause = max(POLL if self._polling else SAFETY, self._look.seconds / SHARE, self._look.lasted * REST)
        try:
            async with asyncio.timeout(pause):
                await self._event.wait()
        except TimeoutError:
            return False
        return True

    async def _settled(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST
        while not self._closed and loop.time() < end:
            self._event.clear()
            try:
                async with asyncio.timeout(SETTLE):
                    await self._event.wait()
            except TimeoutError:
                if not self._tree.checking_out():
                    return

    # -- comparing -----------------------------------------------------------------------------------------------------

    async def _compare(self, *, told: bool) -> Change | None:
        before = self._look.files
        look = await asyncio.to_thread(self._tree.look, before)
        end = time.monotonic() + LONGEST
        # without events nobody says that a burst is over; and a file that is absent or empty may just be being replaced
        while not self._closed and time.monotonic() < end and self._doubtful(before, look.files, told=told):
            await asyncio.sleep(SETTLE)
            again = await asyncio.to_thread(self._tree.look, look.files)
            same = _digests(again.files) == _digests(look.files)
            look = again
            if same and not self._tree.checking_out():
                break
        if await asyncio.to_thread(self._rewatch, look):
            self._event.set()  # what happened in a new folder before its watch stood
        self._look = look
        files = tuple(sorted(name for name, seen in look.files.items() if _differs(before.get(name), seen)))
        gone = tuple(sorted(before.keys() - look.files.keys()))
        if not files and not gone:
            return None
        if not told and not self._polling:
            await asyncio.to_thread(self._probe)
        return Change(files, gone, self._tree.config in files or self._tree.config in gone)

    def _doubtful(self, before: dict[str, _Seen], now: dict[str, _Seen], *, told: bool) -> bool:
        if not told:
            return _digests(before) != _digests(now)
        return any(name not in now or (now[name].empty and not seen.empty) for name, seen in before.items())

    # -- watches; all in worker threads, one at a time -----------------------------------------------------------------

    def _rewatch(self, look: _Look) -> bool:
        """Make the watches those that *look* asks for; whether there is a new one."""
        if self._polling or self._closed:
            return False
        wanted = dict(_outermost(look.folders))
        added = False
        try:
            observer = self._observer
            if observer is None:
                # a file that changes while the watcher ends is an error to watchdog alone
                logging.getLogger("watchdog.observers.inotify").addFilter(_while_it_runs)
                observer = self._observer = Observer()
                observer.start()
            for path in list(self._watches):
                watch, recursive, identity = self._watches[path]
                if wanted.get(path) != recursive or _identity(path) != identity:
                    del self._watches[path]
                    with contextlib.suppress(KeyError):  # the observer drops those whose folder went
                        observer.unschedule(watch)
            for path, recursive in wanted.items():
                identity_now = _identity(path)
                if path in self._watches or identity_now is None:
                    continue
                try:
                    watch = observer.schedule(self._handler, path, recursive=recursive, event_filter=_OCCASIONS)
                except (FileNotFoundError, NotADirectoryError):
                    continue  # it went away since the look
                self._watches[path] = watch, recursive, identity_now
                added = True
        except OSError as error:
            self._fall_back(error)
        else:
            if added:
                self._probe()
        if self._closed:
            self._stop_observer()
        return added

    def _probe(self) -> None:
        """Find out whether the system still grants watches: below a folder that is watched it would refuse in silence."""
        if self._observer is None or sys.platform != "linux":
            return
        try:
            with tempfile.TemporaryDirectory(prefix="handrail-watch-") as folder:
                self._observer.unschedule(self._observer.schedule(self._handler, folder))
        except OSError as error:
            self._fall_back(error)

    def _fall_back(self, error: OSError) -> None:
        self._polling = True
        self._stop_observer()
        if error.errno in {errno.ENOSPC, errno.EMFILE}:
            reason = "the system's inotify limit is reached"
            mend = "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances with sysctl"
        else:
            reason, mend = str(error), f"set {VARIABLE}=poll if this is a network file system"
        log.warning(
            "file watching looks at the files once a second: no events from the system", reason=reason, mend=mend
        )

    def _stop_observer(self) -> None:
        observer, self._observer = self._observer, None
        self._watches = {}
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(1.0)


class _Handler(FileSystemEventHandler):
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_any_event(self, event: FileSystemEvent) -> None:
        content = isinstance(event, FileModifiedEvent | FileClosedEvent)
        for path in (event.src_path, event.dest_path):
            if path and self._watcher.matters(os.fsdecode(path), folder=event.is_directory, content=content):
                self._watcher.signal()
                return


def _digests(files: dict[str, _Seen]) -> dict[str, bytes]:
    return {name: seen.digest for name, seen in files.items()}


def _differs(before: _Seen | None, now: _Seen) -> bool:
    return before is None or before.digest != now.digest


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _outermost(folders: dict[str, bool]) -> Iterator[tuple[str, bool]]:
    """Without those that a recursive watch above covers, for the system tells their events twice or refuses them."""
    covering: str | None = None
    for path in sorted(folders, key=lambda path: Path(path).parts):
        if covering is not None and path.startswith(covering + os.sep):
            continue
        if folders[path]:
            covering = path
        yield path, folders[path]
