"""What the commands share: finding the project, opening its brokers, printing. It is no command itself."""

from __future__ import annotations

import asyncio
import base64
import difflib
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import msgspec
import typer

from handrail import adapter, config, duration, errors, message
from handrail.cli.exit_codes import ExitCode
from handrail.config.model import QueueSettings, Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="The queues.yaml to use, or its folder. Default: HANDRAIL_CONFIG, else the nearest one upward.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue of queues.yaml.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level", metavar="LEVEL", help="debug, info, warning, error or off. Default: HANDRAIL_LOG, else info."
    ),
]


class UsageError(errors.HandrailError):
    """The command line asks for something that cannot be. Exits with USAGE."""


class FailedError(errors.HandrailError):
    """The command understood and could not do it. Exits with FAILED."""


# --- the project ------------------------------------------------------------------------------------------------------


def locate(path: Path | None) -> Path:
    """The queues.yaml to use. It becomes HANDRAIL_CONFIG of this process, so that all its parts use the same."""
    if path is None:
        found = config.find()
    elif path.is_dir():
        found = path / "queues.yaml"
    else:
        found = path
    if not found.is_file():
        raise errors.NoProjectError(f"there is no {found}; write one, or make a project with: platform new DIR")
    os.environ["HANDRAIL_CONFIG"] = str(found.resolve())
    return found


def settings_of(path: Path | None, *, check_handlers: bool = False) -> Settings:
    """The settings of the project; see `locate`."""
    return config.load(locate(path), check_handlers=check_handlers)


def queue_of(settings: Settings, name: str) -> QueueSettings:
    """The queue *name*. Raises an error that names the nearest one there is."""
    try:
        return settings.queues[name]
    except KeyError:
        raise UsageError(
            f"there is no queue {name!r} in {shown(settings.path)}{nearest(name, settings.queues)}"
        ) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or what there is, or nothing."""
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lowered, 1)
    if close:
        return f"; did you mean {lowered[close[0]]!r}?"
    if not names:
        return ""
    return f"; there is {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def shown(path: str | Path) -> str:
    """*path* relative to the working directory where that is shorter and does not climb."""
    text = os.path.relpath(path)
    return str(path) if text.startswith("..") else text


# --- brokers ----------------------------------------------------------------------------------------------------------


class Brokers:
    """The project's brokers, opened as a client when a queue of theirs is first asked for."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._open: dict[str, adapter.Adapter] = {}

    async def of(self, queue: QueueSettings) -> adapter.Adapter:
        """The open adapter that holds *queue*."""
        name = queue.broker
        if name not in self._open:
            made = adapter.load(self._settings.brokers[name])
            self._stack.push_async_callback(made.close)
            await self.answer(made, made.open("client"))
            specs = [each.spec for each in self._settings.queues.values() if each.broker == name]
            await self.answer(made, made.declare(specs))
            self._open[name] = made
        return self._open[name]

    async def answer(self, made: adapter.Adapter, call: Coroutine[Any, Any, T]) -> T:
        """What *call* on *made* gives, or an error that says what keeps the broker from answering."""
        try:
            async with asyncio.timeout(self._settings.send_timeout):
                return await call
        except TimeoutError:
            wait = duration.text(self._settings.send_timeout)
            raise errors.BrokerError(
                f"{made.name} at {made.place} did not answer within {wait}: {made.health().detail}"
            ) from None


@asynccontextmanager
async def brokers(settings: Settings) -> AsyncIterator[Brokers]:
    """The project's brokers for as long as the block runs."""
    async with AsyncExitStack() as stack:
        yield Brokers(settings, stack)


def broker_place(settings: Settings, name: str) -> str:
    """Where the messages of broker *name* lie, without asking it."""
    return adapter.load(settings.brokers[name]).place


# --- input ------------------------------------------------------------------------------------------------------------


def seconds_of(option: str, text: str | None) -> float | None:
    """The value of a duration *option* in seconds."""
    if text is None:
        return None
    try:
        # on a command line a bare number can only be seconds
        return duration.seconds(float(text)) if text.replace(".", "", 1).isdigit() else duration.seconds(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def confirm(question: str, *, yes: bool) -> None:
    """Go on only when the user says so. Without a terminal nobody can be asked, so `--yes` is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Say --yes, since nobody can be asked here.")
    try:
        agreed = typer.confirm(question, default=False, err=True)
    except typer.Abort:
        say("")  # Ctrl-C and Ctrl-D leave the cursor behind the question
        agreed = False
    if not agreed:
        raise FailedError("nothing was done")


# --- output -----------------------------------------------------------------------------------------------------------


def console() -> Console:
    """Rich on stdout."""
    from rich.console import Console  # noqa: PLC0415 - most commands print plain lines and start faster without it

    # in a file or a pipe a table must keep its words whole, whatever COLUMNS of nobody's terminal says
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=False)


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table in the one style that all commands use."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    numbers = set(right)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def print_json(value: Any) -> None:
    """*value* on stdout, indented."""
    data = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    sys.stdout.write(data.decode("utf-8", "backslashreplace") + "\n")
    sys.stdout.flush()


def forget_stdout() -> None:
    """Print nothing more: its reader has gone, and the interpreter would complain when it flushes stdout at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def say(text: str) -> None:
    """A line for people on stderr, so that stdout holds only what was asked for."""
    print(text, file=sys.stderr)


def fail(text: str, code: ExitCode) -> NoReturn:
    """End the command with one line."""
    say(f"platform: {text}")
    raise typer.Exit(code)


def preview(body: bytes, limit: int = 60) -> str:
    """The start of a body on one line."""
    text = body[: limit * 4].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit and len(body) <= limit * 4 else f"{line[: limit - 1]}…"


def payload(found: message.Message) -> Any:
    """The body as JSON output shows it: decoded JSON, else text, else ``{"base64": …}``."""
    if found.content_type == message.JSON:
        try:
            return msgspec.json.decode(found.body)
        except ValueError:
            pass  # what a foreign sender called JSON is then shown as what it is
    try:
        return found.body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(found.body).decode()}


def record(found: message.Message) -> dict[str, Any]:
    """A message as JSON output shows it; times are Unix seconds."""
    fields: dict[str, Any] = {
        "id": found.id,
        "queue": found.queue,
        "message": payload(found),
        "content_type": found.content_type,
        "priority": found.priority,
        "key": found.key,
        "headers": {
            key: value if not isinstance(value, bytes) else value.decode("utf-8", "backslashreplace")
            for key, value in (found.headers or {}).items()
        },
        "sent_at": found.sent_at or None,
        "due": found.due,
        "attempts": found.attempts,
        "starts": found.starts,
        "crashes": found.crashes,
    }
    if found.fault is not None:
        fields |= {
            "reason": found.fault.reason,
            "traceback": found.fault.traceback,
            "dead_at": found.fault.at or None,
        }
    return fields


def ago(at: float | None) -> str:
    """A Unix time as people say it: ``12s ago``, ``in 5m``."""
    if not at:
        return "–"
    gap = time.time() - at
    size = abs(gap)
    rounded = round(size) if size < 3600 else round(size / 60) * 60 if size < 86400 else round(size / 3600) * 3600
    if not rounded:
        return "now"
    return f"{duration.text(rounded)} ago" if gap > 0 else f"in {duration.text(rounded)}"
