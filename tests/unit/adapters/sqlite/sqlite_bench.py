"""Adapters on real files, deliveries collected, and processes that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from handrail.adapter import BrokerSettings, Delivery, QueueSpec, Settlement, Verb
from handrail.message import Message, new_id
from handrail_sqlite import SQLiteAdapter

#: Seconds after which a condition that has not come true is a failure.
WAIT = 20.0

WORK = QueueSpec(name="work", dead_letter="work.dead")


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(WAIT):
        while True:
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)


class Inbox:
    """A subscription and what came through it."""

    def __init__(self, adapter: SQLiteAdapter) -> None:
        self.adapter = adapter
        self.got: list[Delivery] = []
        self.lost: list[Delivery] = []
        self.subscription: Any = None

    async def take(self, count: int) -> list[Delivery]:
        await eventually(lambda: len(self.got) >= count)
        taken = self.got[:count]
        del self.got[:count]  # the list itself is what the subscription fills
        return taken

    async def settle(self, verb: Verb, *deliveries: Delivery, message: Message | None = None) -> list[Settlement]:
        return await self.adapter.settle([Settlement(one, verb, message) for one in deliveries])


class Bench:
    """A project folder, and adapters on its file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "queues.db"
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def owners(self) -> Path:
        return self.root / "queues.db.owners"

    def adapter(self, url: str = "sqlite:queues.db", prefix: str = "") -> SQLiteAdapter:
        return SQLiteAdapter(BrokerSettings(name="default", url=url, root=str(self.root), prefix=prefix))

    @contextlib.asynccontextmanager
    async def worker(
        self, board: Path | None = None, *specs: QueueSpec, **options: Any
    ) -> AsyncIterator[SQLiteAdapter]:
        adapter = self.adapter(**options)
        adapter.board = board
        await adapter.open("worker")
        try:
            await adapter.declare(specs or [WORK])
            yield adapter
        finally:
            await adapter.close()

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[SQLiteAdapter]:
        adapter = self.adapter(**options)
        await adapter.open("client")
        try:
            yield adapter
        finally:
            await adapter.close()

    async def consume(self, adapter: SQLiteAdapter, credit: int = 100, spec: QueueSpec = WORK) -> Inbox:
        inbox = Inbox(adapter)
        inbox.subscription = await adapter.subscribe(spec, credit, inbox.got.extend, inbox.lost.extend)
        return inbox

    def run(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """A process of its own that runs *code*, in which ``adapter`` is one on our file and ``say`` prints a line."""
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", _PROCESS.format(root=str(self.root), code=_indented(code)), *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


_PROCESS = """
import asyncio, os, sys, time
from handrail.adapter import BrokerSettings, QueueSpec, Settlement, Verb
from handrail.errors import HandrailError
from handrail.message import Message, new_id
from handrail_sqlite import SQLiteAdapter

WORK = QueueSpec(name="work", dead_letter="work.dead")
adapter = SQLiteAdapter(BrokerSettings(name="default", url="sqlite:queues.db", root={root!r}))

def say(*words):
    print(*words, flush=True)

async def line():
    return (await asyncio.to_thread(sys.stdin.readline)).strip()

async def main():
{code}

asyncio.run(main())
"""


def _indented(code: str) -> str:
    return "\n".join("    " + line for line in inspect.cleandoc(code).splitlines())


def message(body: Any = b"{}", queue: str = "work", **fields: Any) -> Message:
    data = body if isinstance(body, bytes) else str(body).encode()
    return Message(queue=queue, id=fields.pop("id", new_id()), body=data, sent_at=time.time(), **fields)
