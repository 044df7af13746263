"""A server that takes no more for now: alarms, full queues, queues without a leader, and nobody there at all."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
import structlog

# what these tests share are modules of their own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, Project, black_hole, messages, until

from handrail.adapter import QueueSpec, Settlement, Verb
from handrail.outcome import Outcome
from handrail_rabbitmq import consuming, publishing

#: An application with one page, which sends and answers only when the broker has it, or when it never will.
WEB = """
import threading
from wsgiref.simple_server import make_server, WSGIRequestHandler

from handrail import context
from handrail.errors import SendError

WSGIRequestHandler.log_message = lambda *_: None


def page(environ, start_response):
    heard, told = threading.Event(), []
    receipt = context.queues.send_to_queue("work", {"n": 1}, lambda error: (told.append(error), heard.set()))
    try:
        receipt.wait()
        status, text = "202 Accepted", "sent"
    except SendError as error:
        status, text = "503 Service Unavailable", str(error)
    heard.wait()
    if (told[0] is None) != (text == "sent") or len(told) != 1:
        status, text = "500 Receipt And Callback Disagree", f"{told} {text}"
    start_response(status, [("Content-Type", "text/plain")])
    return [text.encode()]


with make_server("127.0.0.1", 0, page) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


@contextmanager
def web(project: Project) -> Iterator[str]:
    """The address of an application in a process of its own that sends to the project's queue."""
    process = subprocess.Popen(
        [sys.executable, "-c", WEB], cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
    finally:
        process.kill()
        process.communicate()


def ask(address: str) -> tuple[int, str]:
    """Status and text of the page."""
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def alarm(server: Any) -> Iterator[None]:
    """The server's memory alarm is on."""
    server.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        server.ctl("set_vm_memory_high_watermark", "absolute", "2GB")


def full_queue(url: str, name: str, length: int) -> None:
    """A queue that an operator made, which refuses what is beyond *length*."""
    with pika.BlockingConnection(pika.URLParameters(url)) as operator:
        channel = operator.channel()
        # a classic queue keeps to its limit at once, a quorum queue after some more
        limits = {"x-queue-type": "classic", "x-max-length": length, "x-overflow": "reject-publish"}
        channel.queue_declare(name, durable=True, arguments=limits)
        channel.queue_declare(f"{name}.dead", durable=True)


def test_a_web_request_that_sends_never_hangs(server: Any, project: Project, iptables: str) -> None:
    """Blocked, black-holed or gone: the request is answered after `send_timeout` with what is wrong, and then it works again."""
    project.handler("def handler(message): pass")
    project.queues(send_timeout="1s")
    url = server.url
    with web(project) as address:
        project.until(lambda: ask(address) == (202, "sent"), "the first to go through")
        with alarm(server):

            def told() -> bool:
                status, text = ask(address)
                assert status == 503
                return "memory" in text

            project.until(told, "the alarm to be told")
        with black_hole(iptables, url):
            status, text = ask(address)
            assert status == 503
            assert re.search(r"within (1|0\.\d)s", text), text  # what was left of it when the adapter got it
        project.until(lambda: ask(address) == (202, "sent"), "the black hole to be forgotten")
    with web(project) as address, black_hole(iptables, url):
        status, text = ask(address)  # the first thing that this process ever sends
        assert status == 503
        assert "within 1s" in text


async def test_a_full_queue_refuses_at_once(server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a queue with a limit has no room for fails without waiting, and the line names the queue."""
    monkeypatch.setattr(publishing, "FAREWELL", 30.0)  # a slow disk makes what it stores be sent again
    full_queue(bench.settings.url, bench.settings.prefix + "work", 5)
    client = await bench.open("client", declare="never")
    try:
        errors = await client.publish(messages(50), 60.0)

        assert errors
        assert len(errors) == 45
        assert "is full" in str(errors[49])
        assert (await client.depth("work")).ready == 50 - len(errors)
    finally:
        await bench.close()


async def test_a_channel_that_refuses_from_the_first_is_replaced(
    server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is believed when others agree: what a channel refuses that took nothing yet goes by another, in its order."""
    monkeypatch.setattr(publishing, "OFFERS", 50)  # the purge may take its time
    full_queue(bench.settings.url, bench.settings.prefix + "work", 1)
    other = await bench.open("client", declare="never")
    client = await bench.open("client", declare="never")
    try:
        assert await other.publish(messages(1), 20.0) == {}
        with structlog.testing.capture_logs() as logs:
            sending = asyncio.ensure_future(client.publish(sent := messages(1), 60.0))
            await until(lambda: any("on another channel" in entry["event"] for entry in logs), "the first refusal")
            await other.purge("work", "ready", None)
            assert await sending == {}
        assert [one.id for one in await other.peek("work", "ready", 10)] == [sent[0].id]

        # it took one by now: that it is full is believed at once
        with structlog.testing.capture_logs() as logs:
            errors = await client.publish(messages(1), 60.0)
        assert "is full" in str(errors[0])
        assert logs == []
    finally:
        await bench.close()


async def test_a_queue_that_is_full_for_all_refuses_in_the_end(
    server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other channels refuse as well fails soon, and holds up no other queue for longer."""
    monkeypatch.setattr(publishing, "FAREWELL", 30.0)  # a slow disk makes what it stores be sent again
    full_queue(bench.settings.url, bench.settings.prefix + "work", 1)
    other = await bench.open("client", declare="never")
    assert await other.publish(messages(1), 20.0) == {}
    full_queue(bench.settings.url, bench.settings.prefix + "side", 10)
    client = await bench.open("client", declare="never")
    try:
        batch = [*messages(2), *messages(1, queue="side"), *messages(2)]
        errors = await client.publish(batch, 60.0)

        assert sorted(errors) == [0, 1, 3, 4]
        assert "is full" in str(errors[0])
        assert (await client.depth("side")).ready == 1
    finally:
        await bench.close()


async def test_a_full_queue_gets_its_retries_when_it_has_room(server: Any, bench: Bench) -> None:
    """A message that is to go to the tail of a queue which somebody keeps full waits in the delays, so that hands get free."""
    await bench.open("client")  # makes the delays' way possible; the queue itself is the operator's
    name = bench.settings.prefix + "tight"
    tight = QueueSpec(name="tight", dead_letter="tight.dead")
    full_queue(bench.settings.url, name, 3)
    worker = await bench.open("worker", QueueSpec(name="side", dead_letter="side.dead"))
    worker._topology._made.update(
        (name, f"{name}.dead")
    )  # it is there, and what its arguments are does not matter here
    inbox = await Inbox(worker).begin(tight, credit=2)
    try:
        batch = messages(2, queue="tight")
        assert await worker.publish(batch, 10.0) == {}
        await until(lambda: len(inbox.got) == 2, "both in hand")
        more = messages(40, queue="tight")
        refused = await worker.publish(more, 10.0)
        assert refused

        failed = [Settlement(one, Verb.MOVE, one.message) for one in inbox.got]
        assert await asyncio.wait_for(worker.settle(failed), 20.0) == []
        await until(lambda: len(inbox.got) > 2, "the next, now that the hands are free")

        async with asyncio.timeout(30):
            while True:  # what moves from one place to another while it is counted is in neither
                depth = await worker.depth("tight")
                if None not in (depth.ready, depth.delayed, depth.active):
                    count = depth.ready + depth.delayed + depth.active
                    if count == 2 + 40 - len(refused):
                        break
                await asyncio.sleep(0.1)
    finally:
        await bench.close()


def test_an_alarm_keeps_no_acknowledgement_back(server: Any, project: Project) -> None:
    """While the server takes no messages, failures wait to be moved, but what succeeds is acknowledged, so that queues drain."""
    project.handler(
        """
        async def handler(message, callback):
            note("began")
            if message == "bad":
                await agate("fail")
                raise ValueError("no")
            await agate("go")
            callback()
        """
    )
    project.queues({"work": {"handler": "work", "concurrency": 10, "attempts": 2, "backoff": "0s"}})
    project.start()
    project.send_bulk("work", ["bad"] * 5 + list(range(100)))
    project.noted("began", 10)
    with alarm(server):
        project.open("fail")
        project.until(project.worker_blocked, "the worker to hear of the alarm")
        project.open("go")
        project.wait(Outcome.COMPLETED, count=100)
    assert len(project.wait(Outcome.DEAD, count=5)) == 5


#: Erlang: stop and wake the process of a quorum queue, as a queue whose members have lost their leader looks from outside.
SUSPEND = """
    {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{name}">>)),
    sys:{what}(whereis(element(1, amqqueue:get_pid(Q)))).
"""


async def test_a_queue_that_confirms_nothing_does_not_stop_the_others(
    server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a queue without a leader never confirms fails in time, and makes room for messages to other queues."""
    monkeypatch.setattr(publishing, "WINDOW", 20)
    client = await bench.open("client")
    await client.declare([QueueSpec(name="other", dead_letter="other.dead")])
    assert await client.publish([*messages(1), *messages(1, queue="other")], 10.0) == {}
    name = bench.settings.prefix + "work"
    await asyncio.to_thread(server.ctl, "-q", "eval", SUSPEND.format(name=name, what="suspend"))
    try:
        errors = await client.publish(messages(30), 1.0)
        assert len(errors) == 30

        await until(lambda: client._publisher._channel is not None, "another channel")
        assert await client.publish(messages(5, queue="other"), 20.0) == {}
    finally:
        await asyncio.to_thread(server.ctl, "-q", "eval", SUSPEND.format(name=name, what="resume"))
        await bench.close()


#: Erlang: stop and wake the process that writes all quorum queues' commands to the disk, as a disk that hangs for a moment.
HANG = "sys:{what}(ra_log_wal)."


async def test_a_worker_that_stops_while_the_disk_hangs_leaves_what_it_acknowledged_done(
    server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel forgets, when it closes, acknowledgements beyond those that a queue has under way: it stays open for them."""
    monkeypatch.setattr(consuming, "LAST_WORDS", 60.0)
    count = 100
    worker = await bench.open()
    inbox = await Inbox(worker).begin(bench.queue, credit=count)
    assert await worker.publish(messages(count), 20.0) == {}
    await until(lambda: len(inbox.got) == count, "all")
    await inbox.subscription.cancel()

    await asyncio.to_thread(server.ctl, "-q", "eval", HANG.format(what="suspend"))
    try:
        for one in reversed(inbox.got):
            assert await worker.settle([Settlement(one, Verb.ACK)]) == []
        closing = asyncio.ensure_future(worker.close())
        await asyncio.wait([closing], timeout=0.5)  # had it not waited, it would be closed by now
        assert not closing.done()
    finally:
        await asyncio.to_thread(server.ctl, "-q", "eval", HANG.format(what="resume"))
    await closing

    other = await bench.open()
    assert (await other.depth("work")).ready == 0
    again = await Inbox(other).begin(bench.queue)
    assert await other.publish([last := messages(1)[0]], 20.0) == {}
    await until(lambda: bool(again.got), "what is sent then")
    assert [one.message.id for one in again.got] == [last.id]
    await bench.close()
