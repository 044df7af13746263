"""One queues.yaml to frozen settings: reads, checks all of it, and says all that is wrong at once. It opens nothing else
than the file, the files its variables name, and handler files as text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from handrail import adapter
from handrail.adapter import BrokerSettings
from handrail.config import hints
from handrail.config.model import DEFAULT_BROKER_URL, ErrorRule, HandlerRef, QueueSettings, Settings
from handrail.config.nodes import Place, Problem, Tree, read
from handrail.config.references import ReferenceProblemError, References, Use
from handrail.config.shape import (
    ADAPTER_KEYS,
    TAGS,
    BackoffShape,
    BrokerShape,
    CommonShape,
    QueueShape,
    Root,
    RuleShape,
    resolved,
)
from handrail.config.variables import Variables
from handrail.config.words import BAD, BLANK, Filled, found, listed, nearest, quoted, subject
from handrail.config.words import Path as Where
from handrail.errors import ConfigError, unreachable
from handrail.outcome import Backoff

#: The largest queues.yaml, in bytes.
LARGEST = 4_000_000
#: Names that handrail gives to its own queues on brokers.
OURS = "handrail.delay"

_EXAMPLE = "`queues:` and under it `  taskQueue: taskHandler`"


def build(path: Path, *, check_handlers: bool) -> Settings:
    """The settings of the file at *path*. Raises :class:`ConfigError` with every problem found."""
    # not resolved: where the file is mounted as a symbolic link, the project is the folder of the link
    path = Path(os.path.abspath(path))  # noqa: PTH100
    problems: list[Problem] = []
    text = _text(path)
    tree = read(text, Variables(path.parent, problems).fill, problems)
    if tree is None:
        _raise(path, problems)
    builder = _Builder(path, tree, problems, check_handlers=check_handlers)
    settings = builder.settings()
    if problems:
        _raise(path, problems)
    if settings is None:
        unreachable("end of reading queues.yaml")
    return settings


def _raise(path: Path, problems: list[Problem]) -> NoReturn:
    here = _shown(path)
    lines = dict.fromkeys(f"{here}:{place.line}:{place.column}: {text}" for place, text in sorted(problems))
    raise ConfigError(list(lines)) from None


def _shown(path: Path) -> str:
    try:
        shown = str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path.name
    return path.name if shown == "." else shown


def _text(path: Path) -> str:
    start = Place(1, 1)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        _raise(path, [Problem(start, "there is no such file; `platform new DIR` makes one")])
    except IsADirectoryError:
        _raise(path, [Problem(start, "this is a folder; name the file in it")])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path cannot be used"
        _raise(path, [Problem(start, f"the file cannot be read: {reason}")])
    if len(data) > LARGEST:
        _raise(path, [Problem(start, f"the file is larger than {LARGEST:,} bytes; this cannot be a queues.yaml")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        _raise(path, [Problem(Place(line, column), "the file is not UTF-8 here; save it as UTF-8")])


class _Builder:
    def __init__(self, path: Path, tree: Tree, problems: list[Problem], *, check_handlers: bool) -> None:
        self._path = path
        self._tree = tree
        self._problems = problems
        self._failed: set[Where] = set()
        self._references = References(path.parent, check=check_handlers)
        self._schemes: list[str] | None = None
        self._brokers: dict[str, BrokerSettings] = {}
        self._prefix = ""

    def settings(self) -> Settings | None:
        value = self._tree.value
        if value is BLANK or value is None:
            self._say((), f"the file is empty; write {_EXAMPLE}")
            return None
        if value is BAD:
            return None
        if not isinstance(value, dict):
            self._say((), f"this must be a mapping with 'queues', not {found(value)}; write {_EXAMPLE}")
            return None
        # as in Compose files, x-… is where anchors are kept
        root = self._checked({key: item for key, item in value.items() if not key.startswith("x-")})
        if root is None:
            return None
        self._prefix = str(root.prefix or "")
        default = self._default_broker(root)
        queues = self._queues(root, default)
        self._dead_letters(queues)
        given = {
            name: _unfilled(getattr(root, name))
            for name in ("drain_timeout", "send_timeout", "send_buffer", "max_message_bytes", "ledger")
            if name in root.model_fields_set
        }
        return Settings(
            path=str(self._path),
            root=str(self._path.parent),
            brokers=self._brokers,
            queues=queues,
            prefix=self._prefix,
            **given,
        )

    # -- the shape

    def _checked(self, value: dict[str, Any]) -> Root | None:
        """*value* checked. What is wrong is said and then left out, so that the rest is checked and built all the same."""
        while True:
            try:
                return Root.model_validate(value)
            except ValidationError as error:
                details = error.errors(include_url=False)
            removed = False
            for detail in details:
                path = self._path_of(detail["loc"])
                if path not in self._failed:
                    self._failed.add(path)
                    self._invalid(path, detail)
                removed |= _remove(value, path[:-1] if detail["type"] == "missing" else path)
            if not removed:
                return None

    def _path_of(self, loc: Where) -> Where:
        """Where *loc* is in the file: without the tags of unions, which pydantic puts into it."""
        path: Where = ()
        for part in loc:
            # a queue may be called like a tag
            if part not in TAGS or (*path, part) in self._tree.values:
                path = (*path, part)
        return path

    def _invalid(self, path: Where, detail: ErrorDetails) -> None:
        given = detail["input"]
        if given is BAD:
            return
        if given is BLANK:
            self._say(path, self._blank(path))
            return
        kind = detail["type"]
        if kind == "missing":
            if path not in self._tree.values:
                self._missing(path)
        elif kind == "extra_forbidden":
            self._say_key(path, hints.unknown(path[:-1], str(path[-1]), given, self._known(path[:-1])))
        elif kind == "value_error":
            self._say(path, f"{subject(path)} {detail['ctx']['error']}")
        elif kind in {"too_short", "too_long"}:
            self._say(path, f"{subject(path)} must have 1 to 100 durations, not {len(given)}")
        elif kind in {"dict_type", "model_type", "model_attributes_type"}:
            self._say(path, self._not_a_mapping(path, given))
        elif kind == "list_type":
            mend = (
                f"; write [{given}]"
                if isinstance(given, str) and not isinstance(given, Filled) and given.isidentifier()
                else ""
            )
            self._say(path, f"{subject(path)} must be a list, not {found(given)}{mend}")
        else:
            self._say(path, f"{subject(path)} cannot be {found(given)}")

    def _missing(self, path: Where) -> None:
        if path == ("queues",):
            others = [str(key[0]) for key in self._tree.keys if len(key) == 1]
            if not any(hints.stands_for((), key, self._known(())) == "queues" for key in others):
                self._say((), f"there is no 'queues' in this file; write {_EXAMPLE}")
        elif path[-1] == "when":
            self._say(
                path[:-1],
                f"a rule of {subject(path[:-1])} has no 'when'; write the class of the exception, as in `when: ValueError`",
            )
        else:
            said = f"{subject(path[:-1])} has no {quoted(str(path[-1]))}"
            meant = hints.meant(str(path[-1]), [str(key[-1]) for key in self._tree.keys if key[:-1] == path[:-1]])
            if meant is None:
                self._say(path[:-1], f"{said}; add it")
            else:
                self._say_key((*path[:-1], meant), f"{said}; write 'url' for {quoted(meant)}")

    def _blank(self, path: Where) -> str:
        match path:
            case ("queues",):
                return f"'queues' is empty; write {_EXAMPLE}"
            case ("queues", str(queue)):
                return f"queue {quoted(queue)} has no handler; write one after the ':', or {{}} for a queue that is only sent to"
        return f"{subject(path)} has no value; write one, or remove the line"

    @staticmethod
    def _not_a_mapping(path: Where, given: object) -> str:
        match path:
            case ("queues",):
                space = "; put a space after the ':'" if isinstance(given, str) and ":" in given else ""
                return f"'queues' must be a mapping such as `taskQueue: taskHandler`, not {found(given)}{space}"
            case ("brokers",):
                return f"'brokers' must be a mapping of names to URLs, not {found(given)}"
            case (*_, "errors", int()):
                example = "{when: ValueError, then: reject}"
                return f"a rule of {subject(path)} must be a mapping such as {example}, not {found(given)}"
        return f"{subject(path)} must be a mapping, not {found(given)}"

    @staticmethod
    def _known(path: Where) -> list[str]:
        model: type[BaseModel]
        match path:
            case ():
                model = Root
            case ("queues", _):
                model = QueueShape
            case (*_, "backoff"):
                model = BackoffShape
            case (*_, "errors", int()):
                model = RuleShape
            case ("defaults",):
                model = CommonShape
            case _:
                model = QueueShape
        return list(model.model_fields)

    # -- brokers

    def _default_broker(self, root: Root) -> str:
        """The name of the broker of queues that name none."""
        for name, given in (root.brokers or {}).items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
                said = f"a broker cannot be called {quoted(name)}"
                self._say_key(("brokers", name), f"{said}; a name is 1 to 64 letters, digits, '-', '_' and '.'")
            if name == "default" and root.broker is not None:
                self._say_key(
                    ("brokers", name), "the broker 'default' is given here and as 'broker'; remove one of them"
                )
            self._broker(name, given, ("brokers", name))
        if ("broker",) in self._failed or root.broker is None:
            if "default" not in self._brokers:
                self._brokers["default"] = self._settings("default", DEFAULT_BROKER_URL, {})
            return "default"
        if isinstance(root.broker, str) and ":" not in root.broker and root.brokers:
            return self._named(root.broker, ("broker",)) or "default"
        self._broker("default", root.broker, ("broker",))
        return "default"

    def _broker(self, name: str, given: BrokerShape | str, path: Where) -> None:
        options: dict[str, Any] = {}
        if isinstance(given, BrokerShape):
            url, at = given.url, (*path, "url")
            options = {key: _option(key, value) for key, value in (given.model_extra or {}).items()}
        else:
            url, at = given, path
        self._scheme(url, at)
        self._brokers[name] = self._settings(name, url, options)

    def _settings(self, name: str, url: str, options: dict[str, Any]) -> BrokerSettings:
        return BrokerSettings(
            name=name, url=str(url), root=str(self._path.parent), prefix=self._prefix, options=options
        )

    def _scheme(self, url: str, path: Where) -> None:
        scheme, colon, _ = url.partition(":")
        if self._schemes is None:
            self._schemes = adapter.schemes()
        if colon and scheme.lower() in self._schemes:
            return
        if colon and scheme.lower() in adapter.EXTRAS:
            extra = adapter.EXTRAS[scheme.lower()]
            self._say(
                path,
                f"{subject(path)}: the adapter for {scheme.lower()}: is not installed; pip install 'handrail[{extra}]'",
            )
            return
        known = [f"{name}:" for name in self._schemes]
        for extra in dict.fromkeys(adapter.EXTRAS.values()):
            absent = [
                f"{name}:" for name, needs in adapter.EXTRAS.items() if needs == extra and name not in self._schemes
            ]
            if absent:
                known.append(f"{listed(absent)} after pip install 'handrail[{extra}]'")
        shown = f"no adapter is known for {quoted(url)}" if colon else f"{quoted(url)} is not a URL"
        self._say(path, f"{subject(path)}: {shown}; use {', '.join(known)}")

    def _named(self, name: str, path: Where) -> str | None:
        if name in self._brokers or ("brokers", name) in self._failed:
            return str(name)
        written = [str(key[1]) for key in self._tree.keys if len(key) == 2 and key[0] == "brokers"]
        near = None if isinstance(name, Filled) else nearest(name, [*written, "default"])
        if not written:
            mend = "name it there, or write a URL"
        elif near is not None:
            mend = f"did you mean {quoted(near)}?"
        else:
            mend = f"known are {listed(dict.fromkeys([*written, 'default']), 'and')}"
        self._say(path, f"{subject(path)}: there is no broker {quoted(name)} under 'brokers'; {mend}")
        return None

    def _queue_broker(self, given: str, path: Where) -> str | None:
        """The name of the broker that a queue's ``broker:`` means: a name, or a URL, which gets a name of its own."""
        if ":" not in given:
            return self._named(given, path)
        for name, settings in self._brokers.items():
            if settings.url == given and not settings.options:
                return name
        before = len(self._problems)
        self._scheme(given, path)
        if len(self._problems) > before:
            return None
        shown = adapter.masked(given)
        name = next(name for name in _numbered(shown) if name not in self._brokers)
        self._brokers[name] = self._settings(name, given, {})
        return name

    # -- queues

    def _queues(self, root: Root, default: str) -> dict[str, QueueSettings]:
        common = {} if root.defaults is None else _given(root.defaults)
        if isinstance(common.get("dead_letter"), str):
            path = ("defaults", "dead_letter")
            self._say(
                path,
                f"{subject(path)} can only be true or false; each queue needs a place of its own, so name it there",
            )
            del common["dead_letter"]
        middleware = self._middleware(common.get("middleware", []), ("defaults", "middleware"))
        default_broker: str | None = default
        if "broker" in common:
            default_broker = self._queue_broker(common["broker"], ("defaults", "broker"))
        if not root.queues and not self._problems:
            self._say(("queues",), f"'queues' is empty; write {_EXAMPLE}")
        queues: dict[str, QueueSettings] = {}
        folded: dict[str, str] = {}
        for written in self._tree.keys:
            if len(written) == 2 and written[0] == "queues":
                self._name(str(written[1]), folded)
        used = False
        for name, shape in root.queues.items():
            path = ("queues", name)
            own: dict[str, Any] = {"handler": shape} if isinstance(shape, str) else _given(shape)
            at = path if isinstance(shape, str) else (*path, "handler")
            broker = self._queue_broker(own["broker"], (*path, "broker")) if "broker" in own else default_broker
            used = used or broker == "default"
            merged = {**common, **own}
            options = self._options(name, common, own, broker)
            merged["options"] = options
            merged["handler"] = self._reference(own["handler"], at) if "handler" in own else None
            merged["middleware"] = (
                self._middleware(own["middleware"], (*path, "middleware")) if "middleware" in own else middleware
            )
            merged["broker"] = broker or "default"
            merged["dead_letter"] = _dead_letter(name, merged.get("dead_letter", True))
            queues[name] = self._queue(name, merged, path, own)
        if not used and "broker" not in root.model_fields_set and "default" not in (root.brokers or {}):
            # the embedded default that nobody asked for is not to be opened
            self._brokers.pop("default", None)
        return queues

    def _name(self, name: str, folded: dict[str, str]) -> None:
        path = ("queues", name)
        shown = quoted(name)
        if "${" in name:
            self._say_key(
                path, f"queue {shown}: a queue's name cannot hold a variable; use 'prefix' to tell environments apart"
            )
        elif not name or not name.strip("."):
            self._say_key(
                path, f"a queue cannot be called {shown}; a name is 1 to 128 letters, digits, '-', '_' and '.'"
            )
        elif len(name) > 128:
            self._say_key(path, f"the name of queue {shown} has {len(name)} characters; 128 is the most")
        elif wrong := sorted({sign for sign in name if not (sign.isascii() and (sign.isalnum() or sign in "-_."))}):
            signs = listed([quoted(sign) for sign in wrong], "and")
            self._say_key(
                path, f"queue {shown}: a name cannot hold {signs}; it is 1 to 128 letters, digits, '-', '_' and '.'"
            )
        elif name.startswith(OURS):
            self._say_key(
                path, f"queue {shown}: names that start with '{OURS}' belong to handrail; call it something else"
            )
        elif (other := folded.setdefault(name.casefold(), name)) != name:
            line = self._tree.keys["queues", other].line
            self._say_key(
                path,
                f"queues {quoted(other)} (line {line}) and {shown} differ only in upper and lower case; rename one",
            )

    def _queue(self, name: str, merged: dict[str, Any], path: Where, own: dict[str, Any]) -> QueueSettings:
        rest: dict[str, Any] = {
            key: value
            for key, value in merged.items()
            if key not in {"backoff", "errors", *ADAPTER_KEYS} and key in QueueSettings.__struct_fields__
        }
        if "backoff" in merged:
            at = (*path, "backoff") if "backoff" in own else ("defaults", "backoff")
            rest["backoff"] = self._backoff(merged["backoff"], at)
        rules = []
        base = (*path, "errors") if "errors" in own else ("defaults", "errors")
        for index, rule in enumerate(merged.get("errors", [])):
            given = _given(rule)
            if given.get("then") == "reject" and "backoff" in given:
                self._say(
                    (*base, index, "backoff"), "'backoff' has no meaning beside 'then: reject'; remove one of them"
                )
            rules.append(
                ErrorRule(
                    when=str(given["when"]),
                    then=given.get("then", "retry"),
                    backoff=self._backoff(given["backoff"], (*base, index, "backoff")) if "backoff" in given else None,
                )
            )
        return QueueSettings(name=name, errors=tuple(rules), **rest)

    def _backoff(self, given: BackoffShape | list[float] | float, path: Where) -> Backoff:
        if isinstance(given, list):
            return Backoff(type="list", delays=tuple(given))
        if not isinstance(given, BackoffShape):
            return Backoff(type="fixed", delay=given)
        backoff = Backoff(**_given(given))
        if backoff.max is not None and backoff.max < backoff.delay:
            self._say(
                (*path, "max"),
                f"{subject((*path, 'max'))} is shorter than the first delay; make it longer, or 'delay' shorter",
            )
        if "factor" in given.model_fields_set and backoff.type != "exponential":
            self._say(
                (*path, "factor"),
                f"{subject((*path, 'factor'))} has no meaning for type {backoff.type}; remove it, or write type: exponential",
            )
        return backoff

    def _options(self, name: str, common: dict[str, Any], own: dict[str, Any], broker: str | None) -> dict[str, Any]:
        """The keys that belong to the queue's broker alone; in ``defaults`` they may stand for other queues."""
        options = {
            key: _option(key, value) for key, value in {**common.get("options", {}), **own.get("options", {})}.items()
        }
        settings = self._brokers.get(broker or "")
        scheme = settings.url.partition(":")[0].lower() if settings else None
        for key, schemes in ADAPTER_KEYS.items():
            if scheme in schemes and (key in common or key in own):
                options[key] = own.get(key, common.get(key))
            elif key in own and scheme is not None and ("queues", name, "broker") not in self._failed:
                path = ("queues", name, key)
                owners = listed([f"{each}:" for each in schemes])
                self._say_key(
                    path,
                    f"{subject(path)} is for {owners} alone, and this queue is on {scheme}:; remove it",
                )
        return options

    def _reference(self, text: str, path: Where, use: Use = "handler") -> HandlerRef | None:
        try:
            return self._references.find(text, use)
        except ReferenceProblemError as error:
            self._say(path, str(error))
            return None

    def _middleware(self, texts: list[str], path: Where) -> tuple[HandlerRef, ...]:
        refs = [self._reference(text, (*path, index), "middleware") for index, text in enumerate(texts)]
        return tuple(ref for ref in refs if ref is not None)

    def _dead_letters(self, queues: dict[str, QueueSettings]) -> None:
        """No place for dead letters may be a queue, or the place of another queue, on the same broker."""
        places: dict[tuple[str, str], str] = {}
        names = {(queue.broker, name.casefold()): name for name, queue in queues.items()}
        for name, queue in queues.items():
            if queue.dead_letter is None:
                continue
            path: Where = ("queues", name, "dead_letter")
            if path not in self._tree.values:
                path = ("queues", name)
            place = quoted(self._tree_dead_letter(name) or queue.dead_letter)
            key = (queue.broker, queue.dead_letter.casefold())
            if key in names:
                other = names[key]
                whom = "itself" if other == name else f"queue {quoted(other)}"
                self._say(
                    path,
                    f"the dead letters of queue {quoted(name)} would go to {whom} ({place}); name another place in 'dead_letter'",
                )
            elif key in places and places[key].casefold() != name.casefold():
                self._say(
                    path,
                    f"queues {quoted(places[key])} and {quoted(name)} share {place} for their dead letters; each needs its own",
                )
            places.setdefault(key, name)

    def _tree_dead_letter(self, name: str) -> str | None:
        """The name as it stands in the file where a variable made it, for that may be shown."""
        shape = self._tree.value["queues"][name]
        written = shape.get("dead_letter") if isinstance(shape, dict) else None
        return written if isinstance(written, Filled) else None

    # -- saying

    def _say(self, path: Where, text: str) -> None:
        self._problems.append(Problem(self._place(path, self._tree.values), text))

    def _say_key(self, path: Where, text: str) -> None:
        self._problems.append(Problem(self._place(path, self._tree.keys), text))

    def _place(self, path: Where, places: dict[Where, Place]) -> Place:
        for each in (path, *(path[:end] for end in range(len(path) - 1, -1, -1))):
            if each in places:
                return places[each]
        return Place(1, 1)


def _given(shape: BaseModel) -> dict[str, Any]:
    """What was written, without variables' traces."""
    return {
        name: _unfilled(getattr(shape, name)) if name not in _TRACED else getattr(shape, name)
        for name in shape.model_fields_set
    }


#: Texts that later errors may have to show, by what stands in the file.
_TRACED = frozenset({"handler", "middleware", "broker", "dead_letter", "options"})


def _unfilled(value: Any) -> Any:
    return str(value) if isinstance(value, Filled) else value


def _option(key: str, value: Any) -> Any:
    """A value that only an adapter knows, as plain data; a variable without quotes may be a number, but never one of _TEXTS."""
    if isinstance(value, dict):
        return {name: _option(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_option(key, item) for item in value]
    if value is BLANK:
        return None
    if isinstance(value, Filled) and not value.quoted and not any(word in key.lower() for word in _TEXTS):
        value = resolved(value)
    return _unfilled(value)


#: In the names of options that are always texts: secrets, and names of people and places.
_TEXTS = ("pass", "secret", "token", "key", "user", "vhost", "server_name")


def _dead_letter(name: str, given: str | bool) -> str | None:
    if given is False:
        return None
    return f"{name}.dead" if given is True else str(given)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name} ({number})"
        number += 1


def _remove(value: Any, path: Where) -> bool:
    """Take what is at *path* out of *value*; whether it was there."""
    if not path:
        return False
    *above, last = path
    holder = value
    for part in above:
        try:
            holder = holder[part]
        except (KeyError, IndexError, TypeError):
            return False
    if isinstance(holder, dict):
        return holder.pop(last, None) is not None
    if not isinstance(holder, list) or not isinstance(last, int):
        return False
    if holder[last] is BAD:
        return _remove(value, tuple(above))
    # the others keep their places for the time being
    holder[last] = BAD
    return True
