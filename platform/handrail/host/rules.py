"""``errors:`` rules in the host: the classes they name, and which rule an exception meets. It settles nothing."""

from __future__ import annotations

import builtins
import importlib

from handrail.config.model import ErrorRule

Rules = tuple[type[BaseException], ...]


class UnknownExceptionError(LookupError):
    """A rule names something that is no class of exceptions. Its text is one line for people."""


def resolve(rule: ErrorRule) -> type[BaseException]:
    """The class that *rule* names. Raises :class:`UnknownExceptionError`; an error inside the imported module passes."""
    module_name, _, name = rule.when.rpartition(".")
    if not module_name:
        found = getattr(builtins, name, None)
        if found is None:
            raise UnknownExceptionError(
                f"errors: when: {rule.when} is no builtin exception; write its import path, such as httpx.{name}"
            )
        return _checked(rule, found)
    found = _import(rule, module_name)
    if not hasattr(found, name):
        raise UnknownExceptionError(f"errors: when: {rule.when}: {module_name} has no {name}")
    return _checked(rule, getattr(found, name))


def _import(rule: ErrorRule, path: str) -> object:
    """The module at *path*, or the class within a module that it names."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise  # the module is there and misses another
        outer, _, name = path.rpartition(".")
        if outer:
            holder = _import(rule, outer)
            if hasattr(holder, name):
                found: object = getattr(holder, name)
                return found
        raise UnknownExceptionError(
            f"errors: when: {rule.when} cannot be imported: there is no module {error.name}"
        ) from None


def _checked(rule: ErrorRule, found: object) -> type[BaseException]:
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    raise UnknownExceptionError(f"errors: when: {rule.when} is not a class of exceptions")


def match(rules: Rules, error: BaseException) -> int:
    """Index of the first rule that *error* meets, or -1. A group meets a rule when it is one, or when all its leaves are."""
    for index, kind in enumerate(rules):
        if _meets(kind, error):
            return index
    return -1


def _meets(kind: type[BaseException], error: BaseException) -> bool:
    if isinstance(error, kind):
        return True
    return isinstance(error, BaseExceptionGroup) and all(_meets(kind, leaf) for leaf in error.exceptions)
