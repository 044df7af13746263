"""Finds and loads what queues.yaml names: handlers, middleware, the classes of ``errors:`` rules. It calls none of them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from handrail import codec
from handrail.config.model import ErrorRule, HandlerRef, QueueSettings, Settings
from handrail.host import imports, rules, shape, tracebacks
from handrail.outcome import clip
from handrail.pipe import Found

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

#: The file of handlers/ that opens and closes what handlers share.
LIFESPAN = "_lifespan.py"


class Problem(Exception):  # noqa: N818 - it never leaves the host as an exception
    """Why something cannot be loaded: a text for people, of one line or a block."""


class Binding:
    """A queue and its loaded handler: all that a call needs to know."""

    __slots__ = (
        "callback",
        "content",
        "decode",
        "decode_bytes",
        "function",
        "is_async",
        "loop_middleware",
        "on_loop",
        "queue",
        "rules",
        "thread_middleware",
        "type",
        "where",
    )

    def __init__(
        self,
        queue: QueueSettings,
        where: str,
        function: Callable[..., Any],
        form: shape.Shape,
        *,
        loop_middleware: tuple[Callable[..., Any], ...] = (),
        thread_middleware: tuple[Callable[..., Any], ...] = (),
        matched: rules.Rules = (),
    ) -> None:
        self.queue = queue.name
        #: For people: ``handlers/mail.py:send_welcome``.
        self.where = where
        self.function = function
        self.is_async = form.is_async
        self.callback = form.callback
        self.type = form.type
        self.content = queue.content
        self.loop_middleware = loop_middleware
        self.thread_middleware = thread_middleware
        #: The call begins on the loop: the handler is async, or an async middleware stands around it.
        self.on_loop = form.is_async or bool(loop_middleware)
        self.rules = matched
        self.decode = codec.decoder(queue.content, form.type)
        #: For bytes that handrail itself sent, whatever the queue's ``content`` is.
        self.decode_bytes = codec.decoder("bytes", form.type)

    @property
    def has_middleware(self) -> bool:
        return bool(self.loop_middleware or self.thread_middleware)


class Loader:
    """Loads from one project. Every file is imported once, and what is wrong with it is told once."""

    def __init__(self, settings: Settings, *, process_wide: bool) -> None:
        self._settings = settings
        # frames and modules carry real paths
        self.root = os.path.realpath(settings.root)
        self._finder = imports.install(self.root, process_wide=process_wide)
        self._modules: dict[str, ModuleType | None] = {}
        self.problems: list[str] = []

    def close(self) -> None:
        """Make the project unimportable again, for a host that shares its process."""
        imports.uninstall(self._finder)

    def load(self, queues: list[str]) -> tuple[list[Binding], list[Found]]:
        """The handlers of *queues*, in their order. What cannot be loaded is missing, and told in ``problems``."""
        bindings, found = [], []
        for name in queues:
            try:
                binding = self._bind(self._settings.queues[name])
            except Problem as problem:
                self.tell(str(problem))
                continue
            except Exception as error:  # noqa: BLE001 - looking at the user's objects runs the user's code
                self.tell(tracebacks.block(error, self.root))
                continue
            isolated = self._settings.queues[name].isolation == "process"
            bindings.append(binding)
            found.append(
                Found(
                    queue=name,
                    where=binding.where,
                    kind="process" if isolated else "async" if binding.is_async else "thread",
                    callback=binding.callback,
                    type=shape.type_name(binding.type),
                )
            )
        return bindings, found

    def module(self, file: str) -> ModuleType:
        """The module of *file* in handlers/. Raises :class:`Problem`; of an empty text when it was told already."""
        if file in self._modules:
            known = self._modules[file]
            if known is None:
                raise Problem("")
            return known
        self._modules[file] = None
        if not os.path.isfile(f"{self.root}/handlers/{file}"):  # noqa: PTH113
            raise Problem(f"handlers/{file}: there is no such file")
        module = self._guarded(importlib.import_module, imports.module_name(file))
        self._modules[file] = module
        return module

    def has_lifespan(self) -> bool:
        return os.path.isfile(f"{self.root}/handlers/{LIFESPAN}")  # noqa: PTH113

    def place(self, function: Any, fallback: str) -> str:
        """``handlers/mail.py:12`` of the code behind *function*."""
        at = shape.line_of(function)
        if at is None or not tracebacks.users(at[0], self.root):
            return fallback
        return f"{tracebacks.shown(at[0], self.root)}:{at[1]}"

    def tell(self, text: str) -> None:
        """Add a problem, unless it is empty or told already."""
        if text and (text := clip(text)) not in self.problems:
            self.problems.append(text)

    def _guarded(self, act: Callable[[_Given], _Made], given: _Given) -> _Made:
        """What *act* makes of *given*; the user's code runs in it, and what that raises becomes a problem, a block."""
        try:
            return act(given)
        except Problem:
            raise
        except BaseException as error:  # noqa: BLE001 - a module may call sys.exit()
            raise Problem(tracebacks.block(error, self.root)) from None

    def _function(self, ref: HandlerRef) -> Any:
        module = self.module(ref.file)
        found: Any = module
        for part in ref.function.split("."):
            if not hasattr(found, part):
                raise Problem(self._missing(ref, module))
            found = getattr(found, part)
        return found

    def _missing(self, ref: HandlerRef, module: ModuleType) -> str:
        there = sorted(
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and callable(value)
            and not isinstance(value, type)
            and getattr(value, "__module__", module.__name__) == module.__name__
        )
        near = difflib.get_close_matches(ref.function, there, 1)
        if near:
            hint = f"did you mean {near[0]}?"
        elif there:
            hint = f"there is {', '.join(there)}"
        else:
            hint = f"write: def {ref.function}(message, callback):"
        return f"handlers/{ref.file}: no function {ref.function}; {hint}"

    def _bind(self, queue: QueueSettings) -> Binding:
        ref = queue.handler
        if ref is None:
            raise Problem(f"queue {queue.name}: no handler is bound to it")
        function = self._function(ref)
        try:
            form = shape.of_handler(function, ref.function)
            before, inside = self._middleware(queue, is_async=form.is_async)
            return Binding(
                queue,
                str(ref),
                function,
                form,
                loop_middleware=before,
                thread_middleware=inside,
                matched=self._rules(queue),
            )
        except TypeError as error:  # a misfit, or an annotation that JSON can never become
            raise Problem(f"{self.place(function, f'handlers/{ref.file}')}: {error}") from None

    def _rules(self, queue: QueueSettings) -> rules.Rules:
        found = []
        for rule in queue.errors:
            try:
                found.append(self._guarded(_resolve, rule))
            except Problem as problem:
                raise Problem(f"queue {queue.name}: {problem}") from None
        return tuple(found)

    def _middleware(
        self, queue: QueueSettings, *, is_async: bool
    ) -> tuple[tuple[Callable[..., Any], ...], tuple[Callable[..., Any], ...]]:
        """The middleware that runs on the loop, and what of it runs in the handler's thread, outermost first."""
        on_loop: list[Callable[..., Any]] = []
        in_thread: list[Callable[..., Any]] = []
        for ref in queue.middleware:
            function = self._function(ref)
            place = self.place(function, f"handlers/{ref.file}")
            try:
                runs_on_loop = shape.of_middleware(function, ref.function)
            except shape.MisfitError as error:
                raise Problem(f"{place}: {error}") from None
            if not runs_on_loop and is_async:
                raise Problem(
                    f"{place}: the plain middleware {ref.text} cannot stand around the async handler of queue {queue.name}: "
                    f"it would block all others; write async def {ref.function}(job, call_next), which fits both kinds"
                )
            if runs_on_loop and in_thread:
                raise Problem(
                    f"{place}: the async middleware {ref.text} of queue {queue.name} stands inside a plain one, "
                    "which runs in a thread; list the async ones first"
                )
            (on_loop if runs_on_loop else in_thread).append(function)
        return tuple(on_loop), tuple(in_thread)

    def lifespan(self) -> Any:
        """What ``_lifespan.py`` calls ``lifespan``; a problem when it is nothing that can be entered."""
        module = self.module(LIFESPAN)
        found = getattr(module, "lifespan", None)
        if found is None:
            raise Problem(
                f"handlers/{LIFESPAN}: no function lifespan; write: async def lifespan(): … yield {{'db': db}} …"
            )
        if inspect.iscoroutinefunction(found):
            raise Problem(
                f"{self.place(found, f'handlers/{LIFESPAN}')}: lifespan never yields; "
                "yield a dict between opening and closing (an async generator)"
            )
        return found


def _resolve(rule: ErrorRule) -> type[BaseException]:
    try:
        return rules.resolve(rule)
    except rules.UnknownExceptionError as error:
        raise Problem(str(error)) from None
