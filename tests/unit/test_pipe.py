"""The pipe's framing: what goes in at one end comes out at the other, however the bytes are cut."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail import pipe as pipes
from handrail.outcome import Backoff
from handrail.pipe import FULL_COUNT, LARGEST_FRAME, Batch, MemoryPipe, SocketPipe, backoff_of

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=200)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
batches = st.lists(st.lists(st.lists(values, max_size=5), min_size=1, max_size=5), min_size=1, max_size=5)


def framed(batch: Batch) -> bytes:
    """A frame as the module's docstring has it, made by other means."""
    body = msgspec.msgpack.encode(batch)
    return len(body).to_bytes(4, "big") + body


def reader() -> tuple[SocketPipe, list[Batch]]:
    got: list[Batch] = []
    return SocketPipe(got.append, lambda: None), got


def run(story: Callable[[], Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(30):
            return await story()

    return asyncio.run(main())


class End:
    """One end and what came to it."""

    def __init__(self) -> None:
        self.got: list[list[Any]] = []
        self.lost = 0
        self.changed = asyncio.Event()

    def receive(self, batch: Batch) -> None:
        self.got += batch
        self.changed.set()

    def gone(self) -> None:
        self.lost += 1
        self.changed.set()

    async def until(self, condition: Callable[[End], bool]) -> None:
        while not condition(self):
            self.changed.clear()
            await self.changed.wait()


async def sockets() -> tuple[SocketPipe, End, SocketPipe, End]:
    one, other = socket.socketpair()
    a, b = End(), End()
    return (
        await SocketPipe.connect(one, a.receive, a.gone),
        a,
        await SocketPipe.connect(other, b.receive, b.gone),
        b,
    )


async def memory() -> tuple[MemoryPipe, End, MemoryPipe, End]:
    one, other = MemoryPipe.pair()
    a, b = End(), End()
    one.listen(a.receive, a.gone)
    other.listen(b.receive, b.gone)
    return one, a, other, b


both = pytest.mark.parametrize("make", [sockets, memory])


def test_cut_at_every_byte() -> None:
    """Two frames come out the same wherever the stream is cut in two, or into single bytes."""
    sent: list[Batch] = [[[1, b"body", "x"], [2]], [[3, b"\x00" * 70]]]
    stream = b"".join(map(framed, sent))

    async def story() -> None:
        for at in range(len(stream) + 1):
            pipe, got = reader()
            pipe.data_received(stream[:at])
            pipe.data_received(stream[at:])
            assert got == sent
        pipe, got = reader()
        for at in range(len(stream)):
            pipe.data_received(stream[at : at + 1])
        assert got == sent

    run(story)


@settings(max_examples=60, deadline=None)
@given(sent=batches, cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_cuts(sent: list[Batch], cuts: list[int]) -> None:
    """Any messages come out the same for any cutting of the stream."""
    stream = b"".join(map(framed, sent))
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})

    async def story() -> None:
        pipe, got = reader()
        for start, end in itertools.pairwise(places):
            pipe.data_received(stream[start:end])
        assert got == sent

    run(story)


@settings(max_examples=30, deadline=None)
@given(sent=batches)
def test_both_kinds_carry_the_same(sent: list[Batch]) -> None:
    """A socket and a memory pipe carry any messages, in order, both ways, whole."""

    async def story(make: Callable[[], Any]) -> None:
        left, at_left, right, at_right = await make()
        for batch in sent:
            for message in batch:
                left.send(message)
                right.send(message)
            await asyncio.sleep(0)
        expected = [message for batch in sent for message in batch]
        for end in (at_left, at_right):
            await end.until(lambda end: len(end.got) >= len(expected))
            assert end.got == expected
        left.close()
        right.close()
        await asyncio.sleep(0)

    run(lambda: story(sockets))
    run(lambda: story(memory))


@both
def test_one_frame_a_turn(make: Callable[[], Any]) -> None:
    """What is sent in one turn of the loop arrives as one batch."""

    async def story() -> None:
        left, _, right, at_right = await make()
        sizes: list[int] = []
        receive = at_right.receive
        if isinstance(right, SocketPipe):
            right._receive = lambda batch: (sizes.append(len(batch)), receive(batch))[1]
        else:
            right.listen(lambda batch: (sizes.append(len(batch)), receive(batch))[1], at_right.gone)
        for number in range(FULL_COUNT - 1):
            left.send([number])
        await at_right.until(lambda end: len(end.got) == FULL_COUNT - 1)
        assert sizes == [FULL_COUNT - 1]
        left.close()
        right.close()

    run(story)


def test_many_leave_in_parts() -> None:
    """Between processes the first of many messages leave before the last are sent, so that the other side can begin."""

    async def story() -> None:
        left, _, right, at_right = await sockets()
        sizes: list[int] = []
        receive = at_right.receive
        right._receive = lambda batch: (sizes.append(len(batch)), receive(batch))[1]
        for number in range(2 * FULL_COUNT + 3):
            left.send([number])
        await at_right.until(lambda end: len(end.got) == 2 * FULL_COUNT + 3)
        assert sizes == [FULL_COUNT, FULL_COUNT, 3]
        assert at_right.got == [[number] for number in range(2 * FULL_COUNT + 3)]
        left.close()
        right.close()

    run(story)


@both
def test_giant_frames(make: Callable[[], Any]) -> None:
    """Bodies far larger than the socket's buffer cross whole, and what follows them too."""
    giant = bytes(range(256)) * (1 << 16)

    async def story() -> None:
        left, _, right, at_right = await make()
        for number in range(3):
            left.send([number, giant])
            await asyncio.sleep(0)
        left.send([3])
        await at_right.until(lambda end: len(end.got) == 4)
        assert at_right.got == [[0, giant], [1, giant], [2, giant], [3]]
        left.close()
        right.close()

    run(story)


@both
@pytest.mark.parametrize(
    "bad", [object(), 1 << 64, "\ud800", [1, [object()]]], ids=["object", "integer", "surrogate", "inside"]
)
def test_bad_message_harms_no_other(make: Callable[[], Any], bad: Any) -> None:
    """A message that msgpack cannot carry raises at its sender; those before and after it arrive."""

    async def story() -> None:
        left, _, right, at_right = await make()
        left.send([1])
        with pytest.raises((TypeError, OverflowError, UnicodeError)):
            left.send([2, b"half written", bad])
        left.send([3])
        await at_right.until(lambda end: len(end.got) == 2)
        left.send([4])
        await at_right.until(lambda end: len(end.got) == 3)
        assert at_right.got == [[1], [3], [4]]
        left.close()
        right.close()

    run(story)


@both
def test_closing(make: Callable[[], Any]) -> None:
    """What was sent before closing arrives, then the other end learns of it once; what is sent afterwards goes nowhere."""

    async def story() -> None:
        left, _, right, at_right = await make()
        left.send([1])
        left.close()
        left.close()
        left.send([2])
        await at_right.until(lambda end: end.lost > 0)
        right.send([3])
        right.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert at_right.got == [[1]]
        assert at_right.lost == 1

    run(story)


def test_out_of_step() -> None:
    """A length that no frame can have ends the pipe instead of gathering bytes for ever, in one piece or in many."""

    async def story(pieces: list[bytes]) -> None:
        one, other = socket.socketpair()
        with other:
            end = End()
            await SocketPipe.connect(one, end.receive, end.gone)
            for piece in pieces:
                other.send(piece)
                for _ in range(3):
                    await asyncio.sleep(0)
            await end.until(lambda end: end.lost > 0)
            assert end.got == []

    length = (LARGEST_FRAME + 1).to_bytes(4, "big")
    run(lambda: story([length + b"junk"]))
    run(lambda: story([length[:2], length[2:]]))


def test_nothing_after_own_close() -> None:
    """A receiver that closes the pipe gets nothing further, though frames stood in the same read."""

    async def story() -> None:
        one, other = socket.socketpair()
        with other:
            end = End()

            def receive(batch: Batch) -> None:
                end.receive(batch)
                pipe.close()

            pipe = await SocketPipe.connect(one, receive, end.gone)
            other.send(framed([[1]]) + framed([[2]]))
            await end.until(lambda end: end.lost > 0)
            assert end.got == [[1]]

    run(story)


def test_sudden_death() -> None:
    """An end that dies in the middle of a frame is lost to the other; the half frame is nobody's message."""

    async def story() -> None:
        one, other = socket.socketpair()
        end = End()
        await SocketPipe.connect(one, end.receive, end.gone)
        other.send(framed([[1]]) + framed([[2]])[:-1])
        other.close()
        await end.until(lambda end: end.lost > 0)
        assert (end.got, end.lost) == ([[1]], 1)

    run(story)


def test_backoff_crosses() -> None:
    """A backoff arrives as it was sent, none as none."""
    sent = Backoff(type="list", delays=(1.0, 2.5))

    assert backoff_of(msgspec.msgpack.decode(msgspec.msgpack.encode(sent))) == sent
    assert backoff_of(None) is None


def test_large_messages_leave_before_the_frame_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers in one turn leaves in several frames, in order, rather than in one that the other end refuses."""
    monkeypatch.setattr(pipes, "FULL_FRAME", 10_000)
    monkeypatch.setattr(pipes, "LARGEST_FRAME", 30_000)
    sent = [[number, b"x" * 9_000] for number in range(50)]

    async def story() -> None:
        one, _, other, end = await sockets()
        for message in sent:
            one.send(message)
        await end.until(lambda end: end.lost > 0 or len(end.got) == len(sent))
        assert end.got == sent
        one.close()
        other.close()
        await end.until(lambda end: end.lost > 0)

    run(story)


@both
def test_a_message_beyond_the_largest_frame_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that no frame can carry raises where it is sent, and harms no other."""
    monkeypatch.setattr(pipes, "FULL_FRAME", 10_000)
    monkeypatch.setattr(pipes, "LARGEST_FRAME", 30_000)

    async def story() -> None:
        one, _, other, end = await make()
        one.send([1])
        with pytest.raises(OverflowError, match="more than fit"):
            one.send([2, b"x" * 25_000])
        one.send([3])
        await end.until(lambda end: len(end.got) == 2)
        assert end.got == [[1], [3]]
        one.close()
        await end.until(lambda end: end.lost > 0)
        other.close()

    run(story)
