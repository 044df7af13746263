"""The watermark and the map beyond it: what a commit says, and what is believed of it."""

from __future__ import annotations

import random
import zlib

import pytest

from handrail_kafka.progress import METADATA_LIMIT, SAFE_SPAN, Stand, Tracker, decode, encode


@pytest.mark.parametrize("count", [0, 1, 63, 700, 9_000, 24_000])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_commit_says_exactly_what_is_finished(count: int, share: float) -> None:
    """Maps of any density survive, up to 24,000 offsets within the server's 4096 bytes."""
    chance = random.Random(count)
    beyond = bytes(chance.random() < share for _ in range(count)).rstrip(b"\0")
    counts = (18, (1, 2, 3, 0)), (19, (2, 2, 0, 1_700_000_000_123))
    before = (
        (40, "/a folder/b,c=d.board"),
        (4_000_000_000, "/e.board"),
        (41, "/a folder/sub/f.board"),
        (42, "/a folder/g;.board"),
    )
    stand = Stand(17, beyond, 3, (18, 40), True, counts, "/a folder/b;c.board", before)

    offset, text = encode(stand)

    assert len(text) <= METADATA_LIMIT
    assert decode(offset, text) == (stand, "")


def test_a_map_that_does_not_fit_is_cut_and_never_wrong() -> None:
    """What finds no room is handled again; nothing that was not finished is claimed."""
    chance = random.Random(1)
    beyond = bytes(chance.getrandbits(1) for _ in range(100_000)).rstrip(b"\0")

    offset, text = encode(Stand(5, beyond))

    found, wrong = decode(offset, text)
    assert len(text) <= METADATA_LIMIT
    assert not wrong
    assert found.beyond
    assert beyond.startswith(found.beyond)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "17",
        "17;x;-;;;",
        "17;0;-;;;b;9;,,",
        "17;0;-;;;z;2;00",
        "17;0;-;;;b;99999999999;0",
        "17;0;-;gA;;",
        "17;0;-;AAE;;",
    ],
)
@pytest.mark.parametrize("mark", ["hr2", "hr1", "mine"])
def test_what_cannot_be_read_gives_the_watermark_alone(mark: str, text: str) -> None:
    """Foreign and damaged metadata is dropped with one line, and nothing is skipped, were its checksum right."""
    found, wrong = decode(17, f"{mark};{zlib.crc32(text.encode()):x};{text}")

    assert (found.watermark, found.beyond) == (17, b"")
    assert wrong


def test_a_map_for_another_offset_is_not_believed() -> None:
    """A base that is not the committed offset means that the map belongs elsewhere."""
    _offset, text = encode(Stand(17, b"\x00\x01"))

    found, wrong = decode(18, text)

    assert found == Stand(18)
    assert "17" in wrong


def test_of_too_many_counts_the_highest_are_kept() -> None:
    """Thousands may wait for a retry in their place: those that failed most often are surely known after a death."""
    counts = tuple((5 + at, (at % 7, at % 7, 0, 0)) for at in range(3000))

    offset, text = encode(Stand(5, b"", counts=counts))

    found, wrong = decode(offset, text)
    assert not wrong
    assert len(text) < 1000
    assert set(found.counts) <= set(counts)
    assert len(found.counts) > 100
    assert {attempts for _at, (attempts, *_rest) in found.counts} == {6}


def test_a_flipped_bit_is_noticed() -> None:
    """The map carries a checksum."""
    offset, text = encode(Stand(17, b"\x00\x01\x00\x01"))

    found, wrong = decode(offset, text[:-1] + ("1" if text[-1] != "1" else "2"))

    assert found.beyond == b""
    assert wrong


def test_the_watermark_is_the_lowest_unfinished_offset() -> None:
    """Finishing out of order moves the watermark only when the lowest is finished; the rest is in the map."""
    tracker = Tracker(10)
    assert tracker.receive([10, 11, 12, 13]) == [True] * 4

    tracker.finish(12)
    assert (tracker.watermark, tracker.beyond()) == (10, b"\x00\x00\x01")
    tracker.finish(10)
    tracker.finish(11)
    assert (tracker.watermark, tracker.beyond(), tracker.unfinished) == (13, b"", 1)
    tracker.finish(13)
    assert (tracker.watermark, tracker.position) == (14, 14)


def test_gaps_count_as_finished() -> None:
    """Offsets that compaction or transaction markers took never come, so nothing waits for them."""
    tracker = Tracker(0)
    tracker.receive([3, 7])
    tracker.finish(3)
    assert tracker.watermark == 7
    tracker.finish(7)
    assert tracker.watermark == 8


def test_what_the_map_calls_finished_is_not_handled_again() -> None:
    """After a restart only what was unfinished is wanted, and a commit before all is read again keeps the map."""
    tracker = Tracker(100, b"\x00\x01\x01\x00\x01")
    assert tracker.beyond() == b"\x00\x01\x01\x00\x01"

    assert tracker.receive([100, 101]) == [True, False]
    assert tracker.beyond() == b"\x00\x01\x01\x00\x01"
    assert tracker.receive([102, 103, 104, 105]) == [False, True, False, True]


def test_one_early_offset_held_keeps_ten_thousand_later_ones_out_of_a_replay() -> None:
    """The case the map is for: the oldest message runs on while all later ones are done."""
    tracker = Tracker(0)
    tracker.receive(range(10_001))
    for offset in range(1, 10_001):
        tracker.finish(offset)

    offset, text = encode(Stand(tracker.watermark, tracker.beyond()))
    found, _wrong = decode(offset, text)
    again = Tracker(found.watermark, found.beyond)

    assert len(text) < 100
    assert [at for at, wanted in enumerate(again.receive(range(10_001))) if wanted] == [0]


def test_any_order_of_finishing_ends_at_the_position() -> None:
    """However acknowledgements come, the map before a crash is what was finished, no more and no less."""
    chance = random.Random(7)
    tracker, model = Tracker(50), set[int]()
    order = list(range(50, 50 + SAFE_SPAN))
    tracker.receive(order)
    chance.shuffle(order)
    for number, offset in enumerate(order):
        tracker.finish(offset)
        model.add(offset)
        if number % 1999 == 0:
            watermark = tracker.watermark
            assert watermark == next(at for at in range(50, 50 + SAFE_SPAN + 1) if at not in model)
            found = {watermark + at for at, flag in enumerate(tracker.beyond()) if flag}
            assert found == {at for at in model if at > watermark}
    assert tracker.watermark == 50 + SAFE_SPAN


def test_batches_count_as_one_by_one() -> None:
    """Received and finished in batches, with gaps and offsets that came before, the state is that of single steps."""
    chance = random.Random(11)
    for beyond in (b"", b"\x00\x01\x01"):
        one, many = Tracker(5, beyond), Tracker(5, beyond)
        plain = 0
        for _ in range(300):
            first = max(0, one.position + chance.choice((0, 0, 0, 2, -3)))
            offsets = [at for at in range(first, first + chance.randint(1, 20)) if chance.random() < 0.98] or [first]
            if many.receive_run(offsets[0], offsets[-1], len(offsets)):
                plain += 1
                assert one.receive(offsets) == [True] * len(offsets)
            else:
                assert one.receive(offsets) == many.receive(offsets)
            done = [chance.randint(max(0, one.watermark - 5), one.position + 3) for _ in range(15)]
            for offset in done:
                one.finish(offset)
            many.finish_all(done)
            assert (one.watermark, one.position, one.beyond()) == (many.watermark, many.position, many.beyond())
        assert plain > 30
