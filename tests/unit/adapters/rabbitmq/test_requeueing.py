"""What goes back to the server stands there as it stood before."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, messages, until

from handrail.adapter import QueueSpec, Settlement, Verb

#: Lets the log of all quorum queues write nothing for a moment, as a disk does that is busy.
STALL = "spawn(fun() -> sys:suspend(ra_log_wal), timer:sleep(1500), sys:resume(ra_log_wal) end), timer:sleep(100)."


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_what_is_given_back_keeps_its_order_on_a_slow_server(
    server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch, queue_type: str
) -> None:
    """A hundred messages from behind one that runs come again in their order, even if the server puts back nothing for long."""
    monkeypatch.setattr(
        "handrail_rabbitmq.requeueing.PATIENCE", 30.0
    )  # however slow the disk is beside what is done to it
    queue = QueueSpec(name="work", dead_letter="work.dead")
    worker = await bench.open(queue_type=queue_type)
    try:
        await worker.publish(messages(101), 20.0)
        inbox = await Inbox(worker).begin(queue, 101)
        await until(lambda: len(inbox.got) == 101, "all of them")
        inbox.subscription.set_credit(1)
        runs, *waiting = inbox.got

        await asyncio.to_thread(server.ctl, "eval", STALL)
        assert await worker.settle([Settlement(one, Verb.RELEASE) for one in waiting]) == []
        inbox.subscription.set_credit(101)
        assert await worker.settle([Settlement(runs, Verb.ACK)]) == []
        await until(lambda: len(inbox.got) == 201, "their return")

        assert [one.message.body for one in inbox.got[101:]] == [b"%d" % n for n in range(1, 101)]
    finally:
        await bench.close()
