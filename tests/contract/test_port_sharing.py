"""Several adapters on one broker: who gets what, what a close gives back, and what a death leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from contract_harness import GENEROUS, Port, message

from handrail.adapter import Adapter, Capability, Delivery, Settlement, Verb, load
from handrail.message import new_id

needs = pytest.mark.needs

pytestmark = needs(Capability.PROCESSES)


def bodies(deliveries: list[Delivery]) -> list[object]:
    return [msgspec.json.decode(one.message.body) for one in deliveries]


def ack(*deliveries: Delivery) -> list[Settlement]:
    return [Settlement(one, Verb.ACK) for one in deliveries]


async def publish(adapter: Adapter, *bodies: object) -> None:
    assert await adapter.publish([message(body) for body in bodies], 20.0) == {}


async def test_what_one_process_publishes_another_gets(port: Port) -> None:
    """A waiting worker gets what any client publishes, from its own connection."""
    async with port.worker() as adapter, port.client() as client:
        inbox = await port.consume(adapter)
        await publish(client, "a")

        got = await inbox.take(1)

        assert bodies(got) == ["a"]
        await inbox.settle(*ack(*got))


async def test_each_message_goes_to_one_worker(port: Port) -> None:
    """Of two workers each message goes to one, and both get some while both have credit."""
    async with port.worker() as one, port.worker() as two:
        mine, yours = await port.consume(one, credit=5), await port.consume(two, credit=5)
        await publish(one, *range(10))
        ours, theirs = await mine.take(5), await yours.take(5)

        assert sorted([*bodies(ours), *bodies(theirs)]) == list(range(10))  # type: ignore[type-var]
        await mine.settle(*ack(*ours))
        await yours.settle(*ack(*theirs))


async def test_messages_outlive_all_connections(port: Port) -> None:
    """What was confirmed is there after everything was closed and opened again."""
    async with port.client() as client:
        await publish(client, "a", "b")
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        got = await inbox.take(2)
        assert sorted(bodies(got)) == ["a", "b"]  # type: ignore[type-var]
        await inbox.settle(*ack(*got))


@needs(Capability.FIFO)
async def test_a_close_gives_back_what_was_not_settled(port: Port) -> None:
    """`close` returns what was delivered and never settled, at once, in its order, with nothing counted."""
    async with port.worker() as first:
        inbox = await port.consume(first)
        await publish(first, "a", "b", "c")
        held = await inbox.take(3)
        await inbox.settle(*ack(held[1]))
    async with port.worker() as second:
        again = await port.consume(second)
        got = await again.take(2)
        assert bodies(got) == ["a", "c"]
        assert {(one.message.attempts, one.message.starts, one.message.crashes) for one in got} == {(0, 0, 0)}
        await again.settle(*ack(*got))


async def test_prefixes_keep_projects_apart(port: Port) -> None:
    """Two projects with different prefixes share a broker and see nothing of each other."""
    other = load(msgspec.structs.replace(port.settings, prefix=port.settings.prefix + "other-"))
    await other.open("client")
    try:
        async with port.worker() as adapter:
            await other.declare([port.queue])
            inbox = await port.consume(adapter)
            await publish(other, "theirs")
            await publish(adapter, "ours")

            got = await inbox.take(1)

            assert bodies(got) == ["ours"]
            await inbox.settle(*ack(*got))
            assert [one.body for one in await other.peek("work", "ready", 10)] == [b'"theirs"']
    finally:
        await other.close()


VICTIM = """
import asyncio, json, sys
import msgspec
from pathlib import Path
from handrail.adapter import BrokerSettings, QueueSpec, load
from handrail.board import COMPLETED, RUNNING, Board

async def main():
    settings, queue, board, running, completed = json.loads(sys.argv[1])
    adapter = load(msgspec.convert(settings, BrokerSettings))
    board = Board.create(Path(board))
    adapter.board = board.path
    await adapter.open("worker")
    got = []
    await adapter.subscribe(msgspec.convert(queue, QueueSpec), 3, got.extend, lambda lost: None)
    while len(got) < 3:
        await asyncio.sleep(0.01)
    for one in got:
        slot = board.take(one.message.queue, one.message.id, one.message.crashes, one.message.send)
        if one.message.id in running:
            board.mark(slot, RUNNING)
        if one.message.id in completed:
            board.mark(slot, COMPLETED)
    print("holds", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def victim(
    port: Port, running: list[str], board: Path, completed: Sequence[str] = ()
) -> asyncio.subprocess.Process:
    """A worker in a process of its own that holds three messages: *running* run, *completed* are not acknowledged yet."""
    settings, queue = msgspec.to_builtins(port.settings), msgspec.to_builtins(port.queue)
    argument = json.dumps([settings, queue, str(board), running, completed])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VICTIM, argument, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), GENEROUS) == b"holds\n"
    return process


@needs(Capability.DEAD_WORKER)
async def test_a_dead_workers_messages_return(port: Port, tmp_path: Path) -> None:
    """What a killed worker held comes back to another without waiting for any lease."""
    async with port.worker() as adapter:
        await publish(adapter, "a", "b", "c")
        dead = await victim(port, [], tmp_path / "victim.board")
        inbox = await port.consume(adapter)
        await publish(adapter, "d")
        assert bodies(await inbox.take(1)) == ["d"]

        dead.send_signal(signal.SIGKILL)
        await dead.wait()

        got = await inbox.take(3)
        assert sorted(bodies(got)) == ["a", "b", "c"]  # type: ignore[type-var]
        await inbox.settle(*ack(*got))


@needs(Capability.DEAD_WORKER, Capability.CRASHES)
async def test_a_dead_workers_running_messages_are_suspect_and_the_others_are_not(port: Port, tmp_path: Path) -> None:
    """After a worker's death exactly what it was running has one crash more to its name."""
    async with port.worker() as adapter:
        messages = [message(name, id=name) for name in ("a", "b", "c")]
        assert await adapter.publish(messages, 20.0) == {}
        dead = await victim(port, ["b"], tmp_path / "victim.board")
        inbox = await port.consume(adapter)

        dead.send_signal(signal.SIGKILL)
        await dead.wait()

        got = await inbox.take(3)
        assert {one.message.id: one.message.crashes for one in got} == {"a": 0, "b": 1, "c": 0}
        await inbox.settle(*ack(*got))


@needs(Capability.DEAD_WORKER, Capability.CRASHES)
async def test_what_a_dead_worker_had_completed_does_not_come_again(port: Port, tmp_path: Path) -> None:
    """Only the word of it was missing at the broker: the heir acknowledges it, whoever made its id."""
    async with port.worker() as adapter:
        made, chosen, other = message("made"), message("chosen", id="1", send=new_id()), message("x")
        assert await adapter.publish([made, chosen, other], 20.0) == {}
        dead = await victim(port, [], tmp_path / "victim.board", [made.id, chosen.id])
        inbox = await port.consume(adapter)

        dead.send_signal(signal.SIGKILL)
        await dead.wait()

        assert bodies(await inbox.take(1)) == ["x"]
        await publish(adapter, "last")
        assert bodies(await inbox.take(1)) == ["last"]


@needs(Capability.DEAD_WORKER)
async def test_a_frozen_worker_is_not_dead(port: Port, tmp_path: Path) -> None:
    """A worker that is stopped for a while keeps what it holds: slow is not dead, and nothing runs twice."""
    async with port.worker() as adapter:
        await publish(adapter, "a", "b", "c")
        frozen = await victim(port, [], tmp_path / "victim.board")
        try:
            frozen.send_signal(signal.SIGSTOP)
            inbox = await port.consume(adapter)
            for n in range(3):
                await publish(adapter, n)
                got = await inbox.take(1)
                assert bodies(got) == [n]
                await inbox.settle(*ack(*got))
        finally:
            os.kill(frozen.pid, signal.SIGKILL)
            await frozen.wait()
