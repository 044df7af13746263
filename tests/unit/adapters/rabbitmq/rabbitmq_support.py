"""What tests of the RabbitMQ adapter share: adapters of one test, and what a subscription got. It asserts nothing itself."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handrail.adapter import Adapter, BrokerSettings, Delivery, QueueSpec, Settlement, Subscription, Verb, load
from handrail.message import Message, new_id


class Bench:
    """Adapters of one test on one server, and what they got."""

    def __init__(self, url: str, root: Path) -> None:
        self.settings = BrokerSettings(name="default", url=url, root=str(root), prefix=f"t{uuid.uuid4().hex[:8]}-")
        self.queue = QueueSpec(name="work", dead_letter="work.dead")
        self.opened: list[Adapter] = []

    async def open(
        self,
        role: str = "worker",
        spec: QueueSpec | None = None,
        *,
        watch_every: float | None = None,
        stuck_after: float | None = None,
        **options: Any,
    ) -> Any:
        settings = BrokerSettings(
            name="default",
            url=self.settings.url,
            root=self.settings.root,
            prefix=self.settings.prefix,
            options=options,
        )
        adapter: Any = load(settings)
        adapter.watch_every = watch_every or adapter.watch_every
        adapter.stuck_after = stuck_after or adapter.stuck_after
        self.opened.append(adapter)
        await adapter.open(role)
        await adapter.declare([spec or self.queue])
        return adapter

    async def close(self) -> None:
        for adapter in self.opened:
            await adapter.close()


class Inbox:
    """What one subscription delivered and lost."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.got: list[Delivery] = []
        self.lost: list[Delivery] = []
        self.handled: list[str] = []
        self.subscription: Subscription
        self._tasks: set[asyncio.Task[Any]] = set()

    async def begin(self, queue: QueueSpec, credit: int = 50, *, ack: bool = False) -> Inbox:
        self.subscription = await self.adapter.subscribe(
            queue, credit, self._ack if ack else self.got.extend, self.lost.extend
        )
        return self

    def _ack(self, batch: list[Delivery]) -> None:
        self.got += batch
        task = asyncio.get_running_loop().create_task(self._settle(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, batch: list[Delivery]) -> None:
        refused = await self.adapter.settle([Settlement(one, Verb.ACK) for one in batch])
        gone = {id(one.delivery) for one in refused}
        self.handled += [one.message.id for one in batch if id(one) not in gone]


def messages(count: int, **fields: Any) -> list[Message]:
    return [
        Message(queue="work", id=new_id(), body=str(n).encode(), sent_at=time.time(), **fields) for n in range(count)
    ]


async def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        await asyncio.sleep(0.02)
