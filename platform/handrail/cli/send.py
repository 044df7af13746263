"""``platform send``: messages from a shell, one or by the million. It waits until the broker has them."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from handrail import errors
from handrail.cli.common import (
    Config,
    FailedError,
    Json,
    Queue,
    UsageError,
    forget_stdout,
    queue_of,
    say,
    seconds_of,
    settings_of,
    shown,
)
from handrail.config.model import QueueSettings

#: Messages that are handed over and waited for together, and the bytes of their source: memory stays flat.
BATCH, BATCH_BYTES = 1000, 8 << 20
#: Ids that a terminal gets; a pipe or a file gets them all.
IDS_SHOWN = 20
#: Bytes that are read of a stream at once.
_CHUNK = 1 << 16


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("send")(send)


def send(
    queue: Queue,
    message: Annotated[
        str,
        typer.Argument(
            metavar="JSON|@FILE|-",
            help="The message as JSON, a file of JSON lines (one message each), or - for lines on stdin.",
        ),
    ],
    config: Config = None,
    delay: Annotated[
        str | None, typer.Option("--delay", metavar="TIME", help="Deliver after that, like 30s or 1h30m.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="WHEN", help="Deliver then, ISO 8601: 2030-01-31T09:00.")
    ] = None,
    priority: Annotated[int | None, typer.Option("--priority", metavar="0-9", help="9 goes first, 4 is usual.")] = None,
    message_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The id; a second one with it is dropped.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="The ordering key.")] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="K=V", help="A header; may be repeated.")
    ] = None,
    attempts: Annotated[int | None, typer.Option("--attempts", metavar="N", min=1, help="Runs in all.")] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="For one run of the handler.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="Drop it when it has not started by then.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="Send it so many times.")] = 1,
    text: Annotated[bool, typer.Option("--text", help="The message is text, not JSON.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="The message is bytes that nobody looks at; @FILE is one message.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a message and wait until the broker has it; prints its id."""
    settings = settings_of(config)
    bound = queue_of(settings, queue)
    if text and raw:
        raise UsageError("--text and --raw exclude each other: text is UTF-8, raw is any bytes")
    if delay is not None and at is not None:
        raise UsageError("--delay and --at exclude each other")
    options: dict[str, Any] = {
        "delay": seconds_of("--delay", delay),
        "at": _instant(at),
        "priority": priority,
        "id": message_id,
        "key": key,
        "headers": _headers(headers),
        "attempts": attempts,
        "timeout": seconds_of("--timeout", timeout),
        "expires": seconds_of("--expires", expires),
    }
    options = {name: value for name, value in options.items() if value is not None}
    source = Source(message, bound, text=text, raw=raw)
    if message_id is not None and (count > 1 or source.many):
        raise UsageError("--id names one message; send several without it, and each gets an id of its own")
    told = Told(queue, as_json=as_json, short=sys.stdout.isatty() and not source.typed)
    try:
        _send_all(queue, source, options, count, settings.send_timeout, told)
    finally:
        told.end()


class Told:
    """The ids of what was sent, printed as they come: a million of them need no memory, and a broken bulk has its ids."""

    def __init__(self, queue: str, *, as_json: bool, short: bool) -> None:
        self._queue = queue
        self._json = as_json
        #: On a terminal a long list of ids would bury the line that matters.
        self._short = short and not as_json
        self._failed: OSError | None = None
        self._held: list[str] = []
        self.count = 0
        self.first = self.last = ""

    def add(self, ids: list[str]) -> None:
        """Print *ids*, of messages that the broker has."""
        if not ids:
            return
        if self._json:
            rows = (json.dumps({"queue": self._queue, "id": each}) for each in ids)
            self._print(("[\n" if not self.count else ",\n") + ",\n".join(f"  {row}" for row in rows))
        elif self._short:
            self._held += ids[: IDS_SHOWN + 1 - len(self._held)]
        else:
            self._print("".join(f"{each}\n" for each in ids))
        self.first, self.last = self.first or ids[0], ids[-1]
        self.count += len(ids)

    def end(self) -> None:
        """Print what is left to print. Raises what kept anything from being printed."""
        if self._json:
            self._print("\n]\n" if self.count else "[]\n")
        elif self.count > IDS_SHOWN and self._short:
            self._print(f"sent {self.count:,} messages to {self._queue}: {self.first} … {self.last}\n")
        else:
            self._print("".join(f"{each}\n" for each in self._held))
        if self._failed is not None:
            raise self._failed

    def _print(self, text: str) -> None:
        if self._failed is not None:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has had enough; the messages are still to be sent
            forget_stdout()
        except OSError as error:  # a full disk, say: told once all is sent
            self._failed = error


# --- what to send -----------------------------------------------------------------------------------------------------


class Source:
    """The messages of one command line, read as they are needed."""

    def __init__(self, argument: str, queue: QueueSettings, *, text: bool, raw: bool) -> None:
        self._argument = argument
        self._queue = queue
        self._text = text
        self._raw = raw
        self._path = Path(argument[1:]) if argument.startswith("@") else None
        if argument == "@":
            raise UsageError("@ wants a file behind it: platform send QUEUE @messages.jsonl")
        if self._path is not None and not self._path.is_file():
            raise UsageError(f"there is no file {shown(self._path)}")
        self._stdin = argument == "-"
        #: Whether there may be more than one message.
        self.many = (self._path is not None or self._stdin) and not raw
        #: Bytes to read, when that is known.
        self.size = self._path.stat().st_size if self._path is not None else None
        #: Whether people type the messages.
        self.typed = self._stdin and sys.stdin.isatty()
        #: What an error calls the message read last: ``messages.jsonl:3``; empty when it stands on the command line.
        self.place = ""
        #: Called before waiting for a stream that has nothing to read just now.
        self.waiting: Callable[[], None] = lambda: None
        if self._path is not None and self.many:
            # all of a file is checked before the first message leaves; a stream cannot be
            for _ in self:
                pass

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Each message, and the bytes read for it."""
        if self._path is not None:
            with self._path.open("rb") as file:
                yield from self._read(file, file, shown(self._path))
        elif self._stdin:
            if self.typed:
                say(f"type one {'message' if self._text else 'JSON message'} a line; Ctrl-D ends")
            yield from self._read(sys.stdin.buffer, self._lines(sys.stdin.buffer), "stdin")
        else:
            yield self._argument_value(), 0

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines of a stream. What somebody still writes to, such as `tail -f`, must not wait for a full batch."""
        rest: list[bytes] = []
        while True:
            if not select.select([file], [], [], 0)[0]:
                self.waiting()
            chunk = os.read(file.fileno(), _CHUNK)
            if not chunk:
                break
            *whole, last = chunk.split(b"\n")
            for line in whole:
                yield b"".join((*rest, line, b"\n"))
                rest.clear()
            if last:
                rest.append(last)
        if rest:
            yield b"".join(rest)

    def _argument_value(self) -> Any:
        if self._raw:
            return os.fsencode(self._argument)
        if self._text:
            return self._as_text(self._argument)
        try:
            return parse(self._argument)
        except ValueError as error:
            raise UsageError(f"the message is not JSON: {error}{quoting_hint(self._argument)}") from None

    def _as_text(self, line: str) -> Any:
        # on a queue whose handler gets text or bytes, the text is the body itself; elsewhere it is a JSON string
        return line if self._queue.content == "json" else line.encode()

    def _read(self, file: BinaryIO, lines: Iterable[bytes], name: str) -> Iterator[tuple[Any, int]]:
        if self._raw:
            self.place = name
            data = file.read()
            yield data, len(data)
            return
        lines = iter(lines)
        for number, line in enumerate(lines, 1):
            self.place = f"{name}:{number}"
            text = self._decode(line, self.place)
            if not self._text and not text.strip():
                continue
            if self._text:
                yield self._as_text(text.rstrip("\r\n")), len(line)
                continue
            try:
                yield parse(text.rstrip("\r\n")), len(line)
            except IncompleteError as error:
                # one message written over several lines, as people and tools write files
                if number == 1:
                    yield self._whole(text, lines, name)
                    return
                raise UsageError(f"{name}:{number}:{error.column}: not JSON: {error}") from None
            except BadJsonError as error:
                raise UsageError(f"{name}:{number}:{error.column}: not JSON: {error}") from None

    def _whole(self, first: str, lines: Iterator[bytes], name: str) -> tuple[Any, int]:
        rest = b"".join(lines)
        text = first + self._decode(rest, name)
        try:
            return parse(text), len(first.encode()) + len(rest)
        except BadJsonError as error:
            raise UsageError(
                f"{name}:{error.line}:{error.column}: not JSON: {error}; write one message a line"
            ) from None

    @staticmethod
    def _decode(data: bytes, place: str) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"{place}: byte {error.start + 1} is not UTF-8; send such data with --raw") from None


class BadJsonError(ValueError):
    """Text that is not JSON, with the place."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column


class IncompleteError(BadJsonError):
    """JSON that ended too early."""


def parse(text: str) -> Any:
    """*text* as JSON. Integers stay exact; NaN and Infinity are refused, for no other reader takes them."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_number)
    except json.JSONDecodeError as error:
        where = f"at column {error.colno}" if error.lineno == 1 else f"at line {error.lineno}, column {error.colno}"
        reason = error.msg.removesuffix(" at")  # of "Unterminated string starting at"
        end = error.pos >= len(text.rstrip()) or (error.msg.startswith("Unterminated") and "\n" not in text)
        kind = IncompleteError if end else BadJsonError
        raise kind(f"{reason[:1].lower()}{reason[1:]} {where}", error.lineno, error.colno) from None
    except RecursionError:
        raise BadJsonError("it is nested too deep", 1, 1) from None


def _no_constant(name: str) -> float:
    raise BadJsonError(f"{name} is not JSON; use null or a number", 1, 1)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadJsonError(f"{text} is too large for a number", 1, 1)
    return value


def quoting_hint(text: str) -> str:
    """What probably happened to *text* on its way through the shell."""
    stripped = text.strip()
    if not stripped:
        return "; it is empty"
    if stripped[0] in "{[" and "'" in stripped and '"' not in stripped:
        return """; JSON wants double quotes inside and the shell single ones around: '{"n": 1}'"""
    if stripped[0] in "{[" and '"' not in stripped and any(c.isalpha() for c in stripped):
        return """; the shell took the double quotes away: put single quotes around it all, as in '{"n": 1}'"""
    if stripped[0] == "'":
        return "; the single quotes have become part of it: use them once, around it all"
    if stripped[0] in "-0123456789":
        return ""
    if stripped[0] not in '{["':
        return f"""; for a text write '"{stripped[:20]}"' or use --text; for a file write @{stripped[:20]}"""
    return """; put single quotes around it all, as in '{"n": 1}'"""


def _headers(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--header {pair!r} is not NAME=VALUE")
        found[name.strip()] = value
    return found


def _instant(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--at {text!r} is not a time; write it like 2030-01-31T09:00 or 2030-01-31T09:00:00Z"
        ) from None
    return found if found.tzinfo else found.astimezone()  # what people type is their own clock's time


# --- sending ----------------------------------------------------------------------------------------------------------


def _send_all(queue: str, source: Source, options: dict[str, Any], count: int, timeout: float, told: Told) -> None:
    from handrail import context  # noqa: PLC0415 - it opens a publisher

    if not source.many and count == 1:
        message = next(iter(source))[0]
        receipt = context.queues.send_to_queue(queue, message, **options)
        receipt.wait(timeout + 5)
        told.add([receipt.id])
        return
    batch: list[Any] = []
    places: list[str] = []
    bytes_read = bytes_waiting = 0

    def leave() -> None:
        nonlocal bytes_waiting
        if not batch:
            return
        bytes_waiting = 0
        try:
            receipt = context.queues.send_bulk(queue, batch, **options)
        except errors.HandrailError as error:
            raise _in_its_place(error, places) from None
        finally:
            batch.clear()
            places.clear()
        try:
            receipt.wait(timeout + 5)
        finally:
            told.add([each for at, each in enumerate(receipt.ids) if receipt.done and at not in receipt.errors])
        progress(told.count, bytes_read)

    with ExitStack() as stack:
        # beside a bar nobody can type
        progress = (
            _no_progress if source.typed else _progress(stack, queue, source.size if source.many else None, count)
        )
        source.waiting = leave
        try:
            for message, size in source:
                bytes_read += size
                for _ in range(count):
                    batch.append(message)
                    places.append(source.place)
                    bytes_waiting += size
                    if len(batch) >= BATCH or bytes_waiting >= BATCH_BYTES:
                        leave()
            leave()
        except (errors.HandrailError, KeyboardInterrupt):
            if told.count:
                say(f"{told.count:,} messages were sent to {queue} before this; the last id is {told.last}")
            raise
    if not told.count:
        raise FailedError("there was no message to send")


def _in_its_place(error: errors.HandrailError, places: list[str]) -> errors.HandrailError:
    """*error* of a bulk with the line that its item came from, which is what people can look up."""
    item = re.match(r"item (\d+) of the bulk: ", str(error))
    place = places[int(item[1])] if item else ""
    return type(error)(f"{place}: {str(error)[item.end() :]}") if item and place else error


def _no_progress(_sent: int, _read: int) -> None:
    pass


def _progress(stack: ExitStack, queue: str, size: int | None, count: int) -> Any:
    """A function that shows how far it is: a bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        return _no_progress
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    bar = stack.enter_context(
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[sent]:,} sent, {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
    )
    total = size if size is not None else count if count > 1 else None
    task = bar.add_task(f"to {queue}", total=total, sent=0, rate=0.0)
    began = time.monotonic()

    def show(sent: int, read: int) -> None:
        rate = sent / max(time.monotonic() - began, 1e-6)
        bar.update(task, completed=read if size is not None else sent, sent=sent, rate=rate)

    return show
