"""Gives tests of the dispatcher a small project on SQLite, and workers in which every part is real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from handrail import adapter as port
from handrail import config
from handrail.config.model import Settings
from handrail.dispatcher.verdict import Verdict
from handrail.logs import Journal
from handrail.message import Message, new_id
from handrail.worker import Worker

#: Seconds for what is bound to happen.
GENEROUS = 30.0

TOOLS = """
import asyncio, json, os, time
from pathlib import Path

ROOT = Path(__file__).parent


def note(*facts):
    with open(ROOT / "notes.jsonl", "a") as notes:
        notes.write(json.dumps(facts) + "\\n")


def is_open(name):
    return (ROOT / f"{name}.gate").exists()


def gate(name):
    while not is_open(name):
        time.sleep(0.01)


async def agate(name):
    while not is_open(name):
        await asyncio.sleep(0.01)
"""


class Site:
    """A project, and what its workers told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "handlers").mkdir()
        (root / "tools.py").write_text(TOOLS)
        #: Settled outcomes: payload, verdict.
        self.seen: list[tuple[Any, Verdict]] = []
        self.logs: list[dict[str, Any]] = []

    def handler(self, source: str, name: str = "work") -> None:
        (self.root / "handlers" / f"{name}.py").write_text("from tools import *\n" + textwrap.dedent(source))

    def queues(self, queues: dict[str, Any] | None = None, /, **settings: Any) -> Settings:
        content = {"ledger": "off", **settings, "queues": queues or {"work": "work"}}
        (self.root / "queues.yaml").write_text(yaml.safe_dump(content))
        return config.load(self.root / "queues.yaml")

    def open(self, gate: str) -> None:
        (self.root / f"{gate}.gate").touch()

    def notes(self) -> list[Any]:
        path = self.root / "notes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @contextlib.asynccontextmanager
    async def worker(self, settings: Settings, **options: Any) -> AsyncIterator[Worker]:
        worker = Worker(settings, on_outcome=self._outcome, journal=Journal("off"), **options)
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop(0.0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def _outcome(self, message: Message, verdict: Verdict, _result: bytes | None, _seconds: float) -> None:
        self.seen.append((json.loads(message.body), verdict))

    def outcomes(self) -> list[tuple[Any, str]]:
        return [(payload, verdict.outcome.value) for payload, verdict in self.seen]

    async def send(self, *payloads: Any, queue: str = "work", **fields: Any) -> None:
        """Publish as another process would."""
        settings = config.load(self.root / "queues.yaml")
        client = port.load(settings.brokers[settings.queues[queue].broker])
        await client.open("client")
        try:
            messages = [
                Message(
                    queue=queue,
                    body=json.dumps(payload).encode(),
                    **{"id": new_id(), "sent_at": time.time(), **fields},
                )
                for payload in payloads
            ]
            assert await client.publish(messages, GENEROUS) == {}
        finally:
            await client.close()

    async def until(self, condition: Callable[[], Any], what: str, timeout: float = GENEROUS) -> None:
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                told = "\n".join(map(str, [*self.outcomes(), *self.notes(), *self.logs]))
                raise AssertionError(f"waited {timeout:g} s in vain for {what}\n{told}")
            await asyncio.sleep(0.01)

    def capture(self, _logger: Any, method: str, event: Any) -> Any:
        self.logs.append({"level": method, **event})
        raise structlog.DropEvent


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    structlog.configure(processors=[made.capture])
    try:
        yield made
    finally:
        structlog.reset_defaults()
