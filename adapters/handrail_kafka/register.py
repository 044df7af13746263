"""Which groups have handled messages of which partitions: what tells a position that was lost from one that never was.

Kafka forgets the offsets of a group that was empty for a week, and then a topic that still begins at 0 looks as if nobody had
ever read it. So one compacted topic holds a record for each partition that a group has finished something of. It is written
once, and read only where a position is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiokafka import TopicPartition

from handrail_kafka.cluster import Cluster
from handrail_kafka.producer import Producer


class Register:
    """All that is known of one project's groups."""

    def __init__(self, cluster: Cluster, topic: str, producer: Producer) -> None:
        self._cluster = cluster
        self._topic = topic
        self._producer = producer

    async def add(self, group: str, tp: TopicPartition, topic_id: str) -> None:
        """*group* has finished something of *tp*, whose topic has that id. Raises BrokerError and aiokafka's errors."""
        await self._cluster.create({self._topic: 1}, self._cluster.options.replication, compact=True)
        await self._producer.store(self._topic, _key(group, tp), topic_id.encode())

    async def known(self, group: str, ids: Mapping[TopicPartition, str]) -> set[TopicPartition]:
        """Those of *ids* of which *group* has finished something; for each partition the id of its topic, if there is one."""
        if not await self._cluster.exists(self._topic):
            return set()
        wanted = {_key(group, tp): tp for tp in ids}
        found: dict[TopicPartition, str] = {}
        mine = [TopicPartition(self._topic, 0)]
        begins, ends = await self._cluster.begins(mine), await self._cluster.ends(mine)
        async for records in self._cluster.read({one: (begins[one], ends[one]) for one in mine}):
            for record in records:
                tp = wanted.get(record.key or b"")
                if tp is not None:
                    found[tp] = (record.value or b"").decode("ascii", "replace")
        # a topic that was made anew has other messages
        return {tp for tp, topic_id in found.items() if not ids[tp] or not topic_id or topic_id == ids[tp]}


def _key(group: str, tp: TopicPartition) -> bytes:
    """The key of the record about *tp* as *group* reads it."""
    return msgspec.json.encode({"group": group, "topic": tp.topic, "partition": tp.partition})
