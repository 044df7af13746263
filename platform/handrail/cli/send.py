"""``platform send``: messages from a shell, one or by the million. It waits until the broker has them."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import sys
import time
from collections.abc import Iterator
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
    queue_of,
    say,
    seconds_of,
    settings_of,
    shown,
)
from handrail.config.model import QueueSettings

#: Messages that are handed over and waited for together.
BATCH = 1000
#: Ids that a terminal gets; a pipe or a file gets them all.
IDS_SHOWN = 20


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
    ids = _send_all(queue, source, options, count, settings.send_timeout)
    if as_json:
        _print_json_ids(queue, ids)
    elif len(ids) > IDS_SHOWN and sys.stdout.isatty():
        print(f"sent {len(ids):,} messages to {queue}: {ids[0]} … {ids[-1]}")
    else:
        sys.stdout.writelines(f"{each}\n" for each in ids)


def _print_json_ids(queue: str, ids: list[str]) -> None:
    sys.stdout.write(json.dumps([{"queue": queue, "id": each} for each in ids], indent=2) + "\n")


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
        if self._path is not None and self.many:
            # all of a file is checked before the first message leaves; a stream cannot be
            for _ in self:
                pass

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Each message, and the bytes read for it."""
        if self._path is not None:
            with self._path.open("rb") as file:
                yield from self._read(file, shown(self._path))
        elif self._stdin:
            if sys.stdin.isatty():
                say("type one JSON message a line; Ctrl-D ends")
            yield from self._read(sys.stdin.buffer, "stdin")
        else:
            yield self._argument_value(), 0

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

    def _read(self, file: BinaryIO, name: str) -> Iterator[tuple[Any, int]]:
        if self._raw:
            data = file.read()
            yield data, len(data)
            return
        for number, line in enumerate(file, 1):
            text = self._decode(line, f"{name}:{number}")
            if not self._text and not text.strip():
                continue
            if self._text:
                yield self._as_text(text.rstrip("\r\n")), len(line)
                continue
            try:
                yield parse(text.rstrip("\r\n")), len(line)
            except IncompleteError as error:
                # one message written over several lines, as people and tools write files
                if number == 1 and (whole := self._whole(text, file, name)) is not None:
                    yield whole
                    return
                raise UsageError(f"{name}:{number}:{error.column}: not JSON: {error}") from None
            except BadJsonError as error:
                raise UsageError(f"{name}:{number}:{error.column}: not JSON: {error}") from None

    def _whole(self, first: str, file: BinaryIO, name: str) -> tuple[Any, int] | None:
        rest = file.read()
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
        end = error.pos >= len(text.rstrip()) or (error.msg.startswith("Unterminated") and "\n" not in text)
        kind = IncompleteError if end else BadJsonError
        raise kind(f"{error.msg[:1].lower()}{error.msg[1:]} {where}", error.lineno, error.colno) from None
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
    if stripped[0] not in '{["-0123456789':
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


def _send_all(queue: str, source: Source, options: dict[str, Any], count: int, timeout: float) -> list[str]:
    from handrail import context  # noqa: PLC0415 - it opens a publisher

    if not source.many and count == 1:
        message = next(iter(source))[0]
        receipt = context.queues.send_to_queue(queue, message, **options)
        receipt.wait(timeout + 5)
        return [receipt.id]
    ids: list[str] = []
    batch: list[Any] = []
    bytes_read = 0

    def leave() -> None:
        nonlocal bytes_read
        receipt = context.queues.send_bulk(queue, batch, **options)
        batch.clear()
        try:
            receipt.wait(timeout + 5)
        finally:
            ids.extend(each for at, each in enumerate(receipt.ids) if receipt.done and at not in receipt.errors)

    with ExitStack() as stack:
        progress = _progress(stack, queue, source.size if source.many else None, count)
        try:
            for message, size in source:
                bytes_read += size
                for _ in range(count):
                    batch.append(message)
                    if len(batch) >= BATCH:
                        leave()
                        progress(len(ids), bytes_read)
            if batch:
                leave()
            progress(len(ids), bytes_read)
        except (errors.HandrailError, KeyboardInterrupt) as error:
            if ids:
                say(f"{len(ids):,} messages were sent to {queue} before this; the last id is {ids[-1]}")
            if isinstance(error, KeyboardInterrupt):
                raise
            raise
    if not ids:
        raise FailedError("there was no message to send")
    return ids


def _progress(stack: ExitStack, queue: str, size: int | None, count: int) -> Any:
    """A function that shows how far it is: a bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        return lambda _sent, _read: None
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
