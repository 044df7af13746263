"""Handler references to files and functions. It reads handler files as syntax trees and never imports them."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from handrail.config.model import HandlerRef
from handrail.config.words import Filled, listed, nearest, quoted

#: The function of a reference that names a file alone.
DEFAULT_FUNCTION = "handler"

#: What a function is called with: a handler with a message and perhaps a callback, middleware with a job and the next call.
Use = Literal["handler", "middleware"]

_PART = re.compile(r"[A-Za-z0-9_-]+")
_FILES_SHOWN = 6


class ReferenceProblemError(Exception):
    """What is wrong with a reference, in one line without its place."""


class _Reading(NamedTuple):
    file: PurePosixPath
    function: str


class References:
    """The handler files of one project."""

    def __init__(self, root: Path, *, check: bool) -> None:
        self._folder = root / "handlers"
        self._check = check
        self._modules: dict[PurePosixPath, _Module | ReferenceProblemError] = {}
        self._names: dict[Path, frozenset[str]] = {}

    def find(self, text: str, use: Use = "handler") -> HandlerRef:
        """What *text* refers to. Raises :class:`ReferenceProblemError`.

        Without checking, a file that is not there is no problem: an application that only sends may not have the handlers.
        """
        readings = _readings(text)
        there = [reading for reading in readings if self._exists(reading.file)]
        for reading in there:
            self._inside(reading.file, text)
        if not there:
            if self._check:
                raise ReferenceProblemError(self._missing(text, readings))
            chosen = readings[0]
        else:
            chosen = self._choose(there)
            if self._check:
                self._fits(chosen, text, use)
        return HandlerRef(text=str(text), file=str(chosen.file), function=chosen.function)

    def _choose(self, there: list[_Reading]) -> _Reading:
        """``mail.send`` where both mail.py and mail/send.py exist is the first that has the function."""
        if len(there) > 1:
            for reading in there:
                module = self._module(reading.file)
                if isinstance(module, _Module) and module.may_have(reading.function):
                    return reading
        return there[0]

    def _exists(self, file: PurePosixPath) -> bool:
        # looked up name by name, for a file system that ignores case would find what another machine will not
        folder = self._folder
        for name in file.parts:
            if folder not in self._names:
                try:
                    self._names[folder] = frozenset(entry.name for entry in folder.iterdir())
                except OSError:
                    self._names[folder] = frozenset()
            if name not in self._names[folder]:
                return False
            folder /= name
        return folder.is_file()

    def _inside(self, file: PurePosixPath, text: str) -> None:
        if not (self._folder / file).resolve().is_relative_to(self._folder.resolve()):
            raise ReferenceProblemError(
                f"{quoted(text)} is a symbolic link that leaves handlers/; put the file itself there, or import from it"
            )

    def _missing(self, text: str, readings: list[_Reading]) -> str:
        if isinstance(text, Filled):
            return f"{quoted(text)} names no file in handlers/; check what the variable holds"
        if not self._folder.is_dir():
            return f"handler {quoted(text)}: there is no folder handlers/ beside this file; make it, and {readings[0].file} in it"
        files = sorted(self._files())
        # of what the reference can mean, the one whose folder is there
        wanted = max(
            (reading.file for reading in readings if reading.file.name != "__init__.py"),
            key=lambda file: ((self._folder / file.parent).is_dir(), len(file.parts)),
        )
        said = f"handler {quoted(text)}: there is no file handlers/{wanted}"
        if not files:
            return f"{said}; handlers/ holds no handler files yet"
        bare = re.sub(r"^handlers[./]", "", text)
        bare = re.sub(r"\.py$", "", bare).replace(":", ".").removesuffix("()")
        if bare != text:
            try:
                References(self._folder.parent, check=True).find(bare)
            except ReferenceProblemError:
                pass
            else:
                return f"{said}; write {quoted(bare)}"
        if close := self._nearest(readings, files):
            return f"{said}; did you mean {quoted(close)}?"
        shown = [str(file.with_suffix("")) for file in files[:_FILES_SHOWN]]
        more = f" and {len(files) - _FILES_SHOWN} more" if len(files) > _FILES_SHOWN else ""
        return f"{said}; there is {', '.join(shown)}{more}"

    def _nearest(self, readings: list[_Reading], files: list[PurePosixPath]) -> str | None:
        by_name = {str(file.with_suffix("")): file for file in files}
        for reading in readings:
            if near := nearest(str(reading.file.with_suffix("")), by_name):
                module = self._module(by_name[near])
                if reading.function == DEFAULT_FUNCTION:
                    return near
                if isinstance(module, _Module) and (function := module.nearest(reading.function)):
                    return f"{near}.{function}"
        # the folder was left out, or another was meant
        for reading in readings:
            for name, file in by_name.items():
                if file.name == reading.file.name:
                    return name if reading.function == DEFAULT_FUNCTION else f"{name}.{reading.function}"
        return None

    def _files(self) -> Iterator[PurePosixPath]:
        for folder, folders, names in os.walk(self._folder):
            folders[:] = sorted(name for name in folders if _PART.fullmatch(name) and name != "__pycache__")
            for name in names:
                if name.endswith(".py") and not name.startswith("_"):
                    yield PurePosixPath(Path(folder, name).relative_to(self._folder))

    def _module(self, file: PurePosixPath) -> _Module | ReferenceProblemError:
        if file not in self._modules:
            try:
                self._modules[file] = _Module(self._folder / file, file)
            except ReferenceProblemError as error:
                self._modules[file] = error
        return self._modules[file]

    def _fits(self, reading: _Reading, text: str, use: Use) -> None:
        module = self._module(reading.file)
        if isinstance(module, ReferenceProblemError):
            raise module
        if not module.may_have(reading.function):
            raise ReferenceProblemError(module.without(reading.function, text))
        if said := module.unfit(reading.function, use):
            raise ReferenceProblemError(said)


def _readings(text: str) -> list[_Reading]:
    """What *text* can mean, the likeliest first: ``a.b`` is function b of a.py, or handler of a/b.py."""
    shown = quoted(text)
    if text.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", text):
        raise ReferenceProblemError(
            f"{shown} is an absolute path; a handler is named by its file in handlers/, such as 'mail'"
        )
    parts = re.split(r"[/\\]", text)
    if ".." in parts or any(not part for part in parts) or "." in parts:
        what = "leaves handlers/" if ".." in parts else "is no path in handlers/"
        raise ReferenceProblemError(f"{shown} {what}; a handler is named by its file there, such as 'mail'")
    *folders, tail = parts
    names = tail.split(".")
    if "\\" in text:
        raise ReferenceProblemError(f"{shown} is written with '\\'; write it with '/'")
    if not all(_PART.fullmatch(part) for part in folders) or not all(_PART.fullmatch(name) for name in names):
        if not isinstance(text, Filled) and (mended := _mended(text)):
            raise ReferenceProblemError(f"{shown} is no handler reference; write {quoted(mended)}")
        raise ReferenceProblemError(
            f"{shown} is no handler reference; it is file, file.function or folder/file, of letters, digits, '-' and '_'"
        )
    found: list[_Reading] = []
    if len(names) > 1 and names[-1].isidentifier():
        found += _in_file(PurePosixPath(*folders, *names[:-1]), names[-1])
    found += _in_file(PurePosixPath(*folders, *names), DEFAULT_FUNCTION)
    return found


def _in_file(stem: PurePosixPath, function: str) -> list[_Reading]:
    return [_Reading(stem.with_name(f"{stem.name}.py"), function), _Reading(stem / "__init__.py", function)]


def _mended(text: str) -> str | None:
    """``mail:send`` and ``mail.send()`` as we write them."""
    mended = text.strip().removesuffix("()").replace(":", ".").replace(" ", "")
    return mended if re.fullmatch(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*", mended) else None


class _Module:
    """What a handler file binds at its top level, so far as can be told without running it."""

    def __init__(self, path: Path, file: PurePosixPath) -> None:
        self.name = f"handlers/{file}"
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError as error:
            raise ReferenceProblemError(f"{self.name}{_at_line(error.lineno)}: {_syntax(error)}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise ReferenceProblemError(
                f"{self.name} is not Python: {str(error) or 'it is nested too deeply'}"
            ) from None
        except OSError as error:
            raise ReferenceProblemError(f"{self.name} cannot be read: {error.strerror}") from None
        self._bound: dict[str, list[ast.AST | None]] = {}
        #: It may bind names that cannot be seen: ``from x import *``, ``globals()[…]``, ``__getattr__``.
        self._open = False
        for statement in tree.body:
            self._statement(statement)
        self._open = self._open or "__getattr__" in self._bound

    def may_have(self, name: str) -> bool:
        return self._open or name in self._bound

    def nearest(self, name: str) -> str | None:
        return name if self.may_have(name) else nearest(name, self.functions())

    def functions(self) -> list[str]:
        """Names of the functions that are meant for others, in their order."""
        return [
            name for name, nodes in self._bound.items() if any(map(_is_function, nodes)) and not name.startswith("_")
        ]

    def without(self, function: str, text: str) -> str:
        said = f"{self.name} has no function {quoted(function)}"
        there = self.functions()
        if function == "py" and DEFAULT_FUNCTION in there:
            return f"{said}; leave out '.py'"
        if isinstance(text, Filled):
            return f"{quoted(text)}: the file has no such function; check what the variable holds"
        if not there:
            return f"{said} and no other; write `def {function}(message, callback):` in it"
        near = nearest(function, there)
        stem = re.sub(r"(/__init__)?\.py$", "", self.name.removeprefix("handlers/"))
        if near is not None and function != DEFAULT_FUNCTION:
            return f"{said}; did you mean {quoted(f'{stem}.{near}')}?"
        if len(there) == 1:
            return f"{said}; write {quoted(f'{stem}.{there[0]}')} for the one that is there"
        shown = there[:_FILES_SHOWN] + ([f"{len(there) - _FILES_SHOWN} more"] if len(there) > _FILES_SHOWN else [])
        return f"{said}; it has {listed(shown, 'and')}: write {quoted(f'{stem}.{there[0]}')} for the first"

    def unfit(self, name: str, use: Use) -> str | None:
        """Why what *name* is bound to cannot be called as *use* needs, or None when it can or cannot be told."""
        nodes = self._bound.get(name, [])
        if not nodes:
            return None
        node = nodes[-1]
        shown = f"{name} in {self.name}, line {getattr(node, 'lineno', 1)},"
        if len(nodes) == 1 and isinstance(
            node, ast.Constant | ast.List | ast.Dict | ast.Tuple | ast.Set | ast.JoinedStr
        ):
            return f"{shown} is not a function; {_should_be(name, use)}"
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not all(
            _is_function(each) for each in nodes
        ):
            return None
        if node.decorator_list:
            # what a decorator returns cannot be told without running it
            return None
        return _parameters(node, shown, use)

    def _bind(self, name: str, node: ast.AST | None = None) -> None:
        self._bound.setdefault(name, []).append(node)

    def _statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                self._bind(name, statement)
                for inner in ast.walk(statement):
                    if isinstance(inner, ast.Global):
                        for each in inner.names:
                            self._bind(each)
                return
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    if alias.name == "*":
                        self._open = True
                    else:
                        self._bind(alias.asname or alias.name.partition(".")[0])
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._bind(name, value)
            case ast.AnnAssign(value=None):
                return
        for child in _own(statement):
            match child:
                case ast.Name(id=name, ctx=ast.Store()):
                    if not isinstance(statement, ast.Assign) or [child] != statement.targets:
                        self._bind(name)
                case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                    self._bind(name)
                case ast.Name(id="globals" | "exec" | "vars" | "locals" | "setattr" | "__import__"):
                    self._open = True
                case ast.stmt():
                    self._statement(child)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below *node* that run in its own scope; a statement is given but not entered."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.stmt | ast.Lambda | ast.GeneratorExp | ast.ListComp | ast.SetComp | ast.DictComp):
            yield from _own(child)


def _is_function(node: ast.AST | None) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _should_be(name: str, use: Use) -> str:
    if use == "middleware":
        return f"write `async def {name}(job, call_next):`"
    return f"write `def {name}(message, callback):` or `def {name}(message):`"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, shown: str, use: Use) -> str | None:
    taken = node.args
    positional = [*taken.posonlyargs, *taken.args]
    needed = len(positional) - len(taken.defaults)
    keyword = [arg.arg for arg, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default is None]
    if keyword:
        names = listed([quoted(name) for name in keyword], "and")
        return f"{shown} needs {names} by keyword, which nobody gives; {_should_be(node.name, use)}"
    room = 99 if taken.vararg else len(positional)
    if use == "handler" and any(isinstance(child, ast.Yield | ast.YieldFrom) for child in _body(node)):
        return f"{shown} has a yield, so calling it runs nothing; {_should_be(node.name, use)}"
    fits = (needed <= 2 and room >= 1) if use == "handler" else needed <= 2 <= room
    if fits:
        return None
    count = "no parameters" if not positional else f"{len(positional)} parameter{'s' if len(positional) > 1 else ''}"
    names = f" ({', '.join(arg.arg for arg in positional)})" if positional else ""
    extra = "; a function outside a class has no self" if positional and positional[0].arg == "self" else ""
    return f"{shown} takes {count}{names}{extra}; {_should_be(node.name, use)}"


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    for statement in node.body:
        pending: list[ast.AST] = [statement]
        while pending:
            inner = pending.pop()
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                continue
            yield inner
            pending += ast.iter_child_nodes(inner)


def _at_line(line: int | None) -> str:
    return f", line {line}" if line else ""


def _syntax(error: SyntaxError) -> str:
    return f"{(error.msg or 'invalid syntax').partition(chr(10))[0]}; mend the file"
