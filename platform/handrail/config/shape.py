"""The shape of queues.yaml: which keys it has and what each may hold, for checking and for the JSON Schema.

Values are checked one by one here; what concerns several of them at once is checked where the settings are built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic_core import CoreSchema, core_schema

from handrail import duration
from handrail.config.nodes import number
from handrail.config.words import Filled, found, listed, nearest, quoted

#: Keys of a queue that belong to some brokers alone, by those brokers' URL schemes.
ADAPTER_KEYS: dict[str, tuple[str, ...]] = {
    "queue_type": ("amqp", "amqps"),
    "partitions": ("kafka",),
    "on_lost_position": ("kafka",),
}

_VARIABLE = {"type": "string", "pattern": r"\$\{", "description": "${NAME}, ${NAME:-default} or ${file:path}"}


class Leaf:
    """A value without parts: how it is checked and how the JSON Schema describes it."""

    def __init__(self, check: Callable[[Any], Any], *alternatives: dict[str, Any]) -> None:
        self._check = check
        self._alternatives = alternatives

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [dict(each) for each in self._alternatives]}


def resolved(value: Any) -> Any:
    """*value*, but a text that came wholly from one variable becomes the number or truth value it spells."""
    if not isinstance(value, Filled) or not value.whole:
        return value
    text = value.strip()
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return number(text)
    except ValueError:
        return value


def _plain(value: Any) -> str | None:
    return value.strip().lower() if isinstance(value, str) else None


def _whole(least: int, most: int, zero: str = "", none: tuple[str, ...] = ()) -> Leaf:
    words = f"a whole number from {least:,} to {most:,}" if most < 10**9 else f"a whole number, {least:,} or more"
    if none:
        words += f", or {listed(none)}"

    def check(value: Any) -> int | None:
        if none and (value is None or _plain(value) in none):
            return None
        given = resolved(value)
        if isinstance(given, int) and not isinstance(given, bool):
            if least <= given <= most:
                return given
            raise ValueError(f"must be {words}, not {_meant(value, given)}{zero if given == 0 else ''}")
        raise ValueError(f"must be {words}, not {found(value)}{_number_mend(value)}")

    schema: dict[str, Any] = {"type": "integer", "minimum": least}
    if most < 10**9:
        schema["maximum"] = most
    return Leaf(check, schema, *([{"enum": [*none, None]}] if none else []), _VARIABLE)


def _number_mend(value: Any) -> str:
    if isinstance(value, str) and not isinstance(value, Filled):
        bare = re.sub(r"(?<=[0-9])[_, ](?=[0-9])", "", value.strip())
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", bare):
            return f"; write {bare}" + (" without quotes" if bare == value else "")
    return ""


def _meant(value: Any, given: Any) -> str:
    """What was found, where *given* is what *value* spells; what a variable holds stays unsaid."""
    return found(value if isinstance(value, Filled) else given)


def _share() -> Leaf:
    def check(value: Any) -> float:
        given = resolved(value)
        if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1:
            return float(given)
        mend = ""
        if isinstance(value, str) and (percent := re.fullmatch(r"([0-9]{1,2}|100) ?%", value)):
            mend = f"; write {int(percent[1]) / 100:g}"
        raise ValueError(f"must be a number from 0 to 1, such as 0.2, not {_meant(value, given)}{mend}")

    return Leaf(check, {"type": "number", "minimum": 0, "maximum": 1}, _VARIABLE)


def _factor() -> Leaf:
    def check(value: Any) -> float:
        given = resolved(value)
        if isinstance(given, int | float) and not isinstance(given, bool) and 1 <= given <= 1000:
            return float(given)
        raise ValueError(f"must be a number from 1 to 1,000, such as 2, not {_meant(value, given)}")

    return Leaf(check, {"type": "number", "minimum": 1, "maximum": 1000}, _VARIABLE)


_DURATION_SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "string",
        "pattern": r"^ *[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d|w)( ?[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d|w))* *$",
        "description": "250ms, 2s, 1h30m, 7d",
    },
    {
        "type": "string",
        "pattern": r"^ *P([0-9.]+W)?([0-9.]+D)?(T([0-9.]+H)?([0-9.]+M)?([0-9.]+S)?)? *$",
        "description": "ISO 8601",
    },
    {"type": "number", "minimum": 0, "maximum": duration.LONGEST, "description": "seconds"},
    _VARIABLE,
)


def _seconds(*, none: bool = False, positive: bool = False) -> Leaf:
    also = ", or none" if none else ""

    def check(value: Any) -> float | None:
        if none and (value is None or _plain(value) == "none"):
            return None
        given = resolved(value)
        if not isinstance(given, str | int | float) or isinstance(given, bool):
            raise ValueError(f"must be a duration such as 30s or 1h30m{also}, not {_meant(value, given)}")  # noqa: TRY004
        try:
            seconds = duration.seconds(str(given) if isinstance(given, str) else given)
        except ValueError as error:
            if isinstance(value, Filled):
                given = value
            raise ValueError(_duration_words(str(error), given, also)) from None
        if positive and seconds == 0:
            raise ValueError(f"must be longer than 0{'; write none for no limit' if none else ''}")
        return seconds

    return Leaf(check, *([{"enum": ["none", None], "description": "no limit"}] if none else []), *_DURATION_SCHEMAS)


def _duration_words(error: str, given: Any, also: str) -> str:
    """What to say of *given*, which is no duration, with the nearest spelling that is one."""
    usual = f"must be a duration such as 30s or 1h30m{also}, not {found(given)}"
    if "longer than ten years" in error:
        return f"must be a duration of at most ten years, not {found(given)}"
    if not isinstance(given, str) or isinstance(given, Filled):
        return usual
    text = given.strip().lower()
    mend = ""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        mend = f"write {text}s for seconds, or m, h, d for longer units"
    elif clock := re.fullmatch(r"([0-9]+):([0-9]{2})", text):
        first, second = int(clock[1]), int(clock[2])
        mend = f"write {first}m{second}s or {first}h{second}m"
    elif also and text in {"never", "off", "no", "infinite", "unlimited", "false"}:
        mend = "write none for no limit"
    elif spelled := _SPELLED.fullmatch(text):
        unit = "ms" if spelled[2].startswith(("ms", "mil")) else spelled[2][0]
        mend = f"write {spelled[1]}{unit}"
    return f"{usual}; {mend}" if mend else usual


#: Units as they are spelled in prose.
_SPELLED = re.compile(
    r"([0-9]+(?:\.[0-9]+)?) ?(ms|millis(?:econds?)?|s|sec(?:onds?|s)?|m|min(?:utes?|s)?|h|h(?:ou)?rs?|d|days?|w|weeks?)"
)


def _choice(*among: str, same: dict[str, str] | None = None) -> Leaf:
    also = same or {}

    def check(value: Any) -> str:
        word = str(value) if isinstance(value, str) else None
        if word in among:
            return str(word)
        if word in also:
            return also[str(word)]
        near = nearest(word, among) if word is not None and not isinstance(value, Filled) else None
        raise ValueError(
            f"must be {listed(among)}, not {found(value)}" + (f"; did you mean {quoted(near)}?" if near else "")
        )

    return Leaf(check, {"enum": [*among, *also]}, _VARIABLE)


def text_of(words: str, pattern: str | None = None, mend: str = "") -> Leaf:
    """A text, called *words* in errors, of which the whole must match *pattern*."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            known = isinstance(value, bool | int | float)
            raise ValueError(f"must be {words}, not {found(value)}{'; put it in quotes' if known else ''}")  # noqa: TRY004
        if pattern is not None and not re.fullmatch(pattern, value):
            raise ValueError(f"must be {words}, not {found(value)}{mend}")
        return value

    return Leaf(
        check, {"type": "string"} if pattern is None else {"type": "string", "pattern": f"^(?:{pattern})$"}, _VARIABLE
    )


def _reference() -> Leaf:
    words = "a handler such as 'mail' (handlers/mail.py) or 'mail.send'"

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be {words}, not {found(value)}")  # noqa: TRY004
        if not value.strip():
            raise ValueError(f"must be {words}, not {found(value)}")
        return value

    return Leaf(check, {"type": "string", "pattern": r"^[A-Za-z0-9_./-]+$"}, _VARIABLE)


def _off_or(value: Any) -> bool:
    return value is False or _plain(value) in {"off", "false", "no"}


def _dead_letter() -> Leaf:
    words = "the name of a place for dead letters, or false to drop them"

    def check(value: Any) -> str | bool:
        given = resolved(value)
        if isinstance(given, bool):
            return given
        if isinstance(value, str):
            given = value
            # a plain `no` or `off` means false in YAML 1.1, whatever the editor shows
            if _off_or(given):
                return False
            if _NAME.fullmatch(given):
                return given
            raise ValueError(
                f"must be {words}, not {found(value)}; a name is 1 to 128 letters, digits, '-', '_' and '.'"
            )
        raise ValueError(f"must be {words}, not {found(value)}")

    return Leaf(check, {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"}, {"type": "boolean"}, _VARIABLE)


_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,128}")


def _ledger() -> Leaf:
    words = "sqlite:PATH or off"

    def check(value: Any) -> str | None:
        given = resolved(value)
        if _off_or(given) or _plain(given) == "none":
            return None
        if isinstance(given, str) and re.match(r"sqlite:.", given):
            return given
        mend = ""
        if isinstance(given, str) and not isinstance(given, Filled) and re.search(r"[./]", given) and ":" not in given:
            mend = f"; write 'sqlite:{given}'"
        raise ValueError(f"must be {words}, not {_meant(value, given)}{mend}")

    return Leaf(check, {"type": "string", "pattern": "^sqlite:."}, {"enum": ["off", "none", False]}, _VARIABLE)


def _free() -> Leaf:
    return Leaf(lambda value: value, {})


Reference = Annotated[str, _reference()]
Duration = Annotated[float, _seconds()]


def optional(description: str, examples: list[Any] | None = None) -> Any:
    """A key that may be left out. What that means is told by the settings, so None here only says that it was."""
    return Field(None, description=description, examples=examples)


class Shape(BaseModel):
    """A mapping of which every key is known."""

    model_config = ConfigDict(extra="forbid")


class BackoffShape(Shape):
    """How long a failed message waits before its next attempt."""

    type: Annotated[str, _choice("fixed", "linear", "exponential", same={"constant": "fixed"})] = optional(
        "fixed: delay · linear: delay × n · exponential: delay × factor^(n-1), after the n-th failure.",
    )
    delay: Duration = optional("The first wait.", examples=["2s"])
    factor: Annotated[float, _factor()] = optional("What each wait is multiplied by (exponential).", examples=[2])
    max: Annotated[float, _seconds(none=True)] = optional("No wait is longer than this.", examples=["5m"])
    jitter: Annotated[float, _share()] = optional(
        "Share of the wait, 0 to 1, that chance may take away. It only shortens.", examples=[0.2]
    )


#: The tags of the unions below: they show in the places of pydantic's errors.
TAGS = frozenset({"<mapping>", "<list>", "<single>"})


def _parts(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict) else "<list>" if isinstance(value, list) else "<single>"


Backoff = Annotated[
    Annotated[BackoffShape, Tag("<mapping>")]
    | Annotated[list[Duration], Field(min_length=1, max_length=100), Tag("<list>")]
    | Annotated[float, _seconds(), Tag("<single>")],
    Discriminator(_parts),
]


class RuleShape(Shape):
    """What to do when a handler fails with one class of exception."""

    when: Annotated[
        str,
        text_of(
            "the class of an exception, such as ValueError or httpx.ConnectError",
            r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*",
        ),
    ] = Field(description="Class of the exception, subclasses included.", examples=["httpx.ConnectError", "ValueError"])
    then: Annotated[str, _choice("retry", "reject")] = optional(
        "retry: after its backoff, while attempts are left. reject: a dead letter at once."
    )
    backoff: Backoff = optional("The backoff after this exception; the queue's own when left out.")


class CommonShape(Shape):
    """What a queue and `defaults` can both say."""

    broker: Annotated[str, text_of("a name under 'brokers' or a URL")] = optional(
        "A name under `brokers`, or a URL.", examples=["main", "amqp://localhost"]
    )
    concurrency: Annotated[int, _whole(1, 10_000, none=("auto",))] = optional(
        "Handlers of the queue that run at once in one worker. auto: 100 for `async def`, 10 for `def`, the number "
        "of CPUs for `isolation: process`.",
        examples=[5],
    )
    attempts: Annotated[int, _whole(1, 1_000_000, zero="; it counts the first run, so write 1 for no retry")] = (
        optional("Runs in all, the first included.", examples=[3])
    )
    backoff: Backoff = optional(
        "How long a failed message waits: a mapping, a list of waits of which the last repeats, or one fixed wait.",
        examples=[{"type": "exponential", "delay": "2s", "max": "5m", "jitter": 0.2}, ["0s", "1s", "30s", "5m"], "10s"],
    )
    timeout: Annotated[float, _seconds(none=True, positive=True)] = optional(
        "The callback must fire within this, counted from the handler's start.",
        examples=["30s", "none"],
    )
    expires: Annotated[float, _seconds(none=True, positive=True)] = optional(
        "The first run must start within this, counted from when the message becomes due.",
        examples=["1h"],
    )
    max_starts: Annotated[int, _whole(1, 1_000_000, none=("none",))] = optional(
        "Starts of any kind after which a message is a dead letter. It bounds RetryLater.",
        examples=[100],
    )
    max_crashes: Annotated[int, _whole(1, 1_000)] = optional(
        "Deaths of its process after which a message is a dead letter.", examples=[3]
    )
    priority: Annotated[int, _whole(0, 9)] = optional("0 to 9, 9 first, unless the send says.", examples=[4])
    order: Annotated[str, _choice("fifo", "lifo", "key", "partition", same={"none": "fifo"})] = optional(
        "fifo, or none: oldest first, many at once. lifo: newest first. key: one after another of each key, retries in place. "
        "partition: one after another of each partition."
    )
    isolation: Annotated[str, _choice("none", "process")] = optional(
        "process: each run in a child process, which a timeout really kills."
    )
    dead_letter: Annotated[str | bool, _dead_letter()] = optional(
        "Where dead letters go, `<queue>.dead` when left out; false drops them.",
        examples=["mail.failed", False],
    )
    content: Annotated[str, _choice("json", "text", "bytes")] = optional("How a body becomes the handler's message.")
    errors: list[RuleShape] = optional(
        "What to do by class of exception; the first rule that fits counts.",
        examples=[[{"when": "ValueError", "then": "reject"}]],
    )
    middleware: list[Reference] = optional(
        "Functions that wrap each call, outermost first.", examples=[["ops.sentry", "db.session"]]
    )
    options: dict[str, Annotated[Any, _free()]] = optional("Further keys, passed to the broker's adapter as they are.")
    queue_type: Annotated[str, _choice("quorum", "classic")] = optional("RabbitMQ alone: the type of the queue.")
    partitions: Annotated[int, _whole(1, 100_000)] = optional("Kafka alone: partitions of a topic that is created.")
    on_lost_position: Annotated[str, _choice("stop", "earliest", "latest")] = optional(
        "Kafka alone: what to do when the group's position is gone though there are records."
    )


class QueueShape(CommonShape):
    """The long form of a queue."""

    handler: Reference = optional(
        "file, file.function, folder/file or folder.file.function in handlers/. Left out: the queue is only sent to.",
        examples=["taskHandler", "mail.send_welcome", "billing/invoices"],
    )


class BrokerShape(BaseModel):
    """A broker's URL and the keys that only its adapter knows."""

    model_config = ConfigDict(extra="allow")

    url: Annotated[str, text_of("a URL such as sqlite:.platform/queues.db")] = Field(
        description="Where the broker is.",
        examples=["sqlite:.platform/queues.db", "amqp://localhost", "kafka://a:9092,b:9092"],
    )


def _mapping_or_text(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict) else "<single>"


Queue = Annotated[
    Annotated[QueueShape, Tag("<mapping>")] | Annotated[Reference, Tag("<single>")],
    Discriminator(_mapping_or_text),
]
Broker = Annotated[
    Annotated[BrokerShape, Tag("<mapping>")]
    | Annotated[str, text_of("a URL such as sqlite:.platform/queues.db, or a mapping with one"), Tag("<single>")],
    Discriminator(_mapping_or_text),
]


class Root(Shape):
    """A handrail project: which handler takes the messages of which queue, and how."""

    broker: Broker = optional(
        "The broker of every queue that names none: a URL, a name under `brokers`, or a mapping with `url`.",
        examples=["${HANDRAIL_BROKER:-sqlite:.platform/queues.db}", "amqp://localhost", "kafka://a:9092,b:9092"],
    )
    brokers: dict[str, Broker] = optional(
        "Several brokers by name, for `broker:` of a queue.", examples=[{"main": "amqp://localhost"}]
    )
    prefix: Annotated[str, text_of("at most 64 letters, digits, '-', '_' and '.'", r"[A-Za-z0-9_.-]{0,64}")] = optional(
        "Goes before every name that is created on a broker.", examples=["staging."]
    )
    defaults: CommonShape = optional("What holds for every queue that does not say otherwise.")
    queues: dict[str, Queue] = Field(
        description="Each queue's name and its handler, or a mapping with all that it is to have.",
        examples=[{"taskQueue": "taskHandler", "welcome-email": {"handler": "mail.send_welcome", "attempts": 3}}],
    )
    drain_timeout: Duration = optional("What running handlers get to finish when the worker stops.", examples=["30s"])
    send_timeout: Annotated[float, _seconds(positive=True)] = optional(
        "A send that the broker has not confirmed within this fails.", examples=["10s"]
    )
    send_buffer: Annotated[int, _whole(1, 100_000_000)] = optional(
        "Messages of one process that may wait for the broker's confirmation.", examples=[100_000]
    )
    max_message_bytes: Annotated[int, _whole(1, 100_000_000)] = optional(
        "The largest body, in bytes of UTF-8.", examples=[1_000_000]
    )
    ledger: Annotated[str, _ledger()] = optional(
        "Where it is remembered what became of messages: sqlite:PATH, or off.",
        examples=["sqlite:.platform/ledger.db", "off"],
    )
