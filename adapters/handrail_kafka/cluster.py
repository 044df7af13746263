"""The cluster apart from the flow of messages: topics, offsets of groups, and reading without a group.

It decides nothing about messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.conn import create_conn
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

from handrail.errors import BrokerError
from handrail.logger import get_logger
from handrail_kafka import faults, progress
from handrail_kafka.ending import stop_consumer
from handrail_kafka.hazards import hazards
from handrail_kafka.options import Options
from handrail_kafka.progress import Stand
from handrail_kafka.topic_ids import TopicIdsRequest, ids_in

T = TypeVar("T")

log = get_logger("handrail.kafka")

#: Seconds for one question to the cluster, retries included.
PATIENCE = 20.0
#: Seconds in which the servers of the URL answer a first question, one after another; each has a second and a half at least.
GREETING = 5.0
#: The largest batch that topics made here take: a body of a megabyte, headers of a failure report and framing fit.
TOPIC_BATCH = 2 << 20
#: The same for dead letters and delays: what a stranger got into a topic that takes more must be able to leave it. Servers
#: take requests of 100 MiB by default.
ROOMY_BATCH = 100_000_000

_RETRY = (
    errors.CoordinatorNotAvailableError,
    errors.NotCoordinatorError,
    errors.CoordinatorLoadInProgressError,
    errors.RequestTimedOutError,
    errors.NodeNotReadyError,
    errors.KafkaConnectionError,
    errors.UnknownTopicOrPartitionError,
    errors.NotLeaderForPartitionError,
    errors.LeaderNotAvailableError,
)


class Cluster:
    """One connection to ask questions with. Methods raise aiokafka's errors; :meth:`connect` raises :class:`BrokerError` too."""

    def __init__(self, options: Options, place: str) -> None:
        self.options = options
        self.place = place
        self._admin: AIOKafkaAdminClient | None = None
        self._asker: AIOKafkaConsumer | None = None
        self._coordinators: dict[str, int] = {}
        #: Partitions by topic, of topics known to exist.
        self.partitions: dict[str, int] = {}
        self._creating = asyncio.Lock()
        self._warned: set[str] = set()
        self._has_ids = True

    @property
    def connected(self) -> bool:
        return self._asker is not None

    async def connect(self) -> None:
        """Connect to any of the servers."""
        await self._probe()
        admin = AIOKafkaAdminClient(**self.options.client(), request_timeout_ms=10_000)
        asker = None
        try:
            await admin.start()
            asker = AIOKafkaConsumer(
                **self.options.client(),
                request_timeout_ms=10_000,
                enable_auto_commit=False,
                isolation_level="read_committed",
            )
            await asker.start()
        except BaseException:
            await admin.close()
            if asker is not None:
                await stop_consumer(asker)
            raise
        self._admin, self._asker = admin, asker

    async def why(self, error: BaseException) -> BaseException:
        """*error*, or what says better why no server could be had."""
        if type(error) is not errors.KafkaConnectionError:
            return error
        try:
            await self._probe()
        except (OSError, errors.KafkaError, TimeoutError) as found:
            return found
        return error

    async def _probe(self) -> None:
        # bootstrapping hides why it failed
        arguments = self.options.client()
        arguments.pop("bootstrap_servers")
        arguments.pop("metadata_max_age_ms")
        found: list[BaseException] = []
        for server in self.options.servers:
            try:
                await self._greet(server, arguments)
            except (OSError, errors.KafkaError, TimeoutError) as error:
                found.append(error)
            else:
                return
        # one server may be down while another knows that the password is wrong
        found.sort(key=lambda error: not faults.is_fatal(error) or isinstance(error, OSError))
        raise found[0]

    async def _greet(self, server: str, arguments: Mapping[str, Any]) -> None:
        """Connect to *server* and ask it something. Raises what says best what is wrong."""
        host, _, port = server.rpartition(":")
        patience = round(max(1.5, GREETING / len(self.options.servers)) * 1000)
        connection = None
        try:
            connection = await create_conn(host.strip("[]"), int(port), request_timeout_ms=patience, **arguments)
            # only here a listener that wants to know who we are closes, and one that refuses a token too
            answer = await connection.send(MetadataRequest([]))
            if not answer.brokers and self.options.mechanism == "OAUTHBEARER":
                # aiokafka takes the refusal for a success, and the server this question for the rest of the handshake
                raise errors.KafkaConnectionError("not authenticated")
        except (errors.KafkaConnectionError, ConnectionResetError, BrokenPipeError, ssl.SSLError) as error:
            if isinstance(error, ssl.SSLCertVerificationError):
                raise
            raise self._unfit(error, greeted=connection is not None) from error
        finally:
            if connection is not None:
                connection.close()

    def _unfit(self, error: BaseException, *, greeted: bool) -> BaseException:
        """What it means that a server took the connection and then ended it; *greeted*: after the first answer."""
        options = self.options
        if options.tls and (alert := faults.refused_identity(error)):
            if options.cert is None:
                return faults.SetupError(f"the server demands a client certificate ({alert}); give cert= and key=")
            return faults.SetupError(
                f"the server does not take the client certificate ({alert}); check cert= and its authority"
            )
        if greeted and options.mechanism == "OAUTHBEARER":
            return faults.SetupError("the server refuses the token; check its audience, its issuer and when it ends")
        if greeted and not options.mechanism:
            return faults.UnfitError(
                "the server closes the connection; does this port want a user and a password (sasl=)?"
            )
        if not options.tls:
            return faults.UnfitError(
                "the server closes the connection at the first word; does this port want TLS (tls=true)?"
            )
        if isinstance(error, ssl.SSLError):
            return error
        return faults.UnfitError("the server closes the connection; does this port speak TLS (tls=true)?")

    async def close(self) -> None:
        admin, self._admin = self._admin, None
        asker, self._asker = self._asker, None
        if asker is not None:
            await stop_consumer(asker)
        if admin is not None:
            await admin.close()

    async def _retrying(self, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await call()
                except _RETRY:
                    self._coordinators.clear()
                    await asyncio.sleep(0.05)

    @property
    def _client(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise BrokerError(f"{self.place}: not connected")
        return self._admin

    # --- topics -------------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Learn which topics there are."""
        client = self._client._client
        try:
            metadata = await client.fetch_all_metadata()
        except errors.KafkaError:
            # a server ends connections that were idle or whose token has ended, and this one learns of it only now
            try:
                metadata = await client.fetch_all_metadata()
            except errors.KafkaError as error:
                raise errors.KafkaConnectionError("no server answers") from error
        found = {}
        for topic in metadata.topics():
            if partitions := metadata.partitions_for_topic(topic):
                found[topic] = len(partitions)
        self.partitions = found

    async def exists(self, topic: str) -> bool:
        if topic not in self.partitions:
            await self.refresh()
        return topic in self.partitions

    def copies(self, replication: int | None) -> int:
        """On how many servers a topic lies where *replication* does not say."""
        return replication or min(3, len(self._client._client.cluster.brokers()) or 1)

    async def create(
        self,
        topics: Mapping[str, int],
        replication: int | None,
        *,
        passing: bool = False,
        compact: bool = False,
        roomy: Collection[str] = (),
    ) -> list[str]:
        """Make sure that *topics* (name → partitions) exist; returns those that were created.

        *passing*: what lies in them is of no worth after an hour. *compact*: only the last record of each key is of any.
        *roomy*: those that take records of any size.
        """
        async with self._creating:
            if all(topic in self.partitions for topic in topics):
                return []
            await self.refresh()
            missing = {topic: count for topic, count in topics.items() if topic not in self.partitions}
            if not missing:
                return []
            copies = self.copies(replication)
            wanted = [
                NewTopic(
                    topic,
                    count,
                    copies,
                    topic_configs=settings(copies, passing=passing, compact=compact, roomy=topic in roomy),
                )
                for topic, count in missing.items()
            ]
            response = await self._retrying(lambda: self._client.create_topics(wanted, timeout_ms=15_000))
            created = []
            for topic, code, *detail in response.topic_errors:
                kind = errors.for_code(code)
                if kind is errors.NoError:
                    created.append(topic)
                elif kind in (errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError):
                    raise errors.TopicAuthorizationFailedError(topic)
                elif kind is not errors.TopicAlreadyExistsError:
                    text = (detail[0] if detail else "") or kind.__name__
                    raise BrokerError(f"{self.place}: topic {topic!r} could not be created: {text}")
            async with asyncio.timeout(PATIENCE):
                while not all(topic in self.partitions for topic in topics):
                    await self.refresh()
                    if not all(topic in self.partitions for topic in topics):
                        await asyncio.sleep(0.02)
            for topic in () if passing or compact else created:
                # a first commit tells later that the topic is ours
                start = {TopicPartition(topic, n): progress.encode(Stand(0, ours=True)) for n in range(missing[topic])}
                # who only sends may not commit, which a worker of the queue does as well
                refused = errors.GroupAuthorizationFailedError, errors.TopicAuthorizationFailedError
                with contextlib.suppress(errors.UnknownMemberIdError, errors.IllegalGenerationError, *refused):
                    await self.commit(topic, start)
            return created

    async def warn_of_losses(self, topics: Iterable[str]) -> None:
        """Say once of each topic that exists which of its settings would lose messages."""
        from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # noqa: PLC0415

        new = [topic for topic in topics if topic not in self._warned and topic in self.partitions]
        if not new:
            return
        self._warned.update(new)
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in new]
        try:
            responses = await self._client.describe_configs(resources)
        except errors.KafkaError:
            return  # a user without the right to see settings may still use the topic
        for response in responses:
            for resource in response.resources:
                name, entries = resource[3], resource[4]
                values = {entry[0]: entry[1] for entry in entries}
                if found := hazards(values, self._copies(name)):
                    log.warning("this topic's settings lose messages", topic=name, settings="; ".join(found))

    def _copies(self, topic: str) -> int:
        partitions = self._client._client.cluster._partitions.get(topic, {})
        return max((len(partition.replicas) for partition in partitions.values()), default=1)

    def tps(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, n) for n in range(self.partitions.get(topic, 0))]

    async def ids(self, topics: Collection[str]) -> dict[str, str]:
        """The ids of *topics*, of those that exist; of none where the servers know no ids (before Kafka 2.8)."""
        if not topics or not self._has_ids:
            return {}
        try:
            return ids_in(await self._retrying(lambda: self._client._send_request(TopicIdsRequest(topics))))
        except NotImplementedError:
            self._has_ids = False
            return {}

    # --- offsets ------------------------------------------------------------------------------------------------------

    async def _offsets(self, tps: Sequence[TopicPartition], which: str) -> dict[TopicPartition, int]:
        asker = self._asker
        if asker is None:
            raise BrokerError(f"{self.place}: not connected")
        if not tps:
            return {}
        for topic in {tp.topic for tp in tps}:
            await asker._client._wait_on_metadata(topic)
        found: dict[TopicPartition, int] = await self._retrying(functools.partial(getattr(asker, which), list(tps)))
        return found

    async def begins(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets(tps, "beginning_offsets")

    async def ends(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets(tps, "end_offsets")

    async def _coordinator(self, group: str) -> int:
        if group not in self._coordinators:
            self._coordinators[group] = await self._client.find_coordinator(group)
        return self._coordinators[group]

    async def committed(self, group: str, tps: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """Offset and text that *group* has committed of each of *tps* of which it has committed anything.

        aiokafka has questions of its own for this. They overlook what is wrong with the group as a whole: while its
        coordinator loads or moves they find nothing, as if nothing had ever been committed.
        """
        by_topic: dict[str, list[int]] = {}
        for tp in tps:
            by_topic.setdefault(tp.topic, []).append(tp.partition)

        async def ask() -> dict[TopicPartition, tuple[int, str]]:
            node = await self._coordinator(group)
            response = await self._client._send_request(OffsetFetchRequest(group, list(by_topic.items())), node)
            kind = errors.for_code(response.error_code)
            if kind is not errors.NoError:
                raise kind(group)
            found = {}
            for topic, partitions in response.topics:
                for partition, offset, text, code in partitions:
                    kind = errors.for_code(code)
                    if kind is not errors.NoError:
                        raise kind(group if kind is errors.GroupAuthorizationFailedError else topic)
                    if offset >= 0:
                        found[TopicPartition(topic, partition)] = offset, text or ""
            return found

        return await self._retrying(ask) if tps else {}

    async def stands(self, group: str, tps: Sequence[TopicPartition]) -> dict[TopicPartition, Stand | None]:
        """What *group* has committed of each partition; None is nothing."""
        found = await self.committed(group, tps)
        return {tp: progress.decode(*found[tp])[0] if tp in found else None for tp in tps}

    async def commit(self, group: str, commits: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Commit for a group without members. Raises UnknownMemberIdError while it has some."""
        by_topic: dict[str, list[tuple[int, int, str]]] = {}
        for tp, (offset, text) in commits.items():
            by_topic.setdefault(tp.topic, []).append((tp.partition, offset, text))

        async def send() -> None:
            node = await self._coordinator(group)
            response = await self._client._send_request(
                OffsetCommitRequest(group, -1, "", -1, list(by_topic.items())), node
            )
            for _topic, partitions in response.topics:
                for _partition, code in partitions:
                    kind = errors.for_code(code)
                    if kind is not errors.NoError:
                        raise kind(group)

        await self._retrying(send)

    async def leave(self, group: str, member: str) -> None:
        """Tell *group* that *member* is gone."""

        async def send() -> None:
            node = await self._coordinator(group)
            response = await self._client._send_request(LeaveGroupRequest(group, member), node)
            kind = errors.for_code(response.error_code)
            if kind not in (errors.NoError, errors.UnknownMemberIdError):
                raise kind(group)

        await self._retrying(send)

    async def groups_on(self, topic: str) -> set[str] | None:
        """The groups that have offsets in *topic*; None when there are too many groups to ask, or one that we may not ask."""
        groups = [group for group, *_rest in await self._client.list_consumer_groups()]
        if len(groups) > 300:
            return None
        found = set()
        tps = self.tps(topic)
        try:
            for group in groups:
                if await self.committed(group, tps):
                    found.add(group)
        except errors.GroupAuthorizationFailedError:
            return None
        return found

    async def delete_below(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Give back the space of everything below *offsets*, for all groups."""
        if offsets:
            await self._client.delete_records(
                {tp: RecordsToDelete(at) for tp, at in offsets.items()}, timeout_ms=10_000
            )

    # --- reading ------------------------------------------------------------------------------------------------------

    async def read(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> AsyncIterator[list[ConsumerRecord]]:
        """The records from the first offset of each span up to before the second, without any group."""
        left = {tp: end for tp, (start, end) in spans.items() if end > start}
        if not left:
            return
        reader = AIOKafkaConsumer(
            **self.options.client(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 << 20,
        )
        try:
            await reader.start()
            reader.assign(list(left))
            for tp in left:
                reader.seek(tp, spans[tp][0])
            while left:
                found = await reader.getmany(*left, timeout_ms=200, max_records=2000)
                for tp, records in found.items():
                    if tp in left:
                        yield [record for record in records if record.offset < left[tp]]
                for tp in list(left):
                    if await reader.position(tp) >= left[tp]:
                        del left[tp]
        finally:
            await stop_consumer(reader)


def settings(copies: int, *, passing: bool = False, compact: bool = False, roomy: bool = False) -> dict[str, str]:
    """The settings of a topic that we make, by the number of servers it lies on; see :meth:`Cluster.create`."""
    return {
        "retention.ms": "3600000" if passing else "-1",
        "retention.bytes": "-1",
        "cleanup.policy": "compact" if compact else "delete",
        "max.message.bytes": str(ROOMY_BATCH if roomy else TOPIC_BATCH),
        "min.insync.replicas": "2" if copies >= 3 else "1",
    }
