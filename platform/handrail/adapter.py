"""The port: everything handrail asks of a broker. It holds no code of any broker and imports none.

How each operation is carried out on each broker, and what an adapter must never do, is told in
``docs/writing-an-adapter.md``. An adapter is a class found by URL scheme through the entry-point group
``handrail.adapters``; ``load`` makes one. All its methods are called on one event loop, the one it was opened on.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from handrail.errors import BrokerError, SendError
from handrail.message import Message

#: The group of entry points in which a distribution announces an adapter, under its URL scheme.
GROUP = "handrail.adapters"

Role = Literal["worker", "client", "forwarder"]
State = Literal["ready", "delayed", "active", "dead"]


class BrokerSettings(msgspec.Struct, frozen=True):
    """Where a broker is and how to speak to it."""

    #: The name under ``brokers:``, or ``default``.
    name: str
    #: The URL as written, secrets included: never print it, print :func:`handrail.adapter.masked`.
    url: str
    #: Absolute path of the project, from which relative paths in the URL count.
    root: str
    #: Goes before every name that is created on the broker.
    prefix: str = ""
    #: Further keys of the broker's mapping in queues.yaml, for the adapter to check.
    options: dict[str, Any] = {}

    def __repr__(self) -> str:
        # it stands in tracebacks and logs of other people's tools, and any option may be a secret
        return f"BrokerSettings(name={self.name!r}, url={masked(self.url)!r}, options={sorted(self.options)})"


#: In which order a queue's messages run: oldest or newest first; by key, one after another of each key; or by partition.
Order = Literal["fifo", "lifo", "key", "partition"]


class QueueSpec(msgspec.Struct, frozen=True):
    """What an adapter must know of a queue to create and serve it."""

    name: str
    order: Order = "fifo"
    #: Name of the place for its dead letters, None when they are dropped.
    dead_letter: str | None = None
    #: Keys of the queue that belong to this broker alone, such as ``queue_type``.
    options: dict[str, Any] = {}


class Delivery(msgspec.Struct, eq=False):
    """One message in this worker's hands, until it is settled or lost."""

    message: Message
    #: The adapter's handle; opaque to everyone else.
    tag: Any
    #: The broker says, or cannot rule out, that it was in somebody's hands before.
    redelivered: bool = False
    #: With ``order: key`` or ``partition``: deliveries of one sequence run one after another, as they came. None: in no order.
    sequence: Hashable = None


class Verb(enum.IntEnum):
    """What a settlement asks of the broker. Each is safe against a crash at any point: the message is never in no place."""

    ACK = 0  #: finished: take it away
    RELEASE = 1  #: back to its queue, at the head of its priority where the broker can; counts may have changed
    MOVE = 2  #: to the tail of ``message.queue``, or to its delays until ``message.due``
    DEAD = 3  #: to the dead letters of the queue it came from, with ``message.fault``
    #: It stays in this worker's hands, to be settled later; its counts and ``due`` are written down, so that they outlive the
    #: worker. Asked only of deliveries that have a ``sequence``.
    HOLD = 4


class Settlement(msgspec.Struct, eq=False):
    """One delivery and what is to become of it. ``message`` is the message as it shall stand in the broker from now on."""

    delivery: Delivery
    verb: Verb
    message: Message | None = None  #: None for ACK, and for RELEASE of what never started


class Depth(msgspec.Struct, frozen=True):
    """Messages of one queue by state. None: this broker cannot say."""

    ready: int | None
    delayed: int | None
    active: int | None
    dead: int | None


class Hold(msgspec.Struct, frozen=True):
    """For how long a broker leaves a delivery in a worker's hands before it gives the message out again."""

    seconds: float
    #: One line: whose setting it is, and what to do about a handler that takes longer.
    mend: str


class Planned(msgspec.Struct, frozen=True):
    """One thing that queues need on the broker, and how it stands there."""

    #: What it is called on that broker: ``queue``, ``exchange``, ``topic``, ``file`` …
    kind: str
    name: str
    #: ``there`` as wanted, or taken as it is · ``missing``: a start makes it, or cannot do without it where it may not ·
    #: ``later``: made when a message first needs it · ``differs``: there with other settings, which a start refuses.
    state: Literal["there", "missing", "later", "differs"]
    #: With what settings it is made; empty where it is not ours to make.
    settings: dict[str, str] = {}
    #: One line: what differs, what for or when it is made.
    detail: str = ""


class Health(msgspec.Struct, frozen=True):
    """Whether messages flow. ``up`` means subscribed and progressing, not merely connected; true within 10 s."""

    up: bool
    #: One line: what is wrong, or what is up.
    detail: str


Deliver = Callable[[list[Delivery]], None]
Lost = Callable[[list[Delivery]], None]
Recall = Callable[[list[Delivery]], None]


class Subscription(Protocol):
    """A worker's claim on a queue's messages. Credit is the number of unsettled deliveries it may hold."""

    def set_credit(self, credit: int) -> None:
        """Hold at most *credit* unsettled deliveries from now on; what is already held is kept."""

    def pause(self) -> None:
        """Deliver nothing more until :meth:`resume`; what was delivered stays valid."""

    def resume(self) -> None: ...

    async def cancel(self) -> None:
        """Deliver nothing more, ever; returns when that is certain. What was delivered can still be settled."""


class Adapter(Protocol):
    """One broker. See the module's docstring and ``docs/writing-an-adapter.md``."""

    #: What users read in logs: ``sqlite``, ``rabbitmq``.
    name: str
    #: Where this worker's processes note what is running (see ``handrail.board``), set before :meth:`open` as a worker;
    #: None without one. An adapter that can keep the path where its owner's death is noticed learns from it what was running.
    board: Path | None
    #: Whether delayed messages need a process of ours to be moved on when they fall due. Any worker does that; opened as a
    #: *forwarder* an adapter does it alone. Where the broker sees to it, nobody opens one so.
    forwards: bool
    #: For each :class:`Capability`: True, or one line that states the limit.
    capabilities: Mapping[Capability, bool | str]
    #: None: a delivery may be in hand for as long as its worker lives. Workers warn at start of handlers that may take longer.
    hold: Hold | None

    def __init__(self, settings: BrokerSettings) -> None:
        """Check *settings* without I/O; raises :class:`BrokerError` for a URL or option that cannot work."""

    @property
    def place(self) -> str:
        """Where the messages lie, for people: the URL with its password masked, or an absolute path."""

    async def open(self, role: Role) -> None:
        """Connect. A *client* publishes and inspects; a *worker* subscribes too; a *forwarder* moves delayed messages on.

        Raises :class:`BrokerError` for what waiting does not mend (wrong password, corrupt file, newer schema);
        what waiting may mend it retries by itself in the background, saying so once.
        """

    async def close(self) -> None:
        """Give back what is held, flush, disconnect. Safe to call twice and after a failed open."""

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make sure the queues exist as *queues* says. Idempotent; deletes nothing."""

    async def plan(self, queues: Sequence[QueueSpec]) -> list[Planned]:
        """What *queues* need on the broker and how it stands there. Makes nothing, not even what :meth:`open` would make.

        Called on an adapter that is not open, and leaves it so: it connects by itself. Raises :class:`BrokerError`.
        """

    async def publish(self, messages: Sequence[Message], timeout: float) -> dict[int, SendError]:
        """Store *messages*, in their order; returns when their fate is known, at the latest after *timeout* seconds.

        The result names, by index, those that are not known to be durable; empty means all are.
        """

    async def subscribe(
        self, queue: QueueSpec, credit: int, deliver: Deliver, lost: Lost, recall: Recall | None = None
    ) -> Subscription:
        """Call *deliver* with batches of what the queue holds, due messages only, best priority first.

        *lost* is told of deliveries that are no longer ours (connection, partition or lease gone): settling them is refused.
        *recall* asks for deliveries that are better in another worker's hands: those that do not run are given back.
        """

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Carry out *settlements*; returns when they are durable enough that no crash undoes them.

        Returns those that were refused because the delivery was no longer ours. Retries by itself while the broker
        is away, for as long as the deliveries stay ours. Raises only when the adapter is closed.
        """

    async def catch_up(self) -> None:
        """Return when the broker has answered anew, and *lost* was told of all that it gave to others while we stood still.

        Raises :class:`BrokerError` where it cannot be asked.
        """

    async def depth(self, queue: str) -> Depth: ...

    async def peek(self, queue: str, state: State, limit: int, offset: int = 0) -> list[Message]:
        """Up to *limit* messages in their order of delivery (dead letters: newest first), without touching them."""

    async def find(self, queue: str, state: State, message_id: str) -> Message | None: ...

    async def purge(self, queue: str, state: State, ids: Sequence[str] | None = None) -> int:
        """Delete messages that nobody works on, all of *state* or those of *ids*; returns how many."""

    async def replay(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Dead letters back to the tail of their queue, counters reset, in the order of their deaths; returns how many."""

    def health(self) -> Health: ...


class Capability(enum.StrEnum):
    """What brokers differ in. The value is the row's name in the README's table."""

    DELAY = "delays and retries in the broker"
    PRIORITY = "ten priorities"
    LIFO = "newest first (`order: lifo`)"
    HEAD = "interrupted work returns to the head"
    FIFO = "equal priorities first in, first out"
    BY_KEY = "one after another by key (`order: key`)"
    BY_PARTITION = "one after another by partition (`order: partition`)"
    DEAD_LETTERS = "dead letters: list, replay, purge"
    PEEK = "peek at waiting messages"
    PURGE = "purge"
    DEPTH = "depth by state"
    CRASHES = "crash counts survive the machine's processes"
    DEAD_WORKER = "a dead worker's messages return at once"
    PROCESSES = "several processes share a queue"
    MACHINES = "several machines share a queue"
    FAIR = "a busy worker keeps nothing from an idle one"
    FOREIGN = "other clients and languages can send and read"


class _Factory(Protocol):
    def __call__(self, settings: BrokerSettings) -> Adapter: ...


def schemes() -> list[str]:
    """The URL schemes that some installed distribution has an adapter for."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


#: Schemes we know adapters for, and the extra that brings each.
EXTRAS = {"amqp": "rabbitmq", "amqps": "rabbitmq", "kafka": "kafka"}


def load(settings: BrokerSettings) -> Adapter:
    """The adapter for ``settings.url``, by its scheme. Raises :class:`BrokerError` when there is none."""
    scheme = settings.url.partition(":")[0].lower()
    for entry in entry_points(group=GROUP, name=scheme):
        try:
            factory: _Factory = entry.load()
        except ImportError as error:
            extra = EXTRAS.get(scheme)
            mend = f"pip install 'handrail[{extra}]'" if extra else f"install what {entry.value} needs"
            raise BrokerError(f"broker {settings.name!r}: {scheme}:// needs {error.name or error}; {mend}") from error
        except AttributeError as error:
            raise BrokerError(
                f"broker {settings.name!r}: the adapter {entry.value} for {scheme}:// is not there; reinstall what brings it"
            ) from error
        return factory(settings)
    if scheme in EXTRAS:
        raise BrokerError(
            f"broker {settings.name!r}: this installation has no adapter for {scheme}://; "
            f"pip install 'handrail[{EXTRAS[scheme]}]'"
        )
    raise BrokerError(
        f"broker {settings.name!r}: no adapter for {masked(settings.url)!r}; use one of {', '.join(s + ':' for s in schemes())}"
    )


#: Query parameters whose names say that their value is a secret.
_SECRET = re.compile(r"([?&][^=&#]*(?:pass|secret|token|key)[^=&#]*=)[^&#]*", re.IGNORECASE)


def masked(url: str) -> str:
    """*url* with any password replaced by ``***``: the only form in which a broker's URL may be shown."""
    head, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    if not separator and ":" not in rest.partition("@")[0]:
        return url
    rest = _SECRET.sub(r"\1***", rest)
    # the last @ of all that a password could reach ends the credentials: an unescaped one may hold @ and /
    authority, slash, path = rest.partition("/")
    credentials, at, host = authority.rpartition("@")
    if ("@" in path and ":" in (credentials or authority)) or not at:
        credentials, at, host = rest.rpartition("@")
        slash = path = ""
    if not at:
        return head + separator + rest
    user, colon, _password = credentials.partition(":")
    return f"{head}{separator}{user}{':***' if colon else ''}@{host}{slash}{path}"
