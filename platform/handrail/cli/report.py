"""What a worker says of itself: what it bound, what a reload did, what is broken and where. It only forms text."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import IO, Any, cast

import structlog

from handrail import duration, logs
from handrail.cli.common import shown, table
from handrail.config.model import QueueSettings, Settings
from handrail.dispatcher.lane import concurrency
from handrail.pipe import Found

log: Any = structlog.get_logger("handrail")

#: What the end of a timeout means for each kind of handler.
_TIMEOUT = {
    "async": "cancels the task",
    "thread": "only abandons the thread",
    "process": "kills the process",
}


def timeout_text(queue: QueueSettings, kind: str) -> str:
    """What a timeout is and does: ``30s, kills the process``."""
    return "none" if queue.timeout is None else f"{duration.text(queue.timeout)}, {_TIMEOUT[kind]}"


def bound(settings: Settings, found: list[Found]) -> list[dict[str, Any]]:
    """What is bound, as JSON output and log lines show it; durations are seconds."""
    rows = []
    for each in found:
        queue = settings.queues[each.queue]
        rows.append(
            {
                "queue": each.queue,
                "handler": each.where,
                "kind": each.kind,
                "callback": each.callback,
                "type": each.type or None,
                "concurrency": concurrency(queue, each.kind),
                "attempts": queue.attempts,
                "timeout": queue.timeout,
                "at_timeout": None if queue.timeout is None else _TIMEOUT[each.kind],
                "broker": queue.broker,
            }
        )
    return rows


def bound_table(settings: Settings, found: list[Found], width: int) -> Any:
    """What is bound, for people; in a terminal too narrow for all of it, the less needed is left out, not folded."""
    for wordy, full in ((True, True), (False, True), (False, False)):
        made = _bound_table(settings, found, wordy=wordy, full=full)
        if _width(made) <= width:
            break
    return made


def _bound_table(settings: Settings, found: list[Found], *, wordy: bool, full: bool) -> Any:
    several = len({settings.queues[each.queue].broker for each in found}) > 1
    names = ["queue", "handler", "kind", *(["at once", "attempts"] if full else []), "timeout"]
    made = table(*names, *(["broker"] if several else []), right=("at once", "attempts"))
    for each in found:
        queue = settings.queues[each.queue]
        made.add_row(
            f"[bold]{each.queue}[/bold]",
            each.where + (f"  [dim]{each.type}[/dim]" if each.type and full else ""),
            each.kind,
            *([str(concurrency(queue, each.kind)), str(queue.attempts)] if full else []),
            timeout_text(queue, each.kind)
            if wordy
            else "none"
            if queue.timeout is None
            else duration.text(queue.timeout),
            *([queue.broker] if several else []),
        )
    return made


def _width(made: Any) -> int:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console(width=100_000).measure(made).maximum


def command_path() -> str:
    """How the user can call this very command: ``platform`` when the shell finds it, else its path."""
    own = Path(sys.argv[0])
    if own.name != "platform":  # started as a module
        own = Path(sys.executable).with_name("platform")
    on_path = shutil.which("platform")
    if on_path is not None and Path(on_path).absolute() == own.absolute():
        return "platform"
    return shlex.quote(shown(own.absolute()))


def send_line(settings: Settings, found: list[Found]) -> str:
    """A `platform send` for the first queue, ready to paste."""
    # a handler with an annotated type would refuse a made-up message
    first = next((each for each in found if not each.type), found[0])
    queue = settings.queues[first.queue]
    sample = """'{"n": 1}'""" if queue.content == "json" else "--text hello"
    project = Path(settings.path)
    here = next(
        (up / "queues.yaml" for up in (Path.cwd(), *Path.cwd().parents) if (up / "queues.yaml").is_file()), None
    )
    where = "" if here == project else f" --config {shlex.quote(shown(project))}"
    return f"{command_path()} send {shlex.quote(first.queue)} {sample}{where}"


def ready(settings: Settings, found: list[Found], places: dict[str, str], *, processes: int, seconds: float) -> None:
    """Say what was bound, now that it is true."""
    line = send_line(settings, found)
    if not logs.for_people():
        log.info(
            "ready",
            queues=bound(settings, found),
            brokers=places,
            data=settings.data,
            config=settings.path,
            pid=os.getpid(),
            processes=processes,
            seconds=round(seconds, 3),
            send=line,
        )
        return
    facts = [
        (f"broker {name}" if len(places) > 1 else "broker", logs.without_secrets(place))
        for name, place in places.items()
    ]
    facts += [
        ("data", shown(settings.data)),
        ("config", shown(settings.path)),
        ("pid", f"{os.getpid()}, {processes} host{'' if processes == 1 else 's'}, ready in {seconds:.1f}s"),
        ("send", line),
    ]
    width = max(len(name) for name, _ in facts)
    out = screen()
    out.print()
    out.print(bound_table(settings, found, out.width))
    out.print()
    for name, value in facts:
        out.out(f"{name:<{width}}  {value}", highlight=False)
    out.print()


def screen() -> Any:
    """Rich on the log's stream, which never raises."""
    from rich.console import Console  # noqa: PLC0415 - a worker that logs JSON has no use for it

    return Console(
        file=cast("IO[str]", logs.sink()),
        force_terminal=logs.colored(),
        no_color=not logs.colored(),
        highlight=False,
        width=max(shutil.get_terminal_size((120, 24)).columns, 60),
    )


def reloaded(files: list[str], changes: list[str], seconds: float, in_flight: str, *, mended: bool) -> None:
    """One line: which files, what they changed, how long it took, what became of the messages in flight."""
    if not logs.for_people():
        log.info(
            "reloaded", files=files, changes=changes, seconds=round(seconds, 3), in_flight=in_flight, mended=mended
        )
        return
    parts = [_files(files)] if files else []
    parts += changes
    parts += [f"{seconds:.2f}s", *([in_flight] if in_flight else [])]
    text = f"{'mended and reloaded' if mended else 'reloaded'}: {' · '.join(parts)}"
    log.info(text)


def _files(files: list[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def broken(settings: Settings, files: list[str], problems: list[str]) -> None:
    """Once, as a block: what keeps the new code from serving, with the lines around each place."""
    problems = at_the_source(problems)
    if not logs.for_people():
        log.error("not reloaded; the old code serves on", files=files, problems=problems)
        return
    blocks = []
    for problem in problems:
        blocks.append(problem.rstrip())
        # what a host found out by importing brings its lines along
        around = "" if _HAS_LINES.search(problem) else lines_around(settings.root, problem)
        if around:
            blocks.append(around)
    text = f"not reloaded{f' ({_files(files)})' if files else ''}; the old code serves on until this is mended:"
    log.error(text, traceback="\n".join(blocks))


_BY_WAY_OF_CONFIG = re.compile(r"queues\.yaml:\d+:\d+: (?P<file>\S+\.py), line (?P<line>\d+): (?P<what>.*)", re.DOTALL)


def at_the_source(problems: list[str]) -> list[str]:
    """*problems* with a broken handler file named once by its own place, not by each queue that refers to it."""
    found = []
    for problem in problems:
        match = _BY_WAY_OF_CONFIG.fullmatch(problem)
        found.append(f"{match['file']}:{match['line']}: {match['what']}" if match else problem)
    return list(dict.fromkeys(found))


_HAS_LINES = re.compile(r"^\s*>\s+\d+ \|", re.MULTILINE)
_PLACE = re.compile(
    r"(?P<file>[^\s:'\"]+\.(?:py|yaml|yml)):(?P<line>\d+)|File \"(?P<file2>[^\"]+)\", line (?P<line2>\d+)"
)


def lines_around(root: str, problem: str, context: int = 2) -> str:
    """The lines around the first place that *problem* names, the place itself marked; empty when it names none of *root*."""
    for match in _PLACE.finditer(problem):
        path = Path(root, match["file"] or match["file2"])
        number = int(match["line"] or match["line2"])
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue  # not a file of the project, or gone meanwhile: the problem's own text has to do
        if not path.resolve().is_relative_to(Path(root).resolve()) or not 1 <= number <= len(lines):
            continue
        first = max(1, number - context)
        shown_lines = lines[first - 1 : number + context]
        width = len(str(first + len(shown_lines) - 1))
        return "\n".join(
            f"  {'>' if at == number else ' '} {at:>{width}} │ {text}" for at, text in enumerate(shown_lines, first)
        )
    return ""
