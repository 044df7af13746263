"""The short way of deliveries, confirms, publishes and acknowledgements: byte for byte what pika's own way does."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import exceptions, frame, spec

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, messages, until

from handrail_rabbitmq import frames

#: Bytes of a frame in these tests, and of the body that fits into one.
FRAME = 4096
FITS = FRAME - 8


class End:
    """One end of a connection that nobody is at the other end of: it reads what a test feeds it and keeps what it writes."""

    def __init__(self, kind: type[Any]) -> None:
        parameters = pika.ConnectionParameters(frame_max=FRAME)
        loop = asyncio.new_event_loop()
        self.connection = kind(parameters, custom_ioloop=loop, internal_connection_workflow=False)
        loop.close()
        self.connection._body_max_length = FITS
        self.written = bytearray()
        self.connection._adapter_emit_data = self.written.extend
        #: What came, and on which channel.
        self.heard: list[tuple[Any, ...]] = []
        self.connection._heartbeat_checker = SimpleNamespace(received=lambda: self.heard.append(("heartbeat",)))
        self.channels = [self._channel(number) for number in (1, 2)]

    def _channel(self, number: int) -> Any:
        made = self.connection._create_channel(number, None)
        made._set_state(made.OPEN)
        self.connection._channels[number] = made

        def on_message(_raw: Any, method: Any, properties: Any, body: bytes) -> None:
            take(method.delivery_tag, method.redelivered, b"".join(properties.encode()), body)

        def take(tag: int, redelivered: bool, properties: Any, body: bytes) -> None:
            encoded = properties if isinstance(properties, bytes) else b"".join(properties.encode())
            self.heard.append((number, tag, redelivered, encoded, body))

        def on_confirm(confirm: Any) -> None:
            self.heard.append((number, confirm.method.NAME, confirm.method.delivery_tag, confirm.method.multiple))

        made._consumers["ctag"] = on_message
        self.connection.callbacks.add(number, spec.Basic.Ack, on_confirm, False)
        self.connection.callbacks.add(number, spec.Basic.Nack, on_confirm, False)
        if isinstance(made, frames.ShortChannel):
            made.takes[b"ctag"] = take
            made.on_confirm = lambda tag, multiple: self.heard.append((number, "Basic.Ack", tag, multiple))
        return made

    @property
    def counted(self) -> tuple[int, ...]:
        connection = self.connection
        return (
            *(connection.bytes_received, connection.frames_received),
            *(connection.bytes_sent, connection.frames_sent),
        )


def delivery(channel: int, tag: int, body: bytes, parts: int = 1, **properties: Any) -> list[bytes]:
    """The frames of one delivery, its body in so many."""
    size = -(-len(body) // parts) if body else 1
    return [
        frame.Method(channel, spec.Basic.Deliver("ctag", tag, tag % 2 == 0, "an-exchange", "a.key")).marshal(),
        frame.Header(channel, len(body), spec.BasicProperties(**properties)).marshal(),
        *(frame.Body(channel, body[at : at + size]).marshal() for at in range(0, len(body), size)),
    ]


def stream() -> bytes:
    """What a server may send: usual deliveries, odd ones, and what stands between them."""
    first, second = delivery(1, 7, b"x" * 30, 3), delivery(2, 1, b"other")
    pieces = [
        *delivery(1, 1, b"one", message_id="a", headers={"n": 1}),
        *delivery(1, 2, b""),
        frame.Method(1, spec.Basic.Ack(5, True)).marshal(),
        frame.Heartbeat().marshal(),
        *delivery(1, 3, b"three", content_type="application/json"),
        *delivery(2, 9, b"z" * FITS),
        frame.Method(2, spec.Basic.Nack(6, False)).marshal(),
        # frames of another channel, and of none, between those of one delivery
        *(first[0], *second[:1], first[1], frame.Heartbeat().marshal(), first[2], *second[1:], *first[3:]),
        frame.Method(1, spec.Basic.Ack(6, False)).marshal(),
        *delivery(1, 8, b"y" * 100, 2),
        *delivery(1, 9, b"last"),
    ]
    return b"".join(pieces)


def fed(kind: type[Any], pieces: list[bytes]) -> End:
    end = End(kind)
    for piece in pieces:
        end.connection._on_data_available(piece)
    return end


STREAM = stream()
WHOLE = fed(frames.Gathering, [STREAM])


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_however_the_bytes_come_the_same_is_delivered(cuts: list[int]) -> None:
    """Frames split anywhere give the deliveries, confirms and counters of pika's own way, in the same order."""
    at = [0, *sorted(cuts), len(STREAM)]

    end = fed(frames.Short, [STREAM[a:b] for a, b in itertools.pairwise(at)])

    assert end.heard == WHOLE.heard
    assert end.counted == WHOLE.counted
    assert end.connection._frame_buffer == b""


def test_byte_by_byte_the_same_is_delivered() -> None:
    """Even one byte at a time."""
    small = STREAM[:600]

    assert fed(frames.Short, [bytes([one]) for one in small]).heard == fed(frames.Gathering, [small]).heard


def test_a_delivery_is_not_waited_for_longer_than_it_takes() -> None:
    """As soon as the last byte of a delivery is there it is handed on."""
    whole = b"".join(delivery(1, 1, b"body"))
    end = fed(frames.Short, [whole[:-1]])
    assert end.heard == []

    end.connection._on_data_available(whole[-1:])

    assert [heard[:2] for heard in end.heard] == [(1, 1)]


def test_a_damaged_frame_ends_the_connection() -> None:
    """A frame without its end marker is an error, not a message."""
    for position in range(3):
        pieces = delivery(1, 1, b"body")
        pieces[position] = pieces[position][:-1] + b"\x00"
        with pytest.raises(exceptions.InvalidFrameError):
            fed(frames.Short, [b"".join(pieces)])


@pytest.mark.parametrize("size", [0, 1, 200, FITS - 1, FITS, FITS + 1, 3 * FITS, 3 * FITS + 5])
def test_a_publish_is_written_as_pika_writes_it(size: int) -> None:
    """Method, header and as many bodies as the frame size asks for."""
    properties = spec.BasicProperties(message_id="é", headers={"a": "b"}, delivery_mode=2)
    body = bytes(n % 251 for n in range(size))
    own, short = End(frames.Gathering), End(frames.Short)

    for _ in range(2):  # the second uses what the first prepared
        own.channels[0].basic_publish("an-exchange", "ключ", body, properties, mandatory=True)
        short.channels[0].publish("an-exchange", "ключ", b"".join(properties.encode()), body)

    assert bytes(short.written) == bytes(own.written)
    assert short.counted == own.counted


def test_names_that_amqp_cannot_carry_are_refused() -> None:
    """A routing key of more than 255 bytes raises, and nothing is written."""
    end = End(frames.Short)
    with pytest.raises(exceptions.ShortStringTooLong):
        end.channels[0].publish("", "k" * 256, b"\0\0", b"")

    assert end.written == b""


@pytest.mark.parametrize("multiple", [False, True])
def test_an_acknowledgement_is_written_as_pika_writes_it(multiple: bool) -> None:
    """Tag and flag, on the channel it came by."""
    own, short = End(frames.Gathering), End(frames.Short)

    for end in (own, short):
        end.channels[1].basic_ack(2**40 + 1, multiple)

    assert bytes(short.written) == bytes(own.written)
    assert short.counted == own.counted


def test_nothing_is_written_on_a_closed_channel() -> None:
    """Publishing and acknowledging raise once the channel is closed."""
    end = End(frames.Short)
    end.channels[0]._set_state(end.channels[0].CLOSED)

    with pytest.raises(exceptions.ChannelWrongStateError):
        end.channels[0].publish("", "q", b"\0\0", b"")
    with pytest.raises(exceptions.ChannelWrongStateError):
        end.channels[0].basic_ack(1)
    assert end.written == b""


async def test_each_question_gets_its_own_answer() -> None:
    """Answers to ours and to pika's own questions of the same kind go, in turn, to who asked."""
    end = End(frames.Short)
    channel = end.channels[0]
    asked = spec.Basic.Qos
    ours = [asyncio.get_running_loop().create_future() for _ in range(3)]
    pikas: list[Any] = []

    channel.fence(5, ours[0])
    channel.basic_qos(prefetch_count=7, callback=pikas.append)
    channel.fence(7, ours[1])
    channel.fence(7, ours[2])

    written = [frame.Method(1, asked(prefetch_size=0, prefetch_count=count)).marshal() for count in (5, 7, 7, 7)]
    assert bytes(end.written) == b"".join(written)
    answered = []
    for _ in range(4):
        end.connection._on_data_available(frame.Method(1, spec.Basic.QosOk()).marshal())
        answered.append(([future.done() for future in ours], len(pikas)))
    assert answered == [
        ([True, False, False], 0),
        ([True, False, False], 1),
        ([True, True, False], 1),
        ([True, True, True], 1),
    ]


@pytest.mark.parametrize("kind", [frames.Short, frames.Gathering])
async def test_waiting_for_acknowledgements_changes_no_prefetch(
    kind: type[Any], server: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that starts while a batch of acknowledgements is waited for has the prefetch that was asked for it."""
    monkeypatch.setattr(frames, "connection", lambda: kind)
    worker = await bench.open()
    try:
        channel = await worker._link.channel()
        channel.prefetch = 50
        asked = channel.begin(channel.raw.basic_qos, prefetch_count=50)
        waiting = asyncio.ensure_future(channel.fence())
        await channel.consume(worker._topology.full("work"), "a-tag", lambda *_: None)
        await asyncio.gather(asked, waiting)

        listed = await asyncio.to_thread(server.ctl, "list_consumers", "consumer_tag", "prefetch_count", "--quiet")

        assert "a-tag\t50" in listed.stdout.splitlines()
    finally:
        await bench.close()


def test_another_pika_is_left_to_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a function that the short way replaces does something else, or is gone, pika's own way is taken."""
    assert frames.connection() is frames.Short

    monkeypatch.setattr(pika.connection.Connection, "_on_data_available", lambda self, data: self._something_new(data))
    assert frames.connection() is frames.Gathering

    monkeypatch.undo()
    monkeypatch.delattr(pika.connection.Connection, "_trim_frame_buffer")
    assert frames.connection() is frames.Gathering


@pytest.mark.parametrize("kind", [frames.Short, frames.Gathering])
async def test_messages_of_all_sizes_cross_a_real_server(
    kind: type[Any], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones, empty ones and one of 10 MB come as they were sent, in their order, either way."""
    monkeypatch.setattr(frames, "connection", lambda: kind)
    worker = await bench.open()
    sizes = [10, 0, 131_064, 131_065, 10_000_000, 5, 300_000, *([200] * 300)]
    sent = messages(len(sizes))
    for number, (message, size) in enumerate(zip(sent, sizes, strict=True)):
        message.body = number.to_bytes(4) * (size // 4) + b"." * (size % 4)
    try:
        assert await worker.publish(sent, 60.0) == {}

        inbox = await Inbox(worker).begin(bench.queue, credit=len(sizes), ack=True)
        await until(lambda: len(inbox.handled) == len(sizes), "all of them", 60.0)

        assert [one.message.body for one in inbox.got] == [one.body for one in sent]
        await until(lambda: not inbox.lost, "nothing to be lost")
    finally:
        await bench.close()
