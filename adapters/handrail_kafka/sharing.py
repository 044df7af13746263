"""How the members of a consumer group share its partitions: each keeps what it has, as far as the shares stay even.

No partition moves while anything of it is in its owner's hands, for what runs there would run again elsewhere. One that
should move is *wanted*: its owner begins nothing more of it, and joins anew when nothing of it is in hand; then it moves.
It talks to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What a member says when it joins."""

    #: The generation in which it had them; of two who claim the same, the later has it.
    generation: int
    #: Topic, partition, and how many messages of it are in hand, or finished and not known to be committed.
    had: list[tuple[str, int, int]]


Places = dict[str, list[TopicPartition]]


def share(
    partitions: Mapping[str, Iterable[int]], members: Mapping[str, tuple[frozenset[str], Claim]]
) -> tuple[Places, Places]:
    """Who gets what of *partitions* (topic → numbers), and what of it is wanted of whom.

    *members* by name, each with the topics that it reads and its claim.
    """
    every = {TopicPartition(topic, number) for topic, numbers in partitions.items() for number in numbers}
    owners: dict[TopicPartition, str] = {}
    held: dict[TopicPartition, int] = {}
    for name, (topics, claim) in sorted(members.items(), key=lambda one: (-one[1][1].generation, one[0])):
        for topic, number, count in claim.had:
            tp = TopicPartition(topic, number)
            if tp in every and topic in topics and tp not in owners:
                owners[tp] = name
                held[tp] = count
    found: Places = {name: [] for name in members}
    wanted: Places = {}
    for tp, name in owners.items():
        found[name].append(tp)
    least, more = divmod(len(every), len(members)) if members else (0, 0)
    for name in sorted(found, key=lambda name: (-len(found[name]), name)):
        most = least + (more > 0)
        more -= len(found[name]) >= most and more > 0
        found[name].sort(key=lambda tp: (-held[tp], tp))
        wanted[name] = [tp for tp in found[name][most:] if held[tp]]
        most += len(wanted[name])  # what is in hand comes first
        for tp in found[name][most:]:
            del owners[tp]
        del found[name][most:]
    for tp in sorted(every - owners.keys()):
        readers = [name for name, (topics, _claim) in members.items() if tp.topic in topics]
        if readers:
            found[min(readers, key=lambda name: (len(found[name]), name))].append(tp)
    return {name: sorted(tps) for name, tps in found.items()}, wanted


class Sharing:
    """The assignor of one member, in the shape that aiokafka asks for."""

    name = "handrail"
    version = 0

    def __init__(self, claim: Callable[[], Claim]) -> None:
        self._claim = claim
        #: What others should have of that which this member was given last.
        self.wanted: set[TopicPartition] = set()

    def metadata(self, topics: Iterable[str]) -> Any:
        return ConsumerProtocolMemberMetadata(self.version, list(topics), msgspec.msgpack.encode(self._claim()))

    def assign(self, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        topics = {topic for member in members.values() for topic in member.subscription}
        partitions = {topic: cluster.partitions_for_topic(topic) or () for topic in topics}
        shares, wanted = share(
            partitions,
            {name: (frozenset(member.subscription), _claim(member.user_data)) for name, member in members.items()},
        )
        return {
            name: ConsumerProtocolMemberAssignment(
                self.version, _by_topic(tps), msgspec.msgpack.encode(_by_topic(wanted[name])) if wanted[name] else b""
            )
            for name, tps in shares.items()
        }

    def on_assignment(self, assignment: Any) -> None:
        try:
            found = msgspec.msgpack.decode(assignment.user_data or b"\x90", type=list[tuple[str, list[int]]])
        except msgspec.DecodeError:  # of a leader that is not ours
            found = []
        self.wanted = {TopicPartition(topic, number) for topic, numbers in found for number in numbers}


def _by_topic(tps: Iterable[TopicPartition]) -> list[tuple[str, list[int]]]:
    found: dict[str, list[int]] = {}
    for tp in tps:
        found.setdefault(tp.topic, []).append(tp.partition)
    return sorted(found.items())


def _claim(data: bytes | None) -> Claim:
    try:
        return msgspec.msgpack.decode(data or b"", type=Claim)
    except msgspec.DecodeError:  # not ours: it had nothing that we know of
        return Claim(-1, [])
