"""What tests of the RabbitMQ adapter share: adapters of one test, and what a subscription got. It asserts nothing itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

# projects with real workers are what contract tests have already
sys.path.insert(0, str(Path(__file__).parents[3] / "contract"))

import contract_harness

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
        adapter: Any = load(self.settings_with(options))
        adapter.watch_every = watch_every or adapter.watch_every
        adapter.stuck_after = stuck_after or adapter.stuck_after
        self.opened.append(adapter)
        await adapter.open(role)
        await adapter.declare([spec or self.queue])
        return adapter

    def settings_with(self, options: dict[str, Any]) -> BrokerSettings:
        return msgspec.structs.replace(self.settings, options=options)

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


class Project(contract_harness.Project):
    """A project with real workers on one server."""

    def worker_blocked(self) -> bool:
        """Whether the server has told a worker that it takes no messages now."""
        return any("takes no messages" in str(entry) for entry in list(self.logs))


def messages(count: int, **fields: Any) -> list[Message]:
    fields = {"queue": "work", **fields}
    return [Message(id=new_id(), body=str(n).encode(), sent_at=time.time(), **fields) for n in range(count)]


async def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        await asyncio.sleep(0.02)


@contextmanager
def black_hole(iptables: str, url: str, *directions: str) -> Iterator[None]:
    """Drop all packets to (``--dport``) or from (``--sport``) the server, without a reset; skip where that is not allowed."""
    directions = directions or ("--dport", "--sport")
    port = str(urlsplit(url).port)
    rules = [["INPUT", "-i", "lo", "-p", "tcp", direction, port, "-j", "DROP"] for direction in directions]
    made = []
    try:
        for rule in rules:
            done = subprocess.run([iptables, "-w", "-I", *rule], check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"iptables may not make packets vanish here: {done.stderr.strip()}")
            made.append(rule)
        yield
    finally:
        for rule in made:
            subprocess.run([iptables, "-w", "-D", *rule], check=True)
