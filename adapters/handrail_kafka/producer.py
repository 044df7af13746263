"""Publishing: records gather by partition, go out in batches, and each learns its own fate.

A record that the server refuses fails its whole batch and confuses the idempotent producer for good. So on any failure the
producer is replaced, the batch's records go again one by one, and only the guilty one fails.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition, errors
from aiokafka.partitioner import DefaultPartitioner

from handrail.errors import BrokerError, SendError
from handrail.logger import get_logger
from handrail_kafka import faults
from handrail_kafka.cluster import ROOMY_BATCH, Cluster
from handrail_kafka.ending import end_producer
from handrail_kafka.wire import Headers

log = get_logger("handrail.kafka")

#: Bytes of one batch, beyond which it is sent and another begun. A single record may be larger.
BATCH_BYTES = 256 << 10
#: Seconds that one batch may take, retries by the client included.
BATCH_PATIENCE = 15.0


class Call:
    """Records that were given together; done when the fate of each is known."""

    __slots__ = ("abandoned", "done", "errors", "known", "left")

    def __init__(self, count: int) -> None:
        self.left = count
        #: Indexes whose fate is known.
        self.known: set[int] = set()
        self.errors: dict[int, SendError] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Nobody waits any more: what was not sent is not sent.
        self.abandoned = False

    def settle(self, index: int, error: SendError | None) -> None:
        if error is not None:
            self.errors[index] = error
        self.known.add(index)
        self.left -= 1
        if self.left == 0 and not self.done.done():
            self.done.set_result(None)


class Entry:
    """One record on its way."""

    __slots__ = ("call", "headers", "index", "key", "timestamp", "value")

    def __init__(
        self, call: Call, index: int, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int
    ) -> None:
        self.call = call
        self.index = index
        self.key = key
        self.value = value
        self.headers = headers
        #: When it was given, Unix time in milliseconds: by it, what lies in several partitions is told apart.
        self.timestamp = timestamp


class Producer:
    """All records on their way to one cluster."""

    def __init__(self, cluster: Cluster, trouble: Callable[[BaseException | None], None]) -> None:
        self._cluster = cluster
        self._trouble = trouble
        self._client: AIOKafkaProducer | None = None
        self._number = 0
        self._opening = asyncio.Lock()
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._turns: dict[str, int] = {}
        self._partitioner = DefaultPartitioner()
        self._old: set[asyncio.Task[None]] = set()
        self.closed = False

    async def client(self, failed: int = 0) -> tuple[int, Any]:
        """The producer to use, a new one when number *failed* is the newest; and its number."""
        async with self._opening:
            if self._client is None or self._number <= failed:
                old, self._client = self._client, None
                if old is not None:
                    self._retire(old)
                fresh = AIOKafkaProducer(
                    **self._cluster.options.client(),
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=BATCH_BYTES,
                    max_request_size=ROOMY_BATCH,
                    compression_type=self._cluster.options.compression,
                    request_timeout_ms=int(BATCH_PATIENCE * 1000),
                )
                try:
                    await fresh.start()
                except errors.KafkaConnectionError as error:
                    self._retire(fresh)
                    raise await self._cluster.why(error) from error
                except BaseException:
                    self._retire(fresh)
                    raise
                self._client = fresh
                self._number += 1
            return self._number, self._client

    def _retire(self, old: AIOKafkaProducer) -> None:
        async def stop() -> None:
            try:
                async with asyncio.timeout(BATCH_PATIENCE):
                    await old.stop()
            except (TimeoutError, errors.KafkaError, OSError):
                await end_producer(old)

        task = asyncio.get_running_loop().create_task(stop())
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    def partition(self, topic: str, key: bytes | None) -> TopicPartition:
        """Where a record goes: by its key, as every Kafka client does it, or to each partition in turn."""
        count = self._cluster.partitions[topic]
        if count == 1:
            return TopicPartition(topic, 0)
        if key is not None:
            every = list(range(count))
            return TopicPartition(topic, self._partitioner(key, every, every))
        turn = self._turns.get(topic, 0)
        self._turns[topic] = turn + 1
        return TopicPartition(topic, turn % count)

    def add(self, tp: TopicPartition, entry: Entry) -> None:
        lane = self._lanes.get(tp)
        if lane is None:
            lane = self._lanes[tp] = _Lane(self, tp)
        lane.add(entry)

    async def store(self, topic: str, key: bytes | None, value: bytes) -> None:
        """Store one record of our own in *topic*, which has one partition. Raises :class:`BrokerError`."""
        call = Call(1)
        self.add(TopicPartition(topic, 0), Entry(call, 0, key, value, [], int(time.time() * 1000)))
        await call.done
        if call.errors:
            raise BrokerError(str(call.errors[0]))

    async def close(self) -> None:
        self.closed = True
        for lane in self._lanes.values():
            lane.stop()
        old, self._client = self._client, None
        if old is not None:
            self._retire(old)
        if self._old:
            await asyncio.wait(self._old, timeout=BATCH_PATIENCE)

    def told(self, error: BaseException | None) -> None:
        self._trouble(error)

    def explain(self, error: BaseException) -> str:
        return faults.explain(error, self._cluster.place)


class _Lane:
    """The records of one partition. One batch is under way at a time, so that they keep their order; the rest gathers."""

    __slots__ = ("_producer", "_task", "_tp", "_waiting")

    def __init__(self, producer: Producer, tp: TopicPartition) -> None:
        self._producer = producer
        self._tp = tp
        self._waiting: deque[Entry] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, entry: Entry) -> None:
        self._waiting.append(entry)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        while self._waiting:
            entry = self._waiting.popleft()
            entry.call.settle(entry.index, SendError("closed before it was sent"))

    async def _run(self) -> None:
        number, singly = 0, 0
        failed = 0
        try:
            while self._waiting:
                batch: list[Entry] = []
                try:
                    number, client = await self._producer.client(failed)
                    batch = self._fill(single=singly > 0)
                    if not batch:
                        continue
                    builder = client.create_batch()
                    for entry in list(batch):
                        taken = builder.append(
                            timestamp=entry.timestamp, key=entry.key, value=entry.value, headers=entry.headers
                        )
                        if taken is None:  # full: the rest waits for the next batch
                            at = batch.index(entry)
                            self._waiting.extendleft(reversed(batch[at:]))
                            del batch[at:]
                            break
                    builder.close()
                    await (await client.send_batch(builder, self._tp.topic, partition=self._tp.partition))
                except asyncio.CancelledError:
                    for entry in batch:
                        entry.call.settle(entry.index, SendError("closed before it was known to be stored"))
                    raise
                except (errors.KafkaError, OSError, TimeoutError) as error:
                    failed = max(failed, number)
                    singly = await self._failed(error, batch, singly)
                else:
                    self._producer.told(None)
                    singly = max(0, singly - 1)
                    for entry in batch:
                        entry.call.settle(entry.index, None)
        finally:
            self._task = None

    def _fill(self, *, single: bool) -> list[Entry]:
        batch: list[Entry] = []
        size = 0
        while self._waiting and (not single or not batch):
            entry = self._waiting[0]
            if entry.call.abandoned:
                self._waiting.popleft()
                entry.call.settle(entry.index, SendError("given up before it was sent"))
                continue
            size += len(entry.value or b"")
            if batch and (size > BATCH_BYTES or len(batch) >= 5000):
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _failed(self, error: BaseException, batch: list[Entry], singly: int) -> int:
        """Judge a failed batch; returns how many records go one by one from here."""
        if isinstance(error, faults.FATAL) or (len(batch) == 1 and faults.is_refusal(error)):
            failure = SendError(self._producer.explain(error))
            if isinstance(error, faults.FATAL) and not batch:
                batch = list(self._waiting)  # nobody could send them
                self._waiting.clear()
            for entry in batch:
                entry.call.settle(entry.index, failure)
            return max(0, singly - 1)
        self._waiting.extendleft(reversed(batch))
        if faults.is_refusal(error):
            return len(batch)
        self._producer.told(error)
        await asyncio.sleep(0.1)
        return singly
