"""Errors as text for people: the user's frames first, handrail's own left out. It never raises, whatever the error."""

from __future__ import annotations

import linecache
import os
import traceback
from pathlib import Path

from handrail.outcome import clip

_OURS = str(Path(__file__).resolve().parent.parent) + os.sep
#: Lines shown around the one that failed.
_AROUND = 2


def text_of(error: BaseException) -> str:
    """``str(error)``, clipped; or why there is none."""
    try:
        return clip(str(error))
    except BaseException as another:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"(its text cannot be had: __str__ raised {type(another).__name__})"


def name_of(error: BaseException) -> str:
    return clip(type(error).__name__, 256)


def one_line(error: BaseException) -> str:
    """Class and text in one line: ``ValueError: no such user``."""
    text = " ".join(text_of(error).split())
    return f"{name_of(error)}: {text}" if text else name_of(error)


def users(filename: str, root: str) -> bool:
    """Whether *filename* is the project's own code, rather than handrail's, a library's or the interpreter's."""
    if filename.startswith(_OURS) or not filename.startswith(root.rstrip(os.sep) + os.sep):
        return False
    return "site-packages" not in filename and "dist-packages" not in filename


def render(error: BaseException, root: str) -> str:
    """The traceback of *error* from the user's first frame on, clipped; empty when it was never raised."""
    if error.__traceback__ is None and not isinstance(error, BaseExceptionGroup):
        return ""
    try:
        found = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        _trim(found, root)
        return clip("".join(found.format()))
    except BaseException as another:  # noqa: BLE001 - as in text_of; a traceback less is no reason to lose an outcome
        return clip(f"{one_line(error)}\n(its traceback cannot be had: {name_of(another)})\n")


def _trim(found: traceback.TracebackException, root: str) -> None:
    todo = [found]
    while todo:
        one = todo.pop()
        frames = [frame for frame in one.stack if not frame.filename.startswith((_OURS, "<frozen importlib"))]
        first = next((at for at, frame in enumerate(frames) if users(frame.filename, root)), 0)
        one.stack = traceback.StackSummary.from_list(frames[first:])
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        todo += one.exceptions or []


def block(error: BaseException, root: str) -> str:
    """*error*, met while loading, as a block: ``file:line: what`` and the lines around, then how it got there."""
    places = [(file, line) for file, line in _places(error) if users(file, root)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 1))
        what = f"{name_of(error)}: {error.msg}"
    else:
        what = one_line(error)
    if not places:
        return clip(f"{what}\n{render(error, root)}".rstrip())
    file, line = places[-1]
    lines = [f"{shown(file, root)}:{line}: {what}"]
    linecache.checkcache(file)
    for number in range(max(1, line - _AROUND), line + _AROUND + 1):
        source = linecache.getline(file, number)
        if source or number == line:
            lines.append(f"  {'>' if number == line else ' '} {number:>4} | {source.rstrip()}".rstrip())
    lines += [f"    from {shown(file, root)}:{line}" for file, line in reversed(places[:-1])]
    return clip("\n".join(lines))


def _places(error: BaseException) -> list[tuple[str, int]]:
    return [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]


def shown(file: str, root: str) -> str:
    """*file* relative to the project where it lies in it."""
    return file.removeprefix(root.rstrip(os.sep) + os.sep)
