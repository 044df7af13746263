"""Sets up what handrail says on stderr and journals what became of each job. It decides nothing and stops nothing.

On a terminal lines are short and aligned, elsewhere each is one JSON object. Writing never raises and never waits:
a closed, broken or unread stderr must not cost a heartbeat.
"""

from __future__ import annotations

import asyncio
import atexit
import codecs
import io
import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import deque
from typing import Any, ClassVar, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from handrail import duration
from handrail.adapter import masked
from handrail.outcome import Outcome

#: The variable that sets the level where ``--log-level`` does not; a worker's hosts read it too.
VARIABLE = "HANDRAIL_LOG"
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}
#: Lines of completed jobs that are written in one second before the rest of it folds into a summary per queue.
LINES_PER_SECOND = 50
#: Bytes of log that wait for a reader who has stopped reading; beyond them lines are dropped and counted.
BACKLOG_BYTES = 4 << 20


def level_number(name: str | None = None) -> int:
    """The number of the level *name*, else of ``HANDRAIL_LOG``, else of ``info``. Raises ``ValueError`` that lists the levels."""
    text = (name or os.environ.get(VARIABLE) or "info").strip().lower()
    text = {"warn": "warning", "none": "off", "critical": "error"}.get(text, text)
    try:
        return LEVELS[text]
    except KeyError:
        raise ValueError(f"unknown log level {text!r}; use one of {', '.join(LEVELS)}") from None


# --- where lines go ---------------------------------------------------------------------------------------------------


class Sink(io.TextIOBase):
    """A text file over stderr that neither raises nor waits. Rich consoles may write to it as well."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._name = (getattr(stream, "encoding", None) or "utf-8") if stream is not None else "utf-8"
        self._fd = -1
        self._poll: select.poll | None = None
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._waiting = 0
        self._dropped = 0
        self._drained = threading.Condition(self._lock)
        self._writer: threading.Thread | None = None
        if stream is not None:
            try:
                stream.flush()
                self._fd = stream.fileno()
            except (OSError, ValueError, AttributeError):
                return  # a stream without a descriptor, such as a test's: written to as it is
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._name

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self._fd < 0:
            raise OSError("this log goes to no descriptor")
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if self._fd >= 0:
            self._put(text.encode(self._name, "backslashreplace"))
        elif self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None  # closed under us: nobody is left to tell
        return len(text)

    def flush(self) -> None:
        """Nothing is held back, so there is nothing to do; :meth:`drain` waits for a slow reader."""

    def _put(self, data: bytes) -> None:
        with self._lock:
            if not self._backlog:
                data = self._write_now(data)
            if not data:
                return
            # what is left of a line that was begun is kept whatever its size, so that no line is torn
            if self._backlog and self._waiting + len(data) > BACKLOG_BYTES:
                self._dropped += 1
                return
            self._backlog.append(data)
            self._waiting += len(data)
            if self._writer is None:
                self._writer = threading.Thread(target=self._drain, name="handrail-log", daemon=True)
                self._writer.start()

    def _write_now(self, data: bytes) -> bytes:
        """Write what can be written without waiting; returns the rest."""
        assert self._poll is not None
        while data:
            # a pipe that polls as writable takes PIPE_BUF bytes (4096 on Linux, 512 at least) without blocking
            if not self._poll.poll(0):
                return data
            try:
                data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]
            except BlockingIOError:
                return data
            except OSError:
                return b""  # closed, broken or full: the line is lost, and the work goes on
        return data

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._backlog:
                    if self._dropped:
                        text = f"{self._dropped} log lines were dropped because nobody read them\n"
                        self._dropped = 0
                        self._backlog.append(text.encode())
                        self._waiting += len(text)
                        continue
                    self._writer = None
                    self._drained.notify_all()
                    return
                data = self._backlog[0]
            self._write_waiting(data)
            with self._lock:
                self._backlog.popleft()
                self._waiting -= len(data)

    def _write_waiting(self, data: bytes) -> None:
        assert self._poll is not None
        while data:
            self._poll.poll(1000)
            rest = self._write_now(data)
            if rest and rest is data:
                time.sleep(0.01)  # a descriptor that polls ready and takes nothing must not spin
            data = rest

    def drain(self, timeout: float = 1.0) -> None:
        """Wait up to *timeout* seconds until a slow reader has read what waits."""
        with self._lock:
            self._drained.wait_for(lambda: self._writer is None, timeout)

    def after_fork(self) -> None:
        """In a forked child neither the lock's state nor the writer thread is worth anything."""
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._backlog.clear()
        self._waiting = 0
        self._writer = None


class _Set:
    """What `configure` has set. One per process."""

    sink: ClassVar[Sink] = Sink(None)
    people: ClassVar[bool] = False
    colors: ClassVar[bool] = False
    level: ClassVar[int] = 20
    configured: ClassVar[bool] = False


def sink() -> Sink:
    """Where log lines go: a text file that is safe to write to, whatever has become of stderr."""
    return _Set.sink


def for_people() -> bool:
    """Whether lines are written for a person at a terminal rather than as JSON."""
    return _Set.people


def colored() -> bool:
    """Whether lines carry colours."""
    return _Set.colors


def level() -> int:
    """The level in force, as a number."""
    return _Set.level


def configure(*, colors: bool | None = None, level: str | None = None, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for this process.

    *colors* True: lines for people, False: JSON, None: by whether *stream* (default ``sys.stderr``) is a terminal.
    *level* defaults to ``HANDRAIL_LOG``, then ``info``. ``NO_COLOR`` keeps the lines for people but takes the colour.
    Raises ``ValueError`` for an unknown level.
    """
    number = level_number(level)
    _Set.sink.drain(0)
    _Set.sink = target = Sink(sys.stderr if stream is None else stream)
    _Set.people = target.isatty() if colors is None else colors
    _Set.colors = _Set.people and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    _Set.level = number
    render = _silence if number > 50 else _People(_Set.colors) if _Set.people else _Json()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _add_time, mask_secrets, render],
        # structlog knows no level above critical, which _silence takes away as well
        wrapper_class=structlog.make_filtering_bound_logger(min(number, 50)),
        logger_factory=lambda *_args: _Line(),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(number)
    if not _Set.configured:
        _Set.configured = True
        atexit.register(_drain_at_exit)
        os.register_at_fork(after_in_child=_after_fork)


def _drain_at_exit() -> None:
    _Set.sink.drain()


def _after_fork() -> None:
    _Set.sink.after_fork()


class _Line:
    """The logger at the end of structlog's chain: takes rendered text."""

    def msg(self, text: str) -> None:
        _Set.sink.write(text)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _Standard(logging.Handler):
    """Lines of libraries and of users' own ``logging`` calls, in the same form as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name} if record.name != "root" else {}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # logging.info("%d", "x"): the caller's slip must not become ours
            text = f"{record.msg} {record.args!r}"
        name = "error" if record.levelno >= 40 else record.levelname.lower()
        getattr(structlog.get_logger(), name if name in LEVELS else "info")(text, **fields)


def _route_standard_logging(number: int) -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Standard)]:
        root.removeHandler(handler)
    root.addHandler(_Standard())
    # libraries' debug lines would drown ours
    root.setLevel(max(number, logging.INFO))


# --- what a line is ---------------------------------------------------------------------------------------------------

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S+")
_QUERY_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:password|passwd|secret|token)[^=&\s]*=)[^&\s]+")


def _mask_url(match: re.Match[str]) -> str:
    return _QUERY_SECRET.sub(r"\1***", masked(match[0]))


def without_secrets(text: str) -> str:
    """*text* with the password of every URL in it replaced by ``***``."""
    return _URL.sub(_mask_url, text) if "://" in text else text


def _masked_value(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _masked_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_value(item) for item in value]
    if isinstance(value, BaseException):
        return without_secrets(f"{type(value).__name__}: {value}")
    return value


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: no line shows the password of a URL. It also turns ``exc_info`` into text."""
    info = event.pop("exc_info", None)
    if info:
        event["traceback"] = _exception_text(info)
    for key, value in event.items():
        if type(value) is not int and type(value) is not float:
            event[key] = _masked_value(value)
    return event


def _exception_text(info: Any) -> str:
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if info[0] is None:
        return ""
    return logging.Formatter().formatException(info)


def _add_time(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["timestamp"] = time.time()
    event["level"] = {"warn": "warning", "exception": "error", "critical": "error"}.get(method, method)
    return event


def _silence(_logger: WrappedLogger, _method: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent


class _Json:
    """One JSON object a line: timestamp (ISO 8601, UTC), level, event, then the fields."""

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        at = event.pop("timestamp")
        first = {
            "timestamp": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03d}Z",
            "level": event.pop("level"),
            "event": event.pop("event", ""),
        }
        first.update(event)
        try:
            return msgspec.json.encode(first, enc_hook=repr).decode() + "\n"
        except (ValueError, TypeError, RecursionError):  # lone surrogates, odd keys
            return json.dumps(_simple(first), default=repr, skipkeys=True) + "\n"


def _simple(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {str(key): _simple(item, depth + 1) for key, item in value.items()} if depth < 8 else repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_simple(item, depth + 1) for item in value] if depth < 8 else repr(value)
    return value


_COLOUR = {"debug": "2", "info": "36", "warning": "33", "error": "31"}
_OUTCOME_COLOUR = {
    Outcome.COMPLETED: "32",
    Outcome.FAILED: "33",
    Outcome.DEAD: "31;1",
    Outcome.CRASHED: "31",
    Outcome.REFUSED: "33",
    Outcome.EXPIRED: "33",
}
#: What would move the cursor or recolour the terminal of whoever reads a stranger's error text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """*text* with control characters made visible; tabs and line ends stay."""
    return _CONTROL.sub(lambda match: codecs.escape_encode(match[0].encode("latin-1"))[0].decode(), text)


class _People:
    """``12:01:07 failed      mail  0193…  attempt 1  12ms  ValueError: no such user; next in 2s`` and an indented block."""

    def __init__(self, colors: bool) -> None:
        self._colors = colors

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colors and code else text

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        clock = self._paint("2", time.strftime("%H:%M:%S", time.localtime(event.pop("timestamp"))))
        severity, text = event.pop("level"), str(event.pop("event", ""))
        block = str(event.pop("traceback", "") or "")
        if "outcome" in event:
            line = f"{clock} {self._job(event)}"
        else:
            head = self._paint(_COLOUR.get(severity, ""), f"{severity:<11}")
            line = f"{clock} {head} {_one_line(text)}{self._fields(event)}"
        if block:
            line += "\n" + "\n".join(f"    {row}" for row in printable(block).rstrip("\n").split("\n"))
        return line + "\n"

    def _job(self, event: EventDict) -> str:
        outcome = event.pop("outcome")
        head = self._paint(_OUTCOME_COLOUR.get(outcome, "36"), f"{outcome:<11}")
        queue = self._paint("1", _one_line(str(event.pop("queue"))))
        if "count" in event:
            return (
                f"{head} {queue}  and {event['count']:,} more in this second"
                f"  mean {_milliseconds(event['mean_ms'])}  max {_milliseconds(event['max_ms'])}"
            )
        reason, next_in = event.pop("reason", ""), event.pop("next_in", None)
        identity = self._paint("2", _one_line(str(event.pop("id"))))
        line = f"{head} {queue}  {identity}  attempt {event.pop('attempt')}  {_milliseconds(event.pop('duration_ms'))}"
        if reason:
            line += f"  {_one_line(reason)}"
        if next_in is not None:
            line += f"{';' if reason else ' '} next in {duration.text(round(next_in, 3))}"
        return line + self._fields(event)

    def _fields(self, event: EventDict) -> str:
        return "".join(f"  {self._paint('2', key + '=')}{_one_line(_plain(value))}" for key, value in event.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list):
        return json.dumps(value, default=repr, ensure_ascii=False)
    return str(value)


def _one_line(text: str) -> str:
    return printable(" ⏎ ".join(text.strip().splitlines()))


def _milliseconds(value: float) -> str:
    digits = 5 if value < 1 else 4 if value < 10 else 3
    return duration.text(round(value / 1000, digits))


# --- the journal ------------------------------------------------------------------------------------------------------

_LEVEL = {
    Outcome.FAILED: "warning",
    Outcome.DEAD: "error",
    Outcome.CRASHED: "error",
    Outcome.REFUSED: "warning",
    Outcome.EXPIRED: "warning",
}
_COMPLETED = Outcome.COMPLETED


class Journal:
    """One line for each job's outcome. Not thread-safe: it belongs to the dispatcher's loop.

    Completed jobs beyond :data:`LINES_PER_SECOND` fold into one summary a queue and second; every other outcome
    always has its line, as far as the level lets it. Folding costs well under two microseconds.
    """

    __slots__ = ("_end", "_folds", "_left", "_level", "_lines", "_log", "_timer")

    def __init__(self, level: int | str | None = None, *, lines: int = LINES_PER_SECOND) -> None:
        """*level* defaults to what `configure` set; *lines* is the number of completed lines a second."""
        self._level = _Set.level if level is None else level_number(level) if isinstance(level, str) else level
        self._lines = self._left = lines
        self._end = 0.0
        self._folds: dict[str, list[float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._log: Any = structlog.get_logger()

    def job(
        self,
        outcome: Outcome,
        queue: str,
        id: str,  # noqa: A002 - the word everywhere else
        attempt: int,
        seconds: float,
        *,
        reason: str = "",
        traceback: str = "",
        next_in: float | None = None,
    ) -> None:
        """Write that a job ended as *outcome* after *seconds*; *next_in* is in seconds."""
        if outcome is _COMPLETED:
            if self._level > 20:
                return
            now = time.monotonic()
            if now >= self._end:
                self.flush()
                self._end, self._left = now + 1.0, self._lines
            if self._left <= 0:
                fold = self._folds.get(queue)
                if fold is None:
                    self._fold(queue, seconds)
                    return
                fold[0] += 1
                fold[1] += seconds
                fold[2] = max(fold[2], seconds)
                return
            self._left -= 1
        name = _LEVEL.get(outcome, "info")
        if self._level > LEVELS[name]:
            return
        fields: dict[str, Any] = {
            "outcome": outcome.value,
            "queue": queue,
            "id": id,
            "attempt": attempt,
            "duration_ms": round(seconds * 1000, 3),
        }
        if reason:
            fields["reason"] = reason
        if next_in is not None:
            fields["next_in"] = round(next_in, 3)
        if traceback:
            fields["traceback"] = traceback
        getattr(self._log, name)("job", **fields)

    def _fold(self, queue: str, seconds: float) -> None:
        self._folds[queue] = [1, seconds, seconds]
        if self._timer is None:
            # so that the summary of a burst's last second does not wait for the next job
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._timer = loop.call_later(max(0.0, self._end - time.monotonic()), self.flush)

    def flush(self) -> None:
        """Write the summaries of what was folded so far. Called by itself each second, and by the worker at its end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._folds:
            return
        folds, self._folds = self._folds, {}
        for queue, (count, total, longest) in folds.items():
            self._log.info(
                "jobs",
                outcome=_COMPLETED.value,
                queue=queue,
                count=int(count),
                mean_ms=round(total / count * 1000, 3),
                max_ms=round(longest * 1000, 3),
            )
