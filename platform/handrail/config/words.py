"""How values and places of queues.yaml are put into words. It never shows what came from a variable or a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from handrail.adapter import masked

Path = tuple[str | int, ...]


class Filled(str):
    """A text in which variables were filled in: perhaps a secret. Only :attr:`source` may be shown."""

    __slots__ = ("quoted", "source", "whole")

    #: The text as it stands in the file: ``${PASSWORD}``.
    source: str
    #: Whether it is nothing but one variable, so that it may stand for a number.
    whole: bool
    #: Whether it stands in quotes.
    quoted: bool


class Blank:
    """The value of a key after whose colon nothing is written."""


class Bad:
    """A value whose fault has been told already: nothing more is to be said of it."""


BLANK = Blank()
BAD = Bad()


#: What :func:`handrail.adapter.masked` does not know: secrets in a query, and credentials without a scheme.
_SECRETS = re.compile(r"((?:password|passwd|secret|token|key)=|^[^\s:/@]*:(?=[^\s/@]*@))(?:[^&\s@]+)", re.IGNORECASE)


def quoted(text: str) -> str:
    """*text* for an error line: what was written, in quotes, on one line, short, without passwords."""
    if isinstance(text, Filled):
        # a default is as likely to hold a password as the variable itself
        text = re.sub(r":-[^}]*", ":-…", text.source)
    if "://" in text:
        text = masked(text)
    text = _SECRETS.sub(r"\1***", text)
    if len(text) > 60:
        text = text[:57] + "…"
    shown = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return f"'{shown}'"


def found(value: object) -> str:
    """What *value* is, to stand after ``not``: ``the text 'many'``, ``a list``."""
    match value:
        case Filled():
            return f"the value of {quoted(value)[1:-1]}"
        case str():
            return f"the text {quoted(value)}" if value else "an empty text"
        case bool():
            return "true" if value else "false"
        case int() | float():
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            return f"the number {shown if len(shown) <= 40 else shown[:37] + '…'}"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case None:
            return "null"
        case _:
            return "nothing"


def nearest(word: str, among: Iterable[str]) -> str | None:
    """The one of *among* that *word* was most likely meant to be, or None."""
    folded = {name.casefold(): name for name in among}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def listed(words: Iterable[str], last: str = "or") -> str:
    """``a, b or c``."""
    *most, final = words
    return f"{', '.join(most)} {last} {final}" if most else final


def subject(path: Path) -> str:
    """What stands at *path*, as users call it: ``'backoff.delay' of queue 'mail'``."""
    names = [str(part) for part in path if isinstance(part, str)]
    match names:
        case ["queues", queue]:
            return f"queue {quoted(queue)}"
        case ["queues", queue, *keys]:
            return f"'{'.'.join(keys)}' of queue {quoted(queue)}"
        case ["brokers", broker]:
            return f"broker {quoted(broker)}"
        case ["brokers", broker, *keys]:
            return f"'{'.'.join(keys)}' of broker {quoted(broker)}"
        case ["defaults", *keys] if keys:
            return f"'{'.'.join(keys)}' of defaults"
        case _:
            return f"'{'.'.join(names)}'"


def scope(path: Path) -> str:
    """Where a key of the mapping at *path* stands, to follow ``unknown setting 'x'``: `` for queue 'mail'``."""
    if not path:
        return ""
    if path == ("defaults",):
        return " in defaults"
    return f" for {subject(path)}" if len(path) <= 2 else f" in {subject(path)}"
