"""How handlers and the project's own modules are imported. It runs no handler and knows no queue.

A handler file is the module ``handlers.<path>``, once, whichever way it is imported: ``import mail`` in another handler
gives ``handlers.mail`` too, as long as nothing else is called ``mail`` (so a handler file ``email.py`` harms no library).
The project's modules are always compiled from their source and never read from bytecode, whose check by time stamp runs
stale code after two saves within a second. Libraries keep their bytecode, for a host must start fast.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import machinery
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType

PACKAGE = "handlers"

#: What each project module was compiled from, by file: a digest of the source.
_compiled: dict[str, bytes] = {}


class FreshLoader(machinery.SourceFileLoader):
    """Compiles the source as it is now."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        _compiled[path] = hashlib.sha256(source).digest()
        code: CodeType = self.source_to_code(source, path)
        return code


class _Alias(Loader):
    """Gives a module that is imported under its full name."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._spec: machinery.ModuleSpec | None = None

    def create_module(self, spec: machinery.ModuleSpec) -> ModuleType:  # noqa: ARG002 - the protocol
        module = importlib.import_module(self._target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just replaced it with the alias's


class ProjectFinder(MetaPathFinder):
    """Finds the modules of one project. *first*: before the libraries, as in a process of its own; else after them."""

    def __init__(self, root: str, *, first: bool) -> None:
        self._root = root
        self._handlers = f"{root}/{PACKAGE}"
        self._first = first
        self._aliases: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol
    ) -> machinery.ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent:
            if parent in self._aliases:
                return self._alias(fullname)
            return self._within(fullname, path or ())
        if fullname == PACKAGE:
            return self._package()
        if (spec := self._within(fullname, (self._root,))) is not None:
            return spec if self._first or not self._elsewhere(fullname) else None
        if _stands(self._handlers, name) and not self._elsewhere(fullname):
            return self._alias(fullname)
        return None

    def _elsewhere(self, fullname: str) -> bool:
        """Whether the top-level module *fullname* stands on ``sys.path`` outside handlers/."""
        path = [entry for entry in sys.path if entry != self._handlers]
        return machinery.PathFinder.find_spec(fullname, path) is not None

    def _within(self, fullname: str, path: Sequence[str]) -> machinery.ModuleSpec | None:
        for entry in path:
            if not self.owns(entry):
                continue
            # a finder of its own each time: it remembers what stood in a folder, by the second
            found = machinery.FileFinder(
                entry,
                (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
                (FreshLoader, machinery.SOURCE_SUFFIXES),
            ).find_spec(fullname)
            if found is not None and found.loader is not None:
                return found
        return None

    def _package(self) -> machinery.ModuleSpec:
        spec = self._within(PACKAGE, (self._root,))
        if spec is None:  # no __init__.py, as is usual
            spec = machinery.ModuleSpec(PACKAGE, None, is_package=True)
            spec.submodule_search_locations = [self._handlers]
        return spec

    def _alias(self, fullname: str) -> machinery.ModuleSpec:
        self._aliases.add(fullname)
        return machinery.ModuleSpec(fullname, _Alias(f"{PACKAGE}.{fullname}"), origin=self._handlers)

    def owns(self, path: str) -> bool:
        """Whether *path* lies in the project and not in an environment of libraries inside it."""
        inside = path == self._root or path.startswith(self._root.rstrip(os.sep) + os.sep)
        return inside and "site-packages" not in path and "dist-packages" not in path

    def aliases(self) -> list[str]:
        """Short names under which handlers were imported."""
        return list(self._aliases)

    def changed(self) -> bool:
        """Whether a module of the project, imported by way of a finder of ours, is no longer what its file says."""
        files = (getattr(sys.modules[name], "__file__", None) or "" for name in list(sys.modules) if _fresh(name))
        return any(self.owns(file) and _stale(file) for file in files)


def _fresh(name: str) -> bool:
    """Whether the imported module *name* came by way of a finder of ours."""
    spec = getattr(sys.modules[name], "__spec__", None)
    return isinstance(getattr(spec, "loader", None), FreshLoader)


def _stands(folder: str, name: str) -> bool:
    return os.path.isfile(f"{folder}/{name}.py") or os.path.isdir(f"{folder}/{name}")  # noqa: PTH112, PTH113 - on every import


def _stale(file: str) -> bool:
    if file not in _compiled:
        return False
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest() != _compiled[file]
    except OSError:
        return True


def install(root: str, *, process_wide: bool) -> ProjectFinder:
    """Make the project at *root* importable.

    *process_wide*: as its own process has it, first on ``sys.path``, handlers/ last. Otherwise nothing of the
    process changes but one finder, in which libraries come first; modules of another project, or changed ones of this,
    are forgotten before.
    """
    finder = ProjectFinder(root, first=process_wide)
    if process_wide:
        # the processes that handlers start by spawn or forkserver inherit sys.path and not the finder
        sys.path.insert(0, root)
        sys.path.append(f"{root}/{PACKAGE}")
    else:
        package = sys.modules.get(PACKAGE)
        foreign = package is not None and f"{root}/{PACKAGE}" not in list(getattr(package, "__path__", ()))
        if foreign or finder.changed():
            _forget([name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.") or _fresh(name)])
    # before libraries are looked for and before the finder that this one follows at a reload, but after what is built
    # into the interpreter
    places = [
        index
        for index, one in enumerate(sys.meta_path)
        if one is machinery.PathFinder or isinstance(one, ProjectFinder)
    ]
    at = places[0] if places else len(sys.meta_path)
    sys.meta_path.insert(at, finder)
    importlib.invalidate_caches()
    return finder


def uninstall(finder: ProjectFinder) -> None:
    """Take *finder* away; what it imported stays under its full name, until a load finds it changed."""
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
    # a name such as `mail` means something only while this project is served
    _forget(finder.aliases())


def _forget(names: list[str]) -> None:
    for name in names:
        sys.modules.pop(name, None)


def module_name(file: str) -> str:
    """Name of the module of *file*, which is relative to ``handlers/``: ``mail.py`` is ``handlers.mail``."""
    parts = list(Path(file).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join([PACKAGE, *parts])
