"""What becomes of workers and senders when the server dies, freezes, cuts connections or runs out of memory."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, messages, until

from handrail.errors import SendTimeoutError


async def test_a_killed_server_costs_nothing_that_was_confirmed(server: Any, bench: Bench) -> None:
    """After kill -9 of the server and its restart every confirmed message is handled, and health told of both."""
    worker = await bench.open()
    client = await bench.open("client")
    sent = messages(500)
    assert await client.publish(sent, 20.0) == {}
    inbox = await Inbox(worker).begin(bench.queue, ack=True)
    await until(lambda: len(inbox.handled) > 20, "the first")
    try:
        with structlog.testing.capture_logs() as logs:
            server.send(signal.SIGKILL)
            await until(lambda: not worker.health().up, "health to tell of it", 10.0)
            sending = asyncio.ensure_future(client.publish(later := messages(50), 150.0))
            await asyncio.to_thread(server.up)
            assert await sending == {}
            await until(lambda: worker.health().up, "the worker to be back")
            await until(lambda: {one.id for one in (*sent, *later)} <= set(inbox.handled), "all", 60.0)

        told = [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")]
        assert told.count("broker not reachable; trying again") == 2
    finally:
        await bench.close()


async def test_connections_closed_by_the_operator_come_back(server: Any, bench: Bench) -> None:
    """`close_all_connections` makes deliveries in hand lost, and everything is subscribed again."""
    worker = await bench.open()
    inbox = await Inbox(worker).begin(bench.queue)
    try:
        await worker.publish(messages(10), 20.0)
        await until(lambda: len(inbox.got) == 10, "the first")

        await asyncio.to_thread(server.ctl, "close_all_connections", "test")

        await until(lambda: len(inbox.lost) == 10, "their loss")
        await until(lambda: len(inbox.got) == 20, "their return")
        assert [one.message.body for one in inbox.got[10:]] == [one.message.body for one in inbox.got[:10]]
        await until(lambda: worker.health().up, "the connection for publishing to be back too")
    finally:
        await bench.close()


async def test_a_worker_that_catches_up_hears_at_once_of_a_connection_that_ended(server: Any, bench: Bench) -> None:
    """What the server took back while this process stood still is told before `catch_up` returns."""
    worker = await bench.open()
    inbox = await Inbox(worker).begin(bench.queue)
    try:
        await worker.publish(messages(10), 20.0)
        await until(lambda: len(inbox.got) == 10, "the first")

        server.ctl("close_all_connections", "test")  # the loop stands still meanwhile
        while "running" in server.ctl("-q", "list_connections", "name", "state").stdout:
            time.sleep(0.05)  # noqa: ASYNC251
        assert inbox.lost == []
        await worker.catch_up()

        assert len(inbox.lost) == 10
        await until(lambda: len(inbox.got) == 20, "their return")
    finally:
        await bench.close()


async def test_a_memory_alarm_hides_no_messages(server: Any, bench: Bench) -> None:
    """Looks are answered while the server takes no messages, though the registry of what was made is asked by publishing."""
    client = await bench.open("client")
    try:
        sent = [*messages(2), *messages(3, priority=9), *messages(1, due=time.time() + 3600)]
        assert await client.publish(sent, 20.0) == {}
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        other = await bench.open("client")
        found = await other.depth("work")
        waiting = await other.peek("work", "ready", 10)
    finally:
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")
        await bench.close()

    assert (found.ready, found.delayed, found.dead) == (5, 1, 0)
    assert [one.priority for one in waiting] == [9, 9, 9, 4, 4]


async def test_a_memory_alarm_blocks_senders_and_loses_nothing(server: Any, bench: Bench) -> None:
    """Under a memory alarm a send fails within its time and names the alarm; afterwards all flows again."""
    worker = await bench.open()
    client = await bench.open("client")
    inbox = await Inbox(worker).begin(bench.queue, ack=True)
    try:
        await client.publish(messages(10), 20.0)
        await until(lambda: len(inbox.handled) == 10, "the first")
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        waiting = asyncio.ensure_future(client.publish(messages(1), 60.0))
        await until(lambda: "memory" in client.health().detail, "the alarm to be told")
        began = time.monotonic()
        errors = await client.publish(messages(5), 2.0)

        assert time.monotonic() - began < 15.0
        assert len(errors) == 5
        assert isinstance(errors[0], SendTimeoutError)
        assert "memory" in str(errors[0])
        assert not client.health().up

        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")
        sent = messages(10)
        assert await client.publish(sent, 20.0) == {}
        assert await waiting == {}
        await until(lambda: {one.id for one in sent} <= set(inbox.handled), "what was sent afterwards")
        await until(lambda: client.health().up, "health to tell of it")
    finally:
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")
        await bench.close()


async def test_a_frozen_server_is_noticed_within_ten_seconds(server: Any, bench: Bench) -> None:
    """A server that answers nothing makes health go down, sends fail in time, and all goes on when it thaws."""
    worker = await bench.open()
    inbox = await Inbox(worker).begin(bench.queue, ack=True)
    try:
        await worker.publish(messages(5), 20.0)
        await until(lambda: len(inbox.handled) == 5, "the first")
        server.send(signal.SIGSTOP)
        try:
            errors = await worker.publish(messages(1), 1.0)
            assert "not confirmed within 1s" in str(errors[0])
            await until(lambda: not worker.health().up, "health to tell of it", 10.0)
            assert "has not answered" in worker.health().detail
        finally:
            server.send(signal.SIGCONT)
        sent = messages(5)
        assert await worker.publish(sent, 30.0) == {}
        await until(lambda: {one.id for one in sent} <= set(inbox.handled), "the rest")
        await until(lambda: worker.health().up, "health to tell of it")
    finally:
        await bench.close()


async def test_a_deleted_queue_is_made_again(server: Any, bench: Bench) -> None:
    """When the server ends a subscription, because somebody deleted the queue, it is declared and subscribed again."""
    worker = await bench.open()
    inbox = await Inbox(worker).begin(bench.queue, ack=True)
    try:
        await worker.publish(messages(1), 20.0)
        await until(lambda: len(inbox.handled) == 1, "the first")
        await asyncio.to_thread(server.ctl, "delete_queue", bench.settings.prefix + "work")

        assert await worker.publish(messages(1), 20.0) == {}

        await until(lambda: len(inbox.handled) == 2, "the second")
    finally:
        await bench.close()


async def test_twenty_clean_restarts_over_a_full_prefetch_count_nothing(server: Any, bench: Bench) -> None:
    """Messages that are only fetched, twenty times, are never dead-lettered by the server and keep their order."""
    client = await bench.open("client")
    assert await client.publish(messages(100), 20.0) == {}
    try:
        for _ in range(20):
            worker = await bench.open()
            inbox = await Inbox(worker).begin(bench.queue, 100)
            await until(lambda inbox=inbox: len(inbox.got) == 100, "all of them")  # type: ignore[misc]
            assert [int(one.message.body) for one in inbox.got] == list(range(100))
            await worker.close()
        async with asyncio.timeout(30):
            while (depth := await client.depth("work")).ready != 100:  # they are on their way back
                await asyncio.sleep(0.1)
        assert depth.dead == 0
    finally:
        await bench.close()


async def test_a_connection_that_opens_too_late_for_its_adapter_is_closed(server: Any, bench: Bench) -> None:
    """An adapter that is closed while it connects leaves no connection behind, not even one that comes up afterwards."""
    gate, came, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def hold_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await gate.wait()
        there = await asyncio.open_connection(address.hostname, address.port)
        back = asyncio.ensure_future(copy(there[0], writer))
        await copy(reader, there[1])
        ended.set()
        await back

    address = urlsplit(server.url)
    async with await asyncio.start_server(hold_up, "127.0.0.1") as proxy:
        port = proxy.sockets[0].getsockname()[1]
        bench.settings = msgspec.structs.replace(bench.settings, url=server.url.replace(f":{address.port}", f":{port}"))
        opening = asyncio.ensure_future(bench.open("client", connect_timeout=100))
        await came.wait()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await bench.close()
        gate.set()

        async with asyncio.timeout(30.0):
            await ended.wait()
