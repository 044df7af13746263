"""What falls silent without an end: a connection whose packets vanish, a consumer that the server lost, a closed channel."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
import structlog

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, black_hole, messages, until

from handrail.adapter import Settlement, Verb
from handrail.errors import SendTimeoutError


@pytest.mark.parametrize("directions", [("--dport", "--sport"), ("--sport",)], ids=["both ways", "answers only"])
async def test_a_connection_whose_packets_vanish_is_noticed_and_replaced(
    server: Any, bench: Bench, iptables: str, directions: tuple[str, ...]
) -> None:
    """Health tells of a black hole within ten seconds, sends fail in time, and afterwards everything is handled."""
    before, after = messages(5), messages(5)
    worker = await bench.open(heartbeat=4, connect_timeout=2)
    inbox = await Inbox(worker).begin(bench.queue)
    assert await worker.publish(before, 20.0) == {}
    await until(lambda: len(inbox.got) == 5, "the first")
    try:
        with structlog.testing.capture_logs() as logs:
            with black_hole(iptables, bench.settings.url, *directions):
                began = time.monotonic()
                errors = await worker.publish(messages(1), 1.0)
                assert time.monotonic() - began < 15.0
                assert isinstance(errors[0], SendTimeoutError)
                await until(lambda: not worker.health().up, "health to tell of it", 10.0)
                await until(lambda: len(inbox.lost) == 5, "what was in hand to be given up")
                await until(lambda: "no answer" in worker.health().detail, "connecting in vain")
            await until(lambda: "broker reachable again" in [entry["event"] for entry in logs], "the worker to be back")
            told = [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")]
            assert await worker.publish(after, 20.0) == {}
            wanted = {one.id for one in (*before, *after)}
            await until(lambda: wanted <= {one.message.id for one in inbox.got[5:]}, "all of them, again or anew")

        assert told == ["broker not reachable; trying again"]
    finally:
        await bench.close()


#: Erlang: take every consumer of a quorum queue away without a word to its channel, as a lost command would.
LOSE_CONSUMERS = """
    {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{name}">>)),
    [ra:process_command(amqqueue:get_pid(Q),
        rabbit_fifo:make_checkout({{element(2, C), element(1, C)}}, cancel, #{{}})) || C <- rabbit_amqqueue:consumers(Q)],
    length(rabbit_amqqueue:consumers(Q)).
"""


async def test_a_worker_whose_consumer_the_server_lost_consumes_again(server: Any, bench: Bench) -> None:
    """Connected, subscribed and consuming nothing: health says so, everything is rebuilt, and the messages come."""
    worker = await bench.open("worker", watch_every=0.5, stuck_after=4.0)
    inbox = await Inbox(worker).begin(bench.queue, ack=True)
    try:
        assert await worker.publish(messages(5), 20.0) == {}
        await until(lambda: len(inbox.handled) == 5, "the first")
        name = bench.settings.prefix + "work"
        left = await asyncio.to_thread(server.ctl, "-q", "eval", LOSE_CONSUMERS.format(name=name))
        assert left.stdout.strip() == "0", left

        with structlog.testing.capture_logs() as logs:
            sent = messages(5)
            assert await worker.publish(sent, 20.0) == {}
            await until(lambda: not worker.health().up, "health to doubt")
            assert re.search("wait(ed)? and none c(omes|ame)", worker.health().detail)
            await until(lambda: {one.id for one in sent} <= set(inbox.handled), "what had waited")

        await until(lambda: worker.health().up, "health")
        told = [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")]
        assert told == ["messages wait and none comes; connecting anew", "broker not reachable; trying again"]
    finally:
        await bench.close()


async def test_an_idle_or_full_worker_is_never_taken_for_stuck(server: Any, bench: Bench) -> None:
    """With nothing to fetch, or no room for more, the watch leaves the connection alone, and health stays up."""
    worker = await bench.open("worker", watch_every=0.05, stuck_after=1.0)
    inbox = await Inbox(worker).begin(bench.queue, credit=3)
    try:
        with structlog.testing.capture_logs() as logs:
            await asyncio.sleep(1.0)
            assert await worker.publish(messages(10), 20.0) == {}
            await until(lambda: len(inbox.got) == 3, "as many as there is room for")
            assert worker.health().up
            await asyncio.sleep(2.5)
            assert worker.health().up

        assert len(inbox.got) == 3
        assert [entry for entry in logs if entry["log_level"] == "warning"] == []
    finally:
        await bench.close()


async def test_a_channel_that_the_server_closes_costs_its_own_queue_a_moment(server: Any, bench: Bench) -> None:
    """A channel error makes one queue's deliveries lost, they come again, and its neighbours do not notice."""
    other = msgspec.structs.replace(bench.queue, name="other", dead_letter="other.dead")
    worker = await bench.open()
    await worker.declare([other])
    mine = await Inbox(worker).begin(bench.queue)
    theirs = await Inbox(worker).begin(other)
    try:
        neighbours = [msgspec.structs.replace(one, queue="other") for one in messages(3)]
        assert await worker.publish([*messages(5), *neighbours], 20.0) == {}
        await until(lambda: (len(mine.got), len(theirs.got)) == (5, 3), "all")
        epoch = worker._link.epoch
        raw = worker._intakes[0].channel.raw
        with structlog.testing.capture_logs() as logs:
            raw.basic_ack(4711)  # a tag that the server never gave: 406, and the end of the channel
            await until(lambda: len(mine.lost) == 5, "their loss")
            await until(lambda: len(mine.got) == 10, "their return")

        await until(lambda: worker.health().up, "health")
        assert worker._link.epoch == epoch
        assert theirs.lost == []
        verdicts = [Settlement(one, Verb.ACK) for one in mine.got]
        assert len(await worker.settle(verdicts)) == 5
        assert await worker.settle([Settlement(one, Verb.ACK) for one in theirs.got]) == []
        told = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
        assert told == ["the server closed the channel of a queue; subscribing again"]
    finally:
        await bench.close()


async def test_an_exchange_that_was_deleted_is_made_again_for_the_next_delay(server: Any, bench: Bench) -> None:
    """Publishing to what an operator deleted closes the channel; what was under way is sent again, and nothing is lost."""
    worker = await bench.open()
    inbox = await Inbox(worker).begin(bench.queue, ack=True)
    try:
        first = messages(1, due=time.time() + 0.05)
        assert await worker.publish(first, 20.0) == {}
        await until(lambda: len(inbox.handled) == 1, "the first")
        with pika.BlockingConnection(pika.URLParameters(bench.settings.url)) as operator:
            operator.channel().exchange_delete(bench.settings.prefix + "handrail.delay.in")

        late, soon = messages(20, due=time.time() + 0.05), messages(20)
        assert await worker.publish([*soon[:10], *late, *soon[10:]], 20.0) == {}

        await until(lambda: {one.id for one in (*late, *soon)} <= set(inbox.handled), "all of them")
        await until(lambda: worker.health().up, "health")
    finally:
        await bench.close()
