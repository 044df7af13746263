"""What a group has committed, asked of a server that cannot say it now: that is no answer, and least of all "nothing"."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.commit import OffsetFetchResponse_v3

from handrail.adapter import BrokerSettings
from handrail_kafka.cluster import Cluster
from handrail_kafka.options import parse
from handrail_kafka.progress import Stand

TPS = [TopicPartition("work", 0), TopicPartition("work", 1)]


class Site:
    """A cluster whose server gives the answers that it is told to, one after another, the last of them for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.looked_for = 0
        self.cluster = Cluster(parse(BrokerSettings("default", "kafka://nowhere", "/")), "kafka://nowhere")
        admin = self.cluster._admin = AIOKafkaAdminClient(bootstrap_servers="nowhere")
        admin._send_request = self.send
        admin.find_coordinator = self.coordinator
        admin.list_consumer_groups = self.groups

    async def coordinator(self, _group: str) -> int:
        self.looked_for += 1
        return 1

    async def groups(self) -> list[tuple[str, str]]:
        return [("mine", "consumer"), ("another", "consumer")]

    async def send(self, _request: Any, _node: int) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def told(offset: int, code: int = 0) -> Any:
    """Where the group stands in the first partition; in the second it has committed nothing."""
    return OffsetFetchResponse_v3(0, [("work", [(0, offset, "", code), (1, -1, "", 0)])], 0)


def refused(kind: Any) -> Any:
    """What is wrong with the group as a whole, and nothing of its partitions."""
    return OffsetFetchResponse_v3(0, [], kind.errno)


@pytest.mark.parametrize(
    "kind",
    [errors.CoordinatorLoadInProgressError, errors.CoordinatorNotAvailableError, errors.NotCoordinatorError],
)
async def test_a_coordinator_that_loads_or_moves_is_asked_again(kind: Any) -> None:
    """While it cannot say where the group stands it is looked for anew, and asked until it can."""
    site = Site(refused(kind), refused(kind), told(7))

    assert await site.cluster.stands("mine", TPS) == {TPS[0]: Stand(7), TPS[1]: None}
    assert site.looked_for == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refused(errors.GroupAuthorizationFailedError), errors.GroupAuthorizationFailedError),
        (told(-1, errors.TopicAuthorizationFailedError.errno), errors.TopicAuthorizationFailedError),
    ],
)
async def test_a_refusal_to_say_where_a_group_stands_is_told(answer: Any, kind: Any) -> None:
    """Who may not know it does not take it for nothing."""
    with pytest.raises(kind):
        await Site(answer).cluster.stands("mine", TPS)


async def test_what_a_group_has_read_that_we_may_not_ask_is_not_known() -> None:
    """Then nobody can say that a topic is ours alone, and nothing of it is deleted."""
    site = Site(told(7), refused(errors.GroupAuthorizationFailedError))
    site.cluster.partitions = {"work": 2}

    assert await site.cluster.groups_on("work") is None
