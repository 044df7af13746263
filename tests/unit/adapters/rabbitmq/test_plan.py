"""What `platform plan` says of a server: what a start would make, what stands, what differs; and that nothing is made."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, messages

from handrail.adapter import Planned, QueueSpec, load


async def planned(bench: Bench, *queues: QueueSpec, **options: Any) -> dict[str, Planned]:
    """The plan by name, without the test's prefix."""
    settings = bench.settings_with(options)
    found = await load(settings).plan(queues or [bench.queue])
    return {one.name.removeprefix(settings.prefix): one for one in found}


async def test_a_plan_makes_nothing(server: Any, bench: Bench) -> None:
    """On an empty server all is missing or for later, each with its arguments, and the server stays empty."""
    found = await planned(bench)

    assert found["work"].state == found["work.dead"].state == "missing"
    assert found["work"].settings == {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-delivery-limit": str(2**31 - 1),
    }
    assert {one.state for name, one in found.items() if not name.startswith("work")} == {"later"}
    assert found["handrail.delay.3e4"].settings["x-message-ttl"] == "30000"
    assert {"work.p0", "work.p9", "work.head", "handrail.registry"} <= found.keys()
    for what in ("queues", "exchanges"):
        assert bench.settings.prefix not in server.ctl("-q", f"list_{what}", "name").stdout


async def test_what_stands_is_told_apart_from_what_may_come(server: Any, bench: Bench) -> None:
    """Levels and delays that messages needed are there, the others are for later."""
    client = await bench.open("client")
    try:
        sent = [*messages(1, priority=9), *messages(1, due=time.time() + 60.0)]
        assert await client.publish(sent, 20.0) == {}

        found = await planned(bench)
    finally:
        await bench.close()

    assert {found[name].state for name in ("work", "work.dead", "work.p9", "handrail.delay.in")} == {"there"}
    assert any(one.state == "there" for name, one in found.items() if name.startswith("handrail.delay.5e4"))
    assert found["work.p8"].state == found["handrail.delay.9e10"].state == "later"


async def test_what_stands_otherwise_is_named_with_both_values(server: Any, bench: Bench) -> None:
    """A queue with other arguments differs, in words that name the argument and both values; it is left as it is."""
    await bench.open("client", QueueSpec(name="work", dead_letter="work.dead", options={"queue_type": "classic"}))
    try:
        found = await planned(bench)
        never = await planned(bench, declare="never")
    finally:
        await bench.close()

    assert found["work"].state == "differs"
    assert found["work"].detail == "has x-queue-type 'classic', asked for is 'quorum'"
    assert never["work"].state == "there"
    assert never["work.head"].state == "later"
