"""What kind of callable a handler is: async or plain, one parameter or two, and the type its message is to have."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_FITS = "a handler takes (message) or (message, callback)"


class MisfitError(TypeError):
    """The callable cannot be a handler or a middleware. Its text is one line, without the place."""


class Shape(typing.NamedTuple):
    """How to call a handler."""

    #: It gives a coroutine, to be run on the loop; else it runs in a thread.
    is_async: bool
    #: It takes ``(message, callback)``, else ``(message)``.
    callback: bool
    #: What its message is to be converted to; None: nothing.
    type: Any


def of_handler(function: Any, name: str) -> Shape:
    """The shape of *function*, called *name* in messages. Raises :class:`MisfitError`."""
    _check_callable(function, name)
    positional, optional, variadic = _parameters(function, name, _FITS)
    if len(positional) > 2:
        raise MisfitError(f"{name} takes {len(positional)} parameters ({', '.join(positional)}); {_FITS}")
    if len(positional) == 2 or variadic:
        callback = True
    elif len(positional) == 1:
        # a second parameter with a default is the handler's own affair, unless it is plainly meant
        callback = bool(optional) and optional[0] == "callback"
    elif optional:
        callback = optional[1:2] == ["callback"]
    else:
        raise MisfitError(f"{name} takes no parameter; {_FITS}")
    return Shape(is_async(function), callback, message_type(function, name))


def of_middleware(function: Any, name: str) -> bool:
    """Whether the middleware *function* is async. Raises :class:`MisfitError`."""
    _check_callable(function, name)
    positional, optional, variadic = _parameters(function, name, "a middleware takes (job, call_next)")
    if not (len(positional) <= 2 <= len(positional) + len(optional) or (variadic and len(positional) <= 2)):
        raise MisfitError(f"{name} does not fit: a middleware takes (job, call_next)")
    return is_async(function)


def is_async(function: Any) -> bool:
    """Whether calling *function* gives a coroutine, by its outermost layer: that is what is called."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(_call_method(function))


def line_of(function: Any) -> tuple[str, int] | None:
    """File and line of the user's code behind *function*, where there is any."""
    inner = _innermost(function)
    code = getattr(inner, "__code__", None) or getattr(_call_method(inner), "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno)


def _check_callable(function: Any, name: str) -> None:
    if isinstance(function, type):
        raise MisfitError(f"{name} is a class; bind a function, or an instance of it: {name} = {function.__name__}()")
    if not callable(function):
        raise MisfitError(f"{name} is not a function but {_article(type(function).__name__)}; {_FITS}")
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise MisfitError(f"{name} is a generator: calling it runs nothing; remove the yield")


def _parameters(function: Any, name: str, fits: str) -> tuple[list[str], list[str], bool]:
    """Names of the positional parameters without and with a default, and whether there is a ``*args``."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise MisfitError(f"the parameters of {name} cannot be read; wrap it in a function of your own") from None
    positional: list[str] = []
    optional: list[str] = []
    variadic = False
    for parameter in signature.parameters.values():
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            (positional if parameter.default is parameter.empty else optional).append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            variadic = True
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise MisfitError(f"{name} needs the keyword argument {parameter.name}, which nobody gives it; {fits}")
    return positional, optional, variadic


def message_type(function: Any, name: str) -> Any:
    """The annotated type of the first parameter, None for none, ``Any``, ``object`` and a bare ``dict``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return None
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return None
    annotation = parameters[0].annotation
    if annotation is inspect.Parameter.empty:
        return None
    inner = _innermost(function)
    if not hasattr(inner, "__globals__"):
        inner = _call_method(inner)
    holder: Any = SimpleNamespace(__annotations__={"message": annotation})
    try:
        resolved = typing.get_type_hints(
            holder, globalns=getattr(inner, "__globals__", {}), localns={}, include_extras=True
        )["message"]
    except Exception as error:
        text = str(error) or type(error).__name__
        raise MisfitError(
            f"{name}: the annotation of its message, {annotation!r}, cannot be resolved: {text}; "
            "it must be imported at run time, not only under TYPE_CHECKING"
        ) from error
    return None if resolved in (Any, object, dict) else resolved


def type_name(type_: Any) -> str:
    """*type_* as the user wrote it, or near to it; empty for None."""
    if type_ is None:
        return ""
    return type_.__name__ if isinstance(type_, type) and not typing.get_args(type_) else str(type_)


def _call_method(instance: Any) -> Any:
    return getattr(type(instance), "__call__", None)  # noqa: B004 - the method itself is wanted, not whether there is one


def _innermost(function: Any) -> Callable[..., Any]:
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif (wrapped := getattr(function, "__wrapped__", None)) is not None:
            function = wrapped
        elif inspect.ismethod(function):
            function = function.__func__
        else:
            found: Callable[..., Any] = function
            return found


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiouAEIOU' else 'a'} {noun}"
