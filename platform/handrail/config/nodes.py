"""The text of a YAML file to plain values that know their places. It builds no objects and trusts no size.

Scalars follow YAML 1.2's core schema, as editors do: ``on``, ``1:30`` and ``2026-01-01`` are texts here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from handrail.config.words import BAD, BLANK, Bad, Path, quoted

#: Nodes that aliases may add to those that are written; more is a billion-laughs file.
MOST_BY_ALIAS = 10_000
#: Mappings and lists inside one another; libyaml's composer overflows the C stack beyond some thousands.
DEEPEST = 50

_TAG = "tag:yaml.org,2002:"


class Place(NamedTuple):
    """Where something starts in the file; both count from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """One thing that is wrong; problems sort by their place."""

    place: Place
    text: str


class Tree(NamedTuple):
    """A file's values and, by path, the places of their keys and of the values themselves."""

    value: Any
    keys: dict[Path, Place]
    values: dict[Path, Place]


#: Turns a text scalar into what it stands for: (text, whether it is in quotes, its place) → text, or BAD.
Fill = Callable[[str, bool, Place], str | Bad]


class _Core(yaml.resolver.BaseResolver):
    """YAML 1.2's core schema, and the merge key, which is not in it but in everybody's files."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Core.add_implicit_resolver(_TAG + _tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


class _PureLoader(yaml.SafeLoader):
    """Slower; its error texts and places do not depend on the version of libyaml."""

    yaml_implicit_resolvers = _Core.yaml_implicit_resolvers


_FastLoader: type[Any] = _PureLoader
if yaml.__with_libyaml__:

    class _LibyamlLoader(yaml.CSafeLoader):
        yaml_implicit_resolvers = _Core.yaml_implicit_resolvers

    _FastLoader = _LibyamlLoader


def read(text: str, fill: Fill, problems: list[Problem]) -> Tree | None:
    """The values of *text*; what is wrong is added to *problems*. None when nothing can be made of it."""
    try:
        if (deep := _too_deep(text)) is not None:
            problems.append(
                Problem(
                    deep, f"more than {DEEPEST} mappings or lists inside one another; queues.yaml needs no such depth"
                )
            )
            return None
        root = yaml.compose(text, Loader=_FastLoader)
    except (yaml.YAMLError, RecursionError):
        problems.append(_bad_yaml(text))
        return None
    reader = _Reader(fill, problems)
    if root is None:
        return Tree(BLANK, {}, {(): Place(1, 1)})
    try:
        value = reader.value(root, ())
    except _TooManyError as error:
        problems.append(
            Problem(
                error.place,
                f"the aliases of this file expand to more than {MOST_BY_ALIAS:,} values; write fewer of them",
            )
        )
        return None
    return Tree(value, reader.keys, reader.values)


def _too_deep(text: str) -> Place | None:
    depth = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                return _place(event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


class _TooManyError(Exception):
    def __init__(self, place: Place) -> None:
        self.place = place


class _Reader:
    def __init__(self, fill: Fill, problems: list[Problem]) -> None:
        self.keys: dict[Path, Place] = {}
        self.values: dict[Path, Place] = {}
        self._fill = fill
        self._problems = problems
        self._seen: set[int] = set()
        self._again = 0
        self._open: set[int] = set()

    def value(self, node: Node, path: Path) -> Any:
        place = _place(node.start_mark)
        self.values[path] = place
        self._count(node, place)
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if id(node) in self._open:
            self._say(place, "this alias stands inside its own anchor; it has no end")
            return BAD
        expected = "map" if isinstance(node, MappingNode) else "seq"
        if node.tag != _TAG + expected:
            self._tag(node, place)
            return BAD
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            assert isinstance(node, SequenceNode)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _count(self, node: Node, place: Place) -> None:
        if id(node) in self._seen:
            self._again += 1
            if self._again > MOST_BY_ALIAS:
                raise _TooManyError(place)
        self._seen.add(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[tuple[Node, Node]] = []
        for key_node, value_node in node.value:
            place = _place(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                self._say(
                    place,
                    'a key must be a text, not a list or a mapping; if this was ${NAME}, write "${NAME}" in quotes',
                )
                continue
            if key_node.tag == _TAG + "merge":
                merged += self._merged(value_node, place)
                continue
            if key_node.tag not in {_TAG + name for name in ("str", "int", "float", "bool", "null")}:
                self._tag(key_node, place)
            # the text as written: a queue may be called 007, on or null
            key: str = key_node.value
            if key in found:
                first = self.keys[*path, key]
                self._say(place, f"{quoted(key)} is here twice, first in line {first.line}; remove one of them")
                continue
            self.keys[*path, key] = place
            found[key] = self.value(value_node, (*path, key))
        for key_node, value_node in merged:
            if isinstance(key_node, ScalarNode) and key_node.value not in found:
                self.keys[*path, key_node.value] = _place(key_node.start_mark)
                found[key_node.value] = self.value(value_node, (*path, key_node.value))
        return found

    def _merged(self, node: Node, place: Place, depth: int = 0) -> list[tuple[Node, Node]]:
        """What ``<<: *anchor`` or ``<<: [*one, *other]`` brings in; what comes first wins."""
        self._count(node, place)
        if depth > DEEPEST or id(node) in self._open:
            self._say(place, "this merge stands inside its own anchor; it has no end")
            return []
        if isinstance(node, SequenceNode):
            return [pair for item in node.value for pair in self._merged(item, place, depth + 1)]
        if not isinstance(node, MappingNode):
            self._say(place, "'<<' takes a mapping, as in `<<: *name`, or a list of them")
            return []
        pairs: list[tuple[Node, Node]] = []
        later: list[tuple[Node, Node]] = []
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                later += self._merged(value, place, depth + 1)
            else:
                pairs.append((key, value))
        return pairs + later

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str":
                return self._fill(text, bool(node.style), place)
            case "null":
                return None if text else BLANK
            case "bool" if text.lower() in {"true", "false"}:
                return text.lower() == "true"
            case "int" | "float" as kind:
                try:
                    return number(text) if kind == "int" else float(number(text))
                except (ValueError, OverflowError):
                    self._say(place, f"{quoted(text)} is not a number; remove the tag")
            case _:
                self._tag(node, place)
        return BAD

    def _tag(self, node: Node, place: Place) -> None:
        tag = node.tag
        shown = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
        word = tag.rpartition(":")[2].strip("!").lower()
        if tag.startswith(_TAG + "python/"):
            why = "it could run code, and no tag is followed here; remove it"
        elif word in {"env", "env_var", "envvar", "environ"}:
            why = "write ${NAME} instead"
        elif word in {"file", "include", "secret"}:
            why = "write ${file:path} instead"
        else:
            why = "queues.yaml takes plain values only; remove it"
        self._say(place, f"tag {quoted(shown)} is not taken: {why}")

    def _say(self, place: Place, text: str) -> None:
        self._problems.append(Problem(place, text))


def number(text: str) -> int | float:
    """The number that *text* is in YAML 1.2's core schema. Raises ``ValueError`` when it is none."""
    for tag, pattern in _Core.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            if tag == _TAG + "int":
                # in YAML 1.2 a leading zero means nothing
                return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
            if tag == _TAG + "float":
                return float(re.sub(r"\.(?=[iInN])", "", text))
    raise ValueError(f"{text!r} is not a number")


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


def _bad_yaml(text: str) -> Problem:
    """What is wrong with *text*, found by the parser whose words we know."""
    try:
        for _ in yaml.parse(text, Loader=_PureLoader):
            pass
        yaml.compose(text, Loader=_PureLoader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        return Problem(place, f"the character U+{ord(text[error.position]):04X} may not stand in YAML; remove it")
    except yaml.MarkedYAMLError as error:
        return _marked(text, error)
    except (yaml.YAMLError, RecursionError):
        pass
    return Problem(Place(1, 1), "this is not YAML; see https://yaml.org for its rules")


def _marked(text: str, error: yaml.MarkedYAMLError) -> Problem:
    problem, context = error.problem or "", error.context or ""
    at = error.problem_mark or error.context_mark
    began = error.context_mark or at
    if at is None or began is None:
        return Problem(Place(1, 1), f"bad YAML: {problem}")
    here = _place(at)
    line = "".join(text.split("\n")[at.line : at.line + 1])
    match (problem, context):
        case (_, _) if r"'\t'" in problem:
            return Problem(here, "a tab cannot indent YAML; use spaces")
        case ("mapping values are not allowed here", _):
            return _colon(text.split("\n"), here)
        case (_, "while scanning a simple key"):
            return Problem(_place(began), "this line has no ':'; write it as `key: value`")
        case (_, "while scanning a quoted scalar"):
            return Problem(_place(began), "this quote is never closed; add the closing one")
        case (_, "while scanning a double-quoted scalar"):
            return Problem(
                here, "in \"double quotes\" a backslash starts an escape; write \\\\, or use 'single quotes'"
            )
        case (_, "while parsing a flow sequence" | "while parsing a flow mapping" | "while parsing a flow node"):
            if "${" in line:
                return Problem(here, 'inside { } and [ ] a variable needs quotes; write "${NAME}"')
            opened = "'['" if "sequence" in context else "'{'"
            return Problem(here, f"the {opened} of line {began.line + 1} is not closed here, or a comma is missing")
        case (_, "while parsing a block mapping" | "while parsing a block collection"):
            if (sign := problem[-2:-1]) in {"]", "}", ","}:
                return Problem(here, f"there is a {quoted(sign)} too many here; remove it, or put the text in quotes")
            return Problem(here, f"this does not line up with line {began.line + 1}; indent it like its neighbours")
        case (_, "while scanning for the next token"):
            sign = line[at.column : at.column + 1]
            return Problem(here, f"a text cannot start with {quoted(sign)}; put it in quotes")
        case ("but found another document", _):
            return Problem(here, "a second document starts here; queues.yaml is one document, so remove the '---'")
        case (_, _) if "undefined alias" in problem:
            name = problem.rpartition(" ")[2].strip("'")
            return Problem(
                here,
                f"no anchor &{name} stands above this alias; define it, or put a text that starts with '*' in quotes",
            )
    return Problem(here, f"bad YAML: {problem}{f', {context}' if context else ''}")


def _colon(lines: list[str], here: Place) -> Problem:
    """A ``:`` where no key can be: a second one, or the first after a line that was no key at all."""
    line = lines[here.line - 1] if here.line <= len(lines) else ""
    before = next((number for number in range(here.line - 1, 0, -1) if lines[number - 1].strip()), 0)
    above = lines[before - 1].split(" #")[0].rstrip() if before else ""
    if re.search(r":\s", line[: here.column - 1]):
        return Problem(here, "a second ':' in one line; put the text in quotes, or the rest on lines of its own")
    if above and not above.endswith(":") and ": " not in above:
        place = Place(before, len(above) - len(above.lstrip()) + 1)
        return Problem(place, "this line has no ': '; write `key: value`, with a space after the ':'")
    return Problem(here, "this line is indented deeper than the one above, which has a value already; line them up")
