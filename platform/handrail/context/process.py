"""What this process sends through: the installed transport, or a publisher of its own. It checks no message.

The settings are found once a process, the publisher is made at the first send and anew after a fork, and what was
accepted is flushed when the interpreter exits.
"""

from __future__ import annotations

import atexit

# What runs at exit runs in reverse: with this registered before our flush, an adapter that asks the loop's threads for an
# address still finds them. Imported here, for it hooks into forks, and one must not fall amid that.
import concurrent.futures.thread  # noqa: F401
import os
import threading
from pathlib import Path

from handrail import transport
from handrail.config.model import Settings
from handrail.context import callbacks, receipt
from handrail.context.publisher import Publisher
from handrail.errors import HandrailError, SendError
from handrail.transport import Transport

#: Seconds that callbacks get at exit once everything sent has met its fate.
_CALLBACKS = 2.0
#: Seconds that a fork waits for another thread that is just making the publisher.
_FORKING = 5.0

#: Reentrant, for a signal handler may send amid the first send.
_lock = threading.RLock()
_fork = threading.local()
_settings: Settings | None = None
_publisher: Publisher | None = None
_pid = os.getpid()
#: Publishers of the processes this one was forked from: never closed here, for their connections are shared with them.
_inherited: list[Publisher] = []


def current() -> Transport:
    """The way this process sends. Raises :class:`NoProjectError` or :class:`ConfigError` when there is none to be found."""
    found = transport.current() or _publisher
    if found is not None and _pid == os.getpid():
        return found
    return _make()


def configure(path: str | Path | None = None, settings: Settings | None = None) -> None:
    """Send by this queues.yaml, or by these settings; by neither, look for the project again at the next send.

    A publisher of other settings flushes and closes first.
    """
    global _publisher, _settings
    if path is not None and settings is not None:
        raise HandrailError("configure() takes a path or settings, not both")
    if path is not None:
        settings = _load(Path(path))
    with _lock:
        old, _publisher = _publisher, None
        _settings = settings
    if old is not None:
        old.close(old.settings.send_timeout + 1.0)


def flush(timeout: float | None = None) -> bool:
    """Wait until everything sent so far has met its fate and its callbacks have run, at most *timeout* seconds.

    Returns whether it has. None is ``send_timeout`` and a little.
    """
    found = transport.current() or _publisher
    if found is None:
        return True
    flushed = found.flush(found.settings.send_timeout + 1.0 if timeout is None else timeout)
    running = callbacks.running()
    return (running is None or running.drain(_CALLBACKS if timeout is None else timeout)) and flushed


def _make() -> Transport:
    global _publisher, _settings
    if _pid != os.getpid():
        _after_fork()  # a fork that Python was not told of, such as one made by a C library
    with _lock:
        if _publisher is None:
            if _settings is None:
                _settings = _load(None)
            try:
                callbacks.runner()
                made = Publisher(_settings)
            except RuntimeError as error:  # from Python 3.12 on no thread starts once the interpreter is ending
                raise SendError(f"the first send of a process must come before its end: {error}") from error
            if _publisher is None:
                _publisher = made
                _flush_early()
            else:  # a signal handler's send came between
                made.close(0.0)
        return _publisher


def _load(path: Path | None) -> Settings:
    from handrail import config  # noqa: PLC0415 - reading YAML costs 50 ms, and a host never does it

    return config.load(path if path is not None else config.find(), check_handlers=False)


def _before_fork() -> None:
    # a thread that is just looking for the project holds import locks, which a child would never see released
    _fork.held = _lock.acquire(timeout=_FORKING)
    if _publisher is not None and _pid == os.getpid():
        _publisher.park()


def _after_fork_in_parent() -> None:
    if _publisher is not None:
        _publisher.resume()
    if _fork.held:
        _lock.release()


def _after_fork() -> None:
    global _lock, _publisher, _pid
    _lock = threading.RLock()
    _pid = os.getpid()
    if _publisher is not None:
        _inherited.append(_publisher)
        _publisher = None
    receipt.after_fork()
    callbacks.after_fork()


def _flush_early() -> None:
    """Have the first flush at exit happen where children of multiprocessing, which run no atexit, come by as well."""
    register = getattr(threading, "_register_atexit", None)  # what concurrent.futures relies on too
    if register is None:
        return
    try:
        register(_flush_at_exit)
    except RuntimeError:
        return  # the interpreter is past that point already; the flush at exit follows


def _flush_at_exit() -> None:
    if _publisher is None or _pid != os.getpid():
        return
    _publisher.flush(_publisher.settings.send_timeout + 1.0)
    receipt.report_unseen()
    if (running := callbacks.running()) is not None:
        running.drain(_CALLBACKS)


def _at_exit() -> None:
    if _pid != os.getpid():
        return
    if _publisher is not None:
        _publisher.close(_publisher.settings.send_timeout + 1.0)
    receipt.report_unseen()
    if (running := callbacks.running()) is not None:
        running.drain(_CALLBACKS)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
# registered as early as this module is imported, so that it runs after the application's own atexit functions
atexit.register(_at_exit)
