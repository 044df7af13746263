"""What handrail creates on a server: queues, their levels, dead letters and delays. It creates, and never deletes or changes.

Only queues and their dead-letter queues are made ahead. Level queues and delay queues are made when the first message needs
them, by whoever sends it. What was made is noted as a binding of the *registry*, an exchange that leads nowhere: asking it is
publishing to it with the mandatory flag, which disturbs nothing and fills no log of the server with errors.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from handrail.adapter import QueueSpec
from handrail.errors import BrokerError
from handrail.logger import get_logger
from handrail.message import DEFAULT_PRIORITY
from handrail_rabbitmq.link import FORBIDDEN, Channel, GoneError, Link
from handrail_rabbitmq.names import HEAD, Hop, Names, level_queue
from handrail_rabbitmq.place import Place

log = get_logger("handrail.rabbitmq")

#: Seconds that an operation which only a standing connection can carry out waits for one.
PATIENCE = 5.0
#: Deliveries after which a server dead-letters by itself. Clean closes count, too, so only the highest number is safe.
DELIVERY_LIMIT = 2**31 - 1
#: Seconds for which a level or a part of the delays that the server does not have is not asked for again: with
#: ``declare: never`` there is no other way to know than a question that the server writes into its log.
LEVEL_AGAIN, DELAY_AGAIN = 300.0, 10.0

_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?P<kind>queue|exchange) '(?P<queue>[^']*)'.*?: "
    r"received (?P<ours>.*?) but current is (?P<theirs>.*)"
)
_VALUE = re.compile(r"(?:the value )?'(?P<value>[^']*)'(?: of type '[^']*')?|none")


class Topology:
    """What is known to be there, and the making of what is not."""

    def __init__(self, place: Place, prefix: str, link: Callable[[], Awaitable[Link]]) -> None:
        """*link*: the connection by which to ask."""
        self.place = place
        self.names = Names(prefix)
        self.prefix = prefix
        self._link = link
        self._specs: dict[str, QueueSpec] = {}
        # since the last connection: what an operator deletes meanwhile shows when a message comes back
        self._made: set[str] = set()
        #: What was not there, and when that was: with ``declare: never`` alone.
        self._absent: dict[str, float] = {}
        self._told: set[str] = set()
        self._making = asyncio.Lock()
        #: Told of (queue with prefix, level) when this process made a level.
        self.made_level: Callable[[str, int | str], None] = lambda _queue, _level: None

    def forget(self) -> None:
        """Something that was known to be there is not: look again before the next message."""
        self._made.clear()

    # --- channels -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """A throw-away channel, so that what the server refuses harms nothing else. Raises :class:`BrokerError`."""
        link = await self._link()
        await link.ready(PATIENCE)
        try:
            channel = await link.channel()
        except GoneError as error:
            raise BrokerError(f"{self.place.shown}: {error}") from error
        try:
            yield channel
        except GoneError as error:
            raise self.refusal(error) from error
        finally:
            channel.close()

    def refusal(self, error: GoneError) -> BrokerError:
        """What the server refused, and what to do."""
        text = str(error)
        if (found := _INEQUIVALENT.search(text)) and (differs := difference(text)):
            name, theirs, ours = differs
            return BrokerError(
                f"{self.place.shown}: {found['kind']} {found['queue']!r} exists with {name} {theirs}, but handrail asks for "
                f"{ours}; delete it, set queue_type to what it is, or take it as it is with `declare: never`"
            )
        if error.code == FORBIDDEN:
            return BrokerError(f"{self.place.shown}: {text}; grant it with rabbitmqctl set_permissions")
        return BrokerError(f"{self.place.shown}: {text}")

    # --- queues -------------------------------------------------------------------------------------------------------

    def remember(self, specs: Iterable[QueueSpec]) -> None:
        for spec in specs:
            self._specs[spec.name] = spec

    def kind(self, queue: str) -> str:
        spec = self._specs.get(queue)
        found = spec.options.get("queue_type") if spec is not None else None
        return str(found or self.place.queue_type)

    def full(self, queue: str) -> str:
        return self.prefix + queue

    def dead(self, queue: str) -> str | None:
        """The queue for the dead letters of *queue*, None when they are dropped."""
        spec = self._specs.get(queue)
        if spec is None:
            return f"{self.prefix}{queue}.dead"
        return self.prefix + spec.dead_letter if spec.dead_letter is not None else None

    def check(self, spec: QueueSpec) -> None:
        for name, value in spec.options.items():
            if name != "queue_type":
                raise BrokerError(f"queue {spec.name!r}: unknown option {name!r} for RabbitMQ; there is queue_type")
            if value not in ("quorum", "classic"):
                raise BrokerError(f"queue {spec.name!r}: queue_type must be 'quorum' or 'classic', not {value!r}")

    async def declare(self, specs: Iterable[QueueSpec]) -> None:
        """Make the queues of *specs*, or see that they are there. Raises :class:`BrokerError`."""
        absent: list[str] = []
        for spec in specs:
            names = [self.full(spec.name)]
            if spec.dead_letter is not None:
                names.append(self.prefix + spec.dead_letter)
            for name in names:
                if name in self._made:
                    continue
                if not self.never:
                    await self.make_queue(name, spec.name)
                elif not await self.there(name):
                    absent.append(f"queue {name!r}")
        self._demand(absent)

    async def _declare(self, channel: Channel, name: str, kind: str) -> None:
        await channel.ask(channel.raw.queue_declare, name, durable=True, arguments=arguments(kind))

    # --- declare: never -----------------------------------------------------------------------------------------------

    @property
    def never(self) -> bool:
        """Whether nothing may be made."""
        return self.place.declare == "never"

    def _demand(self, absent: list[str]) -> None:
        if absent:
            raise BrokerError(
                f"{self.place.shown}: there is no {', no '.join(dict.fromkeys(absent))}, and `declare: never` forbids "
                f"making {'it' if len(absent) == 1 else 'them'}"
            )

    async def there(self, name: str, *, exchange: bool = False, again: float = 0.0) -> bool:
        """Whether the server has that queue or exchange; a no is believed for *again* seconds. Raises :class:`BrokerError`."""
        key = _exchange(name) if exchange else name
        if key in self._made:
            return True
        now = time.monotonic()
        if key in self._absent and now - self._absent[key] < again:
            return False
        async with self.channel() as channel:
            ask = channel.raw.exchange_declare if exchange else channel.raw.queue_declare
            try:
                await channel.ask(ask, name, passive=True)
            except GoneError:
                if channel.code != 404:
                    raise
                self._absent[key] = now
                return False
        self._absent.pop(key, None)
        self._made.add(key)
        return True

    async def tell_missing(self, specs: Iterable[QueueSpec]) -> None:
        """Say, in one line and once, what a worker for *specs* can start without and will miss. Raises :class:`BrokerError`."""
        lacking = [
            name
            for spec in specs
            if not await self.there(name := level_queue(self.full(spec.name), HEAD), again=LEVEL_AGAIN)
        ]
        if not await self.there(self.names.entry, exchange=True, again=DELAY_AGAIN):
            lacking.append(self.names.entry)
        if new := [name for name in lacking if name not in self._told]:
            self._told.update(new)
            log.warning(
                "`declare: never`, and the server lacks what some messages need: without a queue .head interrupted work goes "
                "to the tail, without the exchange handrail.delay.in nothing can be delayed or retried after a wait",
                missing=", ".join(new),
            )

    # --- what messages need -------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        return name in self._made

    async def make_queue(self, name: str, queue: str) -> None:
        """The queue *name*, of the type of *queue*."""
        if self.never:
            if not await self.there(name):
                self._demand([f"queue {name!r}"])
            return
        kind = self.kind(queue)
        try:
            async with self.channel() as channel:
                await self._declare(channel, name, kind)
        except BrokerError as error:
            if " exists with " in str(error):
                # the server names the first argument that differs by its own order; the type says most
                async with self.channel() as channel:
                    await channel.ask(channel.raw.queue_declare, name, durable=True, arguments={"x-queue-type": kind})
            raise
        self._made.add(name)

    def has_level(self, queue: str, level: int | str) -> bool:
        name = level_queue(self.full(queue), level)
        return name in self._made or self.target(queue, level) != name

    def target(self, queue: str, level: int | str) -> str:
        """Where messages of *level* of *queue* go, once ``has_level``: the queue itself, where the level cannot be had."""
        name = level_queue(self.full(queue), level)
        if self.never and level != DEFAULT_PRIORITY and name in self._absent:
            return self.full(queue) if time.monotonic() - self._absent[name] < LEVEL_AGAIN else name
        return name

    def has_delay(self, hops: list[Hop], target: str) -> bool:
        return all(key in self._made for key in self._steps(hops, target))

    def _steps(self, hops: list[Hop], target: str) -> list[str]:
        """Notes of everything that the way along *hops* to *target* needs."""
        names = self.names
        return [
            f"{names.entry}>{hops[0]}",
            *(names.delay_queue(hop) for hop in hops),
            *(f"{names.step(before.power)}>{hop}" for before, hop in itertools.pairwise(hops)),
            f"{names.step(hops[-1].power)}>.",
            f"{names.out}>{target}",
        ]

    async def make_level(self, queue: str, level: int | str) -> None:
        """The queue for *level* of *queue*, known to the registry and to every worker that serves *queue*."""
        full = self.full(queue)
        name = level_queue(full, level)
        if self.never:
            if await self.there(name, again=LEVEL_AGAIN):
                if name != full:
                    self.made_level(full, level)
            elif name == full:
                self._demand([f"queue {name!r}"])
            elif name not in self._told:
                self._told.add(name)
                log.warning("`declare: never`, and a level of a queue is not there", missing=name, instead=full)
            return
        async with self.channel() as channel:
            await self._declare(channel, name, self.kind(queue))
            if name != full:
                await self._registry(channel)
                await self._bind(channel, self.names.registry, f"{full}>{level}", self.names.registry)
        self._made.add(name)
        if name != full:
            self.made_level(full, level)

    async def make_delay(self, hops: list[Hop], target: str) -> None:
        """The delay queues of *hops*, and the way through them to the queue *target*: only what is not there yet."""
        names, made = self.names, self._made
        if self.never:
            await self._see_delay(hops)
            made.update(self._steps(hops, target))
            return
        async with self._making, self.channel() as channel:
            raw = channel.raw
            if names.out not in made:
                await self._registry(channel)
                channel.tell(raw.exchange_declare, names.lost, "fanout", durable=True)
                channel.tell(raw.queue_declare, names.lost, durable=True, arguments=arguments("quorum"))
                channel.tell(raw.queue_bind, names.lost, names.lost)
                lost = {"alternate-exchange": names.lost}
                channel.tell(raw.exchange_declare, names.out, "direct", durable=True, arguments=lost)
                await channel.ask(raw.exchange_declare, names.entry, "direct", durable=True)
                made.add(names.out)
            for hop in hops:
                await self._make_hop(channel, hop)
            last = hops[-1].power
            if f"{names.step(last)}>." not in made:
                channel.tell(raw.exchange_bind, names.out, names.step(last), f"{last}>.")
            for before, hop in itertools.pairwise(hops):
                if f"{names.step(before.power)}>{hop}" not in made:
                    channel.tell(
                        raw.queue_bind, names.delay_queue(hop), names.step(before.power), f"{before.power}>{hop}"
                    )
            channel.tell(raw.queue_bind, names.delay_queue(hops[0]), names.entry, f">{hops[0]}")
            await channel.ask(raw.queue_bind, target, names.out, target)
            made.update(self._steps(hops, target))

    async def _see_delay(self, hops: list[Hop]) -> None:
        """Raises :class:`BrokerError` that names what a delay by *hops* needs and the server lacks; bindings do not show."""
        exchanges = dict.fromkeys([self.names.entry, *(self.names.step(hop.power) for hop in hops), self.names.out])
        absent = [
            f"exchange {name!r}" for name in exchanges if not await self.there(name, exchange=True, again=DELAY_AGAIN)
        ]
        queues = [self.names.delay_queue(hop) for hop in hops]
        absent += [f"queue {name!r}" for name in queues if not await self.there(name, again=DELAY_AGAIN)]
        self._demand(absent)

    async def _make_hop(self, channel: Channel, hop: Hop) -> None:
        names, raw = self.names, channel.raw
        name = names.delay_queue(hop)
        if name in self._made:
            return
        channel.tell(raw.exchange_declare, names.step(hop.power), "direct", durable=True)
        channel.tell(raw.queue_bind, names.registry, names.registry, f"delay>{hop}")
        await channel.ask(
            raw.queue_declare,
            name,
            durable=True,
            arguments=delay_arguments(names, hop),
        )
        self._made.add(name)

    @property
    def has_registry(self) -> bool:
        """Whether it may be published to: to one that is not there would close the channel."""
        return not self.never or _exchange(self.names.registry) in self._made

    async def make_registry(self) -> bool:
        """Whether there is a registry; there is, unless it is missing and must not be made."""
        if self.never:
            return await self.there(self.names.registry, exchange=True, again=LEVEL_AGAIN)
        if self.names.registry not in self._made:
            async with self.channel() as channel:
                await self._registry(channel)
        return True

    async def _registry(self, channel: Channel) -> None:
        name = self.names.registry
        if name in self._made:
            return
        await channel.ask(channel.raw.exchange_declare, name, "direct", durable=True)
        # it holds nothing: a question only needs somewhere to go, whichever node of a cluster is away
        nothing = {"x-queue-type": "quorum", "x-max-length": 0}
        await channel.ask(channel.raw.queue_declare, name, durable=True, arguments=nothing)
        self._made.add(name)

    async def _bind(self, channel: Channel, queue: str, key: str, exchange: str) -> None:
        await channel.ask(channel.raw.queue_bind, queue, exchange, key)


def _exchange(name: str) -> str:
    """How an exchange is noted among what was made; no queue has a name like that."""
    return f"exchange {name}"


def arguments(kind: str) -> dict[str, Any]:
    """The arguments of a queue of that type."""
    if kind == "classic":
        return {"x-queue-type": "classic"}
    return {"x-queue-type": "quorum", "x-overflow": "reject-publish", "x-delivery-limit": DELIVERY_LIMIT}


def delay_arguments(names: Names, hop: Hop) -> dict[str, Any]:
    """The arguments of the delay queue of *hop*."""
    return {
        **arguments("quorum"),
        "x-message-ttl": hop.milliseconds,
        "x-dead-letter-exchange": names.step(hop.power),
        "x-dead-letter-strategy": "at-least-once",
    }


def difference(text: str) -> tuple[str, str, str] | None:
    """The argument that the server says in *text* differs, its value there, and the one that was asked for."""
    found = _INEQUIVALENT.search(text)
    return (found["name"], _value(found["theirs"]), _value(found["ours"])) if found is not None else None


def _value(text: str) -> str:
    found = _VALUE.match(text)
    return repr(found["value"]) if found is not None and found["value"] is not None else "none"
