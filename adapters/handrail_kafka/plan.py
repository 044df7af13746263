"""What queues need on a cluster and how it stands there. It asks, and makes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiokafka import errors
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from handrail.adapter import Planned, QueueSpec
from handrail_kafka.cluster import Cluster
from handrail_kafka.cluster import settings as topic_settings
from handrail_kafka.names import Names
from handrail_kafka.options import Options, of_queue

#: The settings that decide whether a topic keeps what was not handled.
_KEPT = ("retention.ms", "cleanup.policy", "min.insync.replicas")


async def plan(cluster: Cluster, names: Names, options: Options, queues: Sequence[QueueSpec]) -> list[Planned]:
    """See ``Adapter.plan``. Existing topics are used as they are, so none ``differs``; what they have is in the detail."""
    await cluster.refresh()
    planned: dict[str, Planned] = {}
    dead = [names.queue(queue.dead_letter) for queue in queues if queue.dead_letter is not None]
    ours = [*(topic for queue in queues for topic in names.levels(queue.name).values()), *dead, *names.tiers()]
    kept = await _settings(cluster, [topic for topic in dict.fromkeys(ours) if topic in cluster.partitions])

    roomy = {*dead, *names.tiers()}

    def add(topic: str, partitions: int, replication: int | None, detail: str, *, later: bool = False) -> None:
        if topic in planned:
            return
        found = cluster.partitions.get(topic)
        if found is None:
            copies = cluster.copies(replication)
            settings = {
                "partitions": str(partitions),
                "replication": str(copies),
                **topic_settings(copies, compact=topic == names.register, roomy=topic in roomy),
            }
            planned[topic] = Planned("topic", topic, "later" if later else "missing", settings, detail)
        else:
            settings = {"partitions": str(found), **kept.get(topic, {})}
            other = f"queues.yaml asks for partitions: {partitions}" if found != partitions and not later else ""
            planned[topic] = Planned("topic", topic, "there", settings, "; ".join(filter(None, (detail, other))))

    for queue in queues:
        asked = of_queue(options, queue.name, queue.options)
        add(names.queue(queue.name), asked.partitions, asked.replication, "")
    for queue in queues:
        if queue.dead_letter is not None:
            add(names.queue(queue.dead_letter), 1, options.replication, f"dead letters of {queue.name}")
    add(names.tier_for(0.0), 1, options.replication, "delays")
    add(
        names.register,
        1,
        options.replication,
        "which groups have handled what; made with the first message",
        later=True,
    )
    for queue in queues:
        asked = of_queue(options, queue.name, queue.options)
        for low, topic in names.levels(queue.name).items():
            detail = f"priorities from {low} of {queue.name}; made with the first such message"
            add(topic, asked.partitions, asked.replication, detail, later=True)
    for topic in names.tiers():
        add(topic, 1, options.replication, "delays; made with the first delay that needs it", later=True)
    return list(planned.values())


async def _settings(cluster: Cluster, topics: Iterable[str]) -> dict[str, dict[str, str]]:
    """What decides whether each topic keeps its messages; nothing where this user may not see it."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    try:
        responses = await cluster._client.describe_configs(resources) if resources else []
    except errors.KafkaError:
        return {}
    return {
        resource[3]: {entry[0]: str(entry[1]) for entry in resource[4] if entry[0] in _KEPT}
        for response in responses
        for resource in response.resources
    }
