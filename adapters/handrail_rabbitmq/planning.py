"""What queues need on a server and how it stands there. It asks, and makes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from handrail.adapter import Planned, QueueSpec
from handrail_rabbitmq.link import GoneError
from handrail_rabbitmq.looking import Looking
from handrail_rabbitmq.names import HEAD, Hop, hops, level_queue, levels
from handrail_rabbitmq.publishing import Publisher
from handrail_rabbitmq.topology import Topology, arguments, delay_arguments, difference

#: Reply codes of the server: no right to it, in the hands of another connection, and there with other arguments.
_NO_RIGHT, _LOCKED, _OTHERWISE = 403, 405, 406


class Planning:
    """One look at what *specs* need. *topology* must be one that may make nothing; *never*: nor may anybody else."""

    def __init__(self, topology: Topology, publisher: Publisher, looking: Looking, *, never: bool) -> None:
        self._topology = topology
        self._publisher = publisher
        self._looking = looking
        self._never = never

    async def plan(self, specs: Sequence[QueueSpec]) -> list[Planned]:
        """See ``Adapter.plan``. Raises :class:`BrokerError` and :class:`GoneError`."""
        topology = self._topology
        planned: dict[str, Planned] = {}
        for spec in specs:
            for name, detail in (
                (topology.full(spec.name), ""),
                (topology.dead(spec.name), f"dead letters of {spec.name}"),
            ):
                if name is not None and name not in planned:
                    planned[name] = await self._queue(name, topology.kind(spec.name), detail)
        registry = topology.names.registry
        stands = await topology.there(registry, exchange=True)
        later: list[Planned] = []
        for spec in specs:
            later += _levels(topology, spec.name, await self._made_levels(spec.name, registry=stands))
        later += await self._delays([topology.full(spec.name) for spec in specs], registry=stands)
        keys = {"type": "direct", "binding keys": "one a level and delay that exists"}
        later.append(_planned("exchange", registry, keys, "says what was made besides the queues", there=stands))
        return [*planned.values(), *later]

    async def _queue(self, name: str, kind: str, detail: str) -> Planned:
        if not await self._topology.there(name):
            return Planned("queue", name, "missing", _text(arguments(kind)), detail)
        if self._never:
            return Planned("queue", name, "there", {}, detail)
        differs, note = await self._mismatch(name, kind)
        detail = "; ".join(part for part in (detail, note) if part)
        return Planned("queue", name, "differs" if differs else "there", _text(arguments(kind)), detail)

    async def _mismatch(self, name: str, kind: str) -> tuple[bool, str]:
        """Whether the queue *name* is other than a start asks for, and in what."""
        found = await self._declared(name, arguments(kind))
        if found[0]:
            # the server names the first argument that differs by its own order; the type says most
            of_type = await self._declared(name, {"x-queue-type": kind})
            if "x-queue-type" in of_type[1]:
                return of_type
        return found

    async def _declared(self, name: str, asked: dict[str, Any]) -> tuple[bool, str]:
        """What the server says to a queue that it has, declared once more: AMQP has no other question for arguments."""
        async with self._topology.channel() as channel:
            try:
                await channel.ask(channel.raw.queue_declare, name, durable=True, arguments=asked)
            except GoneError as error:
                if channel.code == _NO_RIGHT:
                    return False, "its arguments cannot be compared without the right to configure it"
                if channel.code not in (_LOCKED, _OTHERWISE):
                    raise
                found = difference(str(error))
                return True, f"has {found[0]} {found[1]}, asked for is {found[2]}" if found else str(error)
        return False, ""

    async def _made_levels(self, queue: str, *, registry: bool) -> set[int | str]:
        if self._never:
            return set(await self._looking.levels(queue))
        if not registry:
            return set()
        keys = {f"{self._topology.full(queue)}>{level}": level for level in levels()}
        return {keys[key] for key in await self._publisher.ask_registry(list(keys))}

    async def _made_hops(self, *, registry: bool) -> set[Hop]:
        if self._never:
            return set(await self._looking.hops())
        if not registry:
            return set()
        keys = {f"delay>{hop}": hop for hop in hops()}
        return {keys[key] for key in await self._publisher.ask_registry(list(keys))}

    async def _delays(self, queues: list[str], *, registry: bool) -> list[Planned]:
        names = self._topology.names
        made = await self._made_hops(registry=registry)
        any_delay = bool(made) or (self._never and await self._topology.there(names.entry, exchange=True))
        first, needed = "made with the first delay", "made with the first delay that needs it"
        planned = [
            _planned(
                "exchange", names.entry, {"type": "direct", "binding keys": ">1e1 … >9e10"}, first, there=any_delay
            ),
            _planned(
                "exchange",
                names.out,
                {"type": "direct", "binding keys": ", ".join(queues), "alternate-exchange": names.lost},
                first,
                there=any_delay,
            ),
            _planned("exchange", names.lost, {"type": "fanout"}, first, there=any_delay),
            _planned(
                "queue", names.lost, _text(arguments("quorum")), "for messages whose queue was deleted", there=any_delay
            ),
        ]
        for power in sorted({hop.power for hop in hops()}):
            keys = f"{power}>., {power}>1e1 … {power}>9e{power - 1}" if power > 1 else "1>."
            there = any(hop.power == power for hop in made)
            settings = {"type": "direct", "binding keys": keys}
            planned.append(_planned("exchange", names.step(power), settings, needed, there=there))
        planned += [
            _planned("queue", names.delay_queue(hop), _text(delay_arguments(names, hop)), needed, there=hop in made)
            for hop in hops()
        ]
        return planned


def _levels(topology: Topology, queue: str, made: set[int | str]) -> list[Planned]:
    settings = _text(arguments(topology.kind(queue)))
    planned = []
    for level in levels():
        what = "interrupted work" if level == HEAD else f"messages of priority {level}"
        detail = f"{what} of {queue}; made with the first"
        planned.append(
            _planned("queue", level_queue(topology.full(queue), level), settings, detail, there=level in made)
        )
    return planned


def _planned(kind: str, name: str, settings: dict[str, str], detail: str, *, there: bool) -> Planned:
    return Planned(kind, name, "there" if there else "later", settings, detail)


def _text(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
