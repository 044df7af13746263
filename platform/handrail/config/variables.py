"""Fills ``${NAME}``, ``${NAME:-default}`` and ``${file:path}`` into texts. It never shows what it filled in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from handrail.config.nodes import Place, Problem
from handrail.config.words import BAD, Bad, Filled, quoted

#: The largest file that ``${file:…}`` reads, in bytes: it is meant for passwords and tokens.
LARGEST_FILE = 65_536

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_START = re.compile(r"\$?\$\{")


class Variables:
    """The variables of one loading of one file."""

    def __init__(self, root: Path, problems: list[Problem], environ: Mapping[str, str] | None = None) -> None:
        self._root = root
        self._problems = problems
        self._environ = os.environ if environ is None else environ

    def fill(self, text: str, in_quotes: bool, place: Place) -> str | Bad:
        """*text* with its variables filled in: a :class:`Filled` when there were any. What cannot be is said at *place*."""
        if "${" not in text:
            return text
        try:
            parts = self._parts(text)
        except _BadError as bad:
            self._problems.append(Problem(place, bad.text))
            return BAD
        if not any(variable for _, variable in parts):
            return "".join(part for part, _ in parts)
        filled = Filled("".join(part for part, _ in parts))
        filled.source = text
        filled.whole = len(parts) == 1
        filled.quoted = in_quotes
        return filled

    def _parts(self, text: str) -> list[tuple[str, bool]]:
        """*text* in pieces, each with whether it came from a variable."""
        parts: list[tuple[str, bool]] = []
        at = 0
        while found := _START.search(text, at):
            if found.start() > at:
                parts.append((text[at : found.start()], False))
            if found[0] == "$${":
                parts.append(("${", False))
                at = found.end()
                continue
            end = _closing(text, found.end())
            parts.append((self._value(text[found.end() : end]), True))
            at = end + 1
        if at < len(text):
            parts.append((text[at:], False))
        return parts

    def _value(self, inside: str) -> str:
        if inside.startswith("file:"):
            return self._file(inside.removeprefix("file:").strip())
        name, has_default, default = inside.partition(":-")
        if not _NAME.fullmatch(name):
            raise _BadError(
                f"{quoted('${' + inside + '}')} is not understood; write ${{NAME}}, ${{NAME:-default}} or ${{file:path}}"
            )
        value = self._environ.get(name, "")
        if has_default:
            return value or "".join(part for part, _ in self._parts(default))
        if name not in self._environ:
            raise _BadError(f"the variable {name} is not set; set it, or give it a default: ${{{name}:-…}}")
        return value

    def _file(self, written: str) -> str:
        path = self._root / written
        name = quoted(written)
        try:
            if not written or path.is_dir():
                raise _BadError(
                    "${file:…} must name a file" if not written else f"the file {name} is a folder; name a file in it"
                )
            with path.open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
            text = data.decode()
        except FileNotFoundError:
            raise _BadError(
                f"there is no file {name}; a path in ${{file:…}} counts from the folder of this file"
            ) from None
        except UnicodeDecodeError:
            raise _BadError(f"the file {name} is not UTF-8 text") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the path cannot be used"
            raise _BadError(f"the file {name} cannot be read: {reason}") from None
        if len(data) > LARGEST_FILE:
            raise _BadError(f"the file {name} is larger than {LARGEST_FILE:,} bytes, too large for a setting")
        return text.removesuffix("\n").removesuffix("\r")


class _BadError(Exception):
    def __init__(self, text: str) -> None:
        self.text = text


def _closing(text: str, start: int) -> int:
    """Where the brace that was opened before *start* is closed; a default may hold variables of its own."""
    depth = 1
    for at in range(start, len(text)):
        if text.startswith("${", at):
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
    raise _BadError("a '${' is never closed; add '}', or write $${ for the two characters themselves")
