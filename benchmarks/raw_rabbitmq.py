"""What pika itself does: an AsyncioConnection that publishes, then consumes. The baseline of our ratios.

Published with confirms, persistent and mandatory, at most a thousand unconfirmed; consumed with a prefetch of 500, each
message acknowledged for itself. No ids of its own per message, headers, reconnection or other processes.

    python benchmarks/raw_rabbitmq.py --url amqp://… [--kind quorum] [--messages 10000] [--size 200] [--rounds 5]

prints the medians of the rounds as JSON, under the names of ``measures.py``. With ``--sweep PREFIX`` it deletes instead
what a measured project made under that prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pika
from measures import quantile
from pika.adapters.asyncio_connection import AsyncioConnection

from handrail.adapter import masked

T = TypeVar("T")

WINDOW, PREFETCH = 1000, 500
#: Messages of the latency run.
PACED = 3000
#: The queues of the measured project.
QUEUES = ("noop", "latency")


async def connected(url: str) -> tuple[Any, Any]:
    """A connection and a channel on it."""
    loop = asyncio.get_running_loop()
    opened = loop.create_future()
    AsyncioConnection(
        pika.URLParameters(url),
        on_open_callback=opened.set_result,
        on_open_error_callback=lambda _connection, error: opened.set_exception(error),
    )
    connection = await opened
    channel = await asked(lambda callback: connection.channel(on_open_callback=callback))
    return connection, channel


async def asked(method: Callable[..., Any]) -> Any:
    """What *method*, given a callback, calls it with."""
    answer = asyncio.get_running_loop().create_future()
    method(callback=answer.set_result)
    return await answer


async def publish(channel: Any, queue: str, body: bytes, messages: int) -> float:
    """Publish *messages* and wait until all are confirmed; messages/s."""
    confirmed = 0
    room = asyncio.Event()

    def on_confirm(frame: Any) -> None:
        nonlocal confirmed
        confirmed = frame.method.delivery_tag
        room.set()

    await asked(lambda callback: channel.confirm_delivery(on_confirm, callback=callback))
    properties = pika.BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=secrets.token_hex(16)
    )
    started = time.perf_counter()
    for number in range(messages):
        while number - confirmed >= WINDOW:
            room.clear()
            await room.wait()
        channel.basic_publish("", queue, body, properties, mandatory=True)
    while confirmed < messages:
        room.clear()
        await room.wait()
    return messages / (time.perf_counter() - started)


async def handle(channel: Any, queue: str, messages: int) -> float:
    """Consume and acknowledge all that waits; messages/s."""
    done = asyncio.get_running_loop().create_future()
    got = 0

    def on_message(_channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal got
        got += 1
        channel.basic_ack(method.delivery_tag)
        if got == messages:
            done.set_result(None)

    channel.basic_qos(prefetch_count=PREFETCH)
    started = time.perf_counter()
    channel.basic_consume(queue, on_message)
    await done
    return messages / (time.perf_counter() - started)


async def latency(channel: Any, queue: str, body: bytes) -> list[float]:
    """Milliseconds from the publish to the delivery of each of *PACED* messages, 500 a second, the shortest first."""
    done = asyncio.get_running_loop().create_future()
    sent: list[float] = []
    taken: list[float] = []

    def on_message(_channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        taken.append(1000 * (time.perf_counter() - sent[len(taken)]))
        channel.basic_ack(method.delivery_tag)
        if len(taken) == PACED:
            done.set_result(None)

    await asked(lambda callback: channel.confirm_delivery(lambda _frame: None, callback=callback))
    channel.basic_qos(prefetch_count=PREFETCH)
    await asked(lambda callback: channel.basic_consume(queue, on_message, callback=callback))
    properties = pika.BasicProperties(delivery_mode=2)
    began = time.perf_counter()
    for number in range(PACED):
        await asyncio.sleep(began + number / 500 - time.perf_counter())
        sent.append(time.perf_counter())
        channel.basic_publish("", queue, body, properties, mandatory=True)
    await done
    return sorted(taken[PACED // 10 :])  # the first tenth warms up


async def rates(channel: Any, queue: str, body: bytes, messages: int) -> tuple[float, float]:
    """Published and handled, messages/s."""
    return await publish(channel, queue, body, messages), await handle(channel, queue, messages)


async def measured(url: str, kind: str, measure: Callable[[Any, str], Awaitable[T]]) -> T:
    """What *measure* finds on a connection, a channel and a queue of its own."""
    connection, channel = await connected(url)
    queue = f"bench-raw-{secrets.token_hex(4)}"
    arguments = {"x-queue-type": kind}
    await asked(lambda callback: channel.queue_declare(queue, durable=True, arguments=arguments, callback=callback))
    try:
        found = await measure(channel, queue)
    finally:
        await asked(lambda callback: channel.queue_delete(queue, callback=callback))
    closed = asyncio.get_running_loop().create_future()
    connection.add_on_close_callback(lambda *_: closed.set_result(None))
    connection.close()
    await closed
    return found


async def rounds(url: str, kind: str, body: bytes, messages: int, times: int) -> tuple[list[Any], list[float]]:
    """The rates of each round, and the waits of one run."""
    each = partial(rates, body=body, messages=messages)
    found = [await measured(url, kind, each) for _ in range(times)]
    return found, await measured(url, kind, partial(latency, body=body))


def sweep(url: str, prefix: str) -> None:
    """Delete what the measured project made under *prefix*; to delete what is not there is no error."""
    from handrail_rabbitmq.names import Names, level_queue, levels

    names = Names(prefix)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for queue in (f"{prefix}{name}" for name in QUEUES):
        for name in (queue, f"{queue}.dead", *(level_queue(queue, level) for level in levels())):
            channel.queue_delete(name)
    channel.queue_delete(names.registry)
    channel.exchange_delete(names.registry)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--kind", choices=("quorum", "classic"), default="quorum")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep", metavar="PREFIX")
    options = parser.parse_args()
    url = options.url.partition("?")[0]  # what follows speaks to handrail
    if options.sweep:
        sweep(url, options.sweep)
        return
    body = b'{"n": "' + b"x" * (options.size - 9) + b'"}'
    try:
        found, waits = asyncio.run(rounds(url, options.kind, body, options.messages, options.rounds))
    except pika.exceptions.AMQPConnectionError as error:
        raise SystemExit(f"cannot connect to {masked(url)}: {error!r}") from None
    values = {name: statistics.median(rate[at] for rate in found) for at, name in enumerate(("publish bulk", "handle"))}
    values |= {"latency p50": quantile(waits, 0.50), "latency p99": quantile(waits, 0.99)}
    print(json.dumps(values))


if __name__ == "__main__":
    main()
