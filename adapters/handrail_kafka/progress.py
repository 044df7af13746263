"""What is finished in one partition: a watermark and a map of what is finished beyond it. It does no I/O.

Kafka keeps one number a partition and group, and a text of at most 4096 bytes beside it. The number is the lowest offset
that is not finished; the text is the map, so that a crash repeats only what was in hand.
"""

from __future__ import annotations

import base64
import binascii
import functools
import heapq
import re
import zlib
from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

import msgspec

#: The server's default for ``offset.metadata.max.bytes``.
METADATA_LIMIT = 4096
#: Beyond this many characters nothing new is admitted until the watermark moves.
FULL = 3000
#: A span of this many offsets always fits: its bitmap is 2000 bytes, 2500 in base85.
SAFE_SPAN = 16_000

#: Bytes of a bitmap below which nothing is gained by packing it: there is one with each commit, and time is dearer than room.
PLAIN = 400

#: Messages whose counts are kept beside the map; more are given back through the topic's tail, where order allows.
MOST_COUNTS = 40
#: Characters that counts may take. Where a queue keeps order and more are given back or wait in place, the highest find room:
#: about a hundred. The others have their former counts after this worker's death.
COUNTS_ROOM = 800
#: Messages in hand that are named, so that others do not list them as waiting; of more only the number is told.
MOST_HELD = 64

#: Characters of a board's path, at most, and boards that are named beside the own: workers that may die one after another
#: before the messages of a partition are done, and still leave what they had completed to who follows.
MOST_PATH, MOST_BOARDS = 300, 16

_MARK = "hr2"
_RUNS = re.compile(rb"\x01+|\x00+")


#: Attempts, starts and crashes of a message, and when its next attempt is due: Unix time in milliseconds, 0 for at once.
Counts = tuple[int, int, int, int]


class Stand(msgspec.Struct, frozen=True):
    """What a group's commit says of one partition."""

    #: Every offset below is finished.
    watermark: int
    #: One byte an offset from the watermark: 1 is finished. Ends with a 1, or is empty.
    beyond: bytes = b""
    #: Messages that were in workers' hands when it was written.
    held: int = 0
    #: Which those were, when they were few.
    held_at: tuple[int, ...] = ()
    #: The topic was made by handrail, so that its space may be reclaimed.
    ours: bool = False
    #: By offset, of messages that were given back where they lie, or wait there for their next attempt; ascending.
    counts: tuple[tuple[int, Counts], ...] = ()
    #: Path of the board of the worker that wrote it, for those who learn of its death.
    board: str = ""
    #: Boards of workers that had it before and of whose messages some may still lie here: below which offset, and its path.
    before: tuple[tuple[int, str], ...] = ()
    #: Id of the topic, where the servers tell it: another topic of that name has other messages.
    topic_id: str = ""
    #: The register knows that the group has handled messages of it.
    noted: bool = False

    @property
    def finished(self) -> int:
        """How many offsets beyond the watermark are finished."""
        return self.beyond.count(1)


def encode(stand: Stand) -> tuple[int, str]:
    """The commit that says *stand*. A map that does not fit is left out from its end: at worst something is repeated."""
    beyond = stand.beyond
    counts = _encode_counts(stand) if stand.counts else ""
    own = stand.board if len(stand.board) < MOST_PATH else ""
    board = _quoted(own)
    folder = own.rpartition("/")[0] + "/"
    room = MOST_PATH * 3
    for below, path in stand.before:
        # as a rule they lie side by side
        name = path.removeprefix(folder)
        entry = f",{below - stand.watermark}={quote(path if '/' in name else name, safe='/')}"
        room -= len(entry)
        if room < 0:
            break
        board += entry
    held = ".".join(str(at - stand.watermark) for at in stand.held_at[:MOST_HELD])
    topic = f"{'o' if stand.ours else '-'}{'n' if stand.noted else ''}:{stand.topic_id}"
    head = f"{stand.watermark};{stand.held}{':' if held else ''}{held};{topic};{counts};{board};"
    while True:
        text = head + _encode_map(beyond)
        text = f"{_MARK};{zlib.crc32(text.encode()):x};{text}"
        if len(text) <= METADATA_LIMIT:
            return stand.watermark, text
        beyond = beyond[: len(beyond) * 3 // 4].rstrip(b"\x00")


@functools.lru_cache(maxsize=16)
def _quoted(path: str) -> str:
    return quote(path)


def _encode_map(beyond: bytes) -> str:
    if not beyond:
        return ""
    bitmap = _bits(beyond)
    mode, data = "b", bitmap
    if len(bitmap) > PLAIN:
        runs = _varints(len(run) for run in _RUNS.findall(beyond)) if beyond else b""
        if beyond[:1] == b"\x01":
            runs = b"\x00" + runs
        for other_mode, other in (("r", runs), ("s", zlib.compress(runs)), ("c", zlib.compress(bitmap))):
            if len(other) < len(data):
                mode, data = other_mode, other
    return f"{mode};{len(beyond)};{base64.b85encode(data).decode()}"


def _encode_counts(stand: Stand) -> str:
    """The counts as offset, what is known, and that; of too many those that are worth the most."""
    kept = stand.counts
    most = COUNTS_ROOM // 4
    if len(kept) > most:
        kept = tuple(heapq.nlargest(most, kept, key=lambda one: (one[1][2], one[1][0], one[1][1])))
    while True:
        text = base64.urlsafe_b64encode(_varints(_numbers(stand.watermark, sorted(kept)))).decode().rstrip("=")
        if len(text) <= COUNTS_ROOM:
            return text
        kept = kept[: len(kept) * 3 // 4]


def _numbers(watermark: int, counts: Sequence[tuple[int, Counts]]) -> Iterable[int]:
    dues = [due for _at, (_attempts, _starts, _crashes, due) in counts if due]
    first = min(dues, default=0)
    yield first
    before = watermark
    for at, (attempts, starts, crashes, due) in counts:
        yield at - before
        before = at
        # mostly there is a number of attempts and as many starts
        yield attempts << 3 | (starts != attempts) << 2 | (crashes > 0) << 1 | (due > 0)
        if starts != attempts:
            yield starts
        if crashes:
            yield crashes
        if due:
            yield due - first


def _decode_counts(text: str, watermark: int) -> tuple[tuple[int, Counts], ...]:
    if not text:
        return ()
    numbers = iter(_lengths(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))
    first = next(numbers, 0)
    found = []
    at = watermark
    for step in numbers:
        at += step
        known = next(numbers)
        attempts = known >> 3
        starts = next(numbers) if known & 4 else attempts
        crashes = next(numbers) if known & 2 else 0
        found.append((at, (attempts, starts, crashes, first + next(numbers) if known & 1 else 0)))
    return tuple(found)


def decode(offset: int, text: str) -> tuple[Stand, str]:
    """What the commit of *offset* with *text* says, and one line of what is wrong with the text, or nothing.

    Anybody may commit anything: a text that is not ours, damaged, or written for another offset gives the watermark alone.
    """
    if not text:
        return Stand(offset), ""
    mark, _, rest = text.partition(";")
    check, _, rest = rest.partition(";")
    if mark != _MARK:
        return Stand(offset), "its metadata was not written by handrail"
    if check != f"{zlib.crc32(rest.encode()):x}":
        return Stand(offset), "its metadata is damaged"
    parts = [mark, *rest.split(";", 7)]
    try:
        base = int(parts[1])
        facts, _, topic_id = parts[3].partition(":")
        number, _, places = parts[2].partition(":")
        held, held_at = int(number), tuple(base + int(place) for place in places.split(".")) if places else ()
        if base != offset:
            return Stand(offset), f"its metadata was written for offset {base}"
        counts = _decode_counts(parts[4], base)
        board, *before = parts[5].split(",")
        board = unquote(board)
        folder = board.rpartition("/")[0] + "/"
        stand = Stand(
            offset,
            b"",
            held,
            held_at,
            "o" in facts,
            counts,
            board,
            tuple(_before(one, base, folder) for one in before),
            topic_id,
            "n" in facts,
        )
        if parts[6] == "":
            return stand, ""
        beyond = _decode_map(parts[6], int(parts[7]), base64.b85decode(parts[8]))
    except (ValueError, IndexError, StopIteration, zlib.error, binascii.Error):
        return Stand(offset), "its metadata is damaged"
    return msgspec.structs.replace(stand, beyond=beyond), ""


def _before(text: str, watermark: int, folder: str) -> tuple[int, str]:
    below, _, path = text.partition("=")
    name = unquote(path)
    return watermark + int(below), name if "/" in name else folder + name


def _decode_map(mode: str, count: int, data: bytes) -> bytes:
    if not 0 < count < 10_000_000:
        raise ValueError("no such count")
    if mode in "sc":
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(data, 20_000_000)
    if mode in "bc":
        digits = f"{int.from_bytes(data, 'big'):b}".rjust(count, "0")
        if len(digits) != count:
            raise ValueError("too long")
        return digits.encode().translate(_FROM_DIGITS)
    if mode not in "rs":
        raise ValueError("no such mode")
    found = bytearray()
    flag = 0
    for length in _lengths(data):
        if len(found) + length > count:
            raise ValueError("too long")
        found += bytes((flag,)) * length
        flag ^= 1
    if len(found) != count:
        raise ValueError("too short")
    return bytes(found)


_TO_DIGITS = bytes.maketrans(b"\x00\x01", b"01")
_FROM_DIGITS = bytes.maketrans(b"01", b"\x00\x01")


def _bits(flags: bytes) -> bytes:
    return int(flags.translate(_TO_DIGITS), 2).to_bytes((len(flags) + 7) // 8, "big")


def _varints(numbers: Iterable[int]) -> bytes:
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7  # noqa: PLW2901 - the same number, what is left of it
        out.append(number)
    return bytes(out)


def _lengths(data: bytes) -> Iterable[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise ValueError("no such number")
        if not byte & 128:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("cut off")


class Tracker:
    """The state of one partition that is ours: what was received, what of it is finished, what to commit."""

    __slots__ = ("_base", "_claims", "_claims_at", "_flags", "_low", "position")

    def __init__(self, watermark: int, beyond: bytes = b"") -> None:
        #: The next offset that was not received yet.
        self.position = watermark
        self._base = watermark  # the offset of _flags[0]
        self._low = 0  # index in _flags below which all is finished
        self._flags = bytearray()  # one a received offset: 1 is finished, or was never there
        self._claims = bytearray(beyond)  # what is finished of that not received yet …
        self._claims_at = watermark  # … from this offset on

    def receive(self, offsets: Sequence[int]) -> list[bool]:
        """Note that *offsets*, ascending, were received; for each whether it is to be handled (and not finished already)."""
        wanted = []
        for offset in offsets:
            if offset < self.position:
                wanted.append(False)
                continue
            if offset > self.position:  # compaction, transaction markers, deleted records: nothing will come there
                self._flags += b"\x01" * (offset - self.position)
            at = offset - self._claims_at
            finished = at < len(self._claims) and self._claims[at] == 1
            self._flags.append(finished)
            self.position = offset + 1
            wanted.append(not finished)
        self._forget_claims()
        return wanted

    def receive_run(self, first: int, last: int, count: int) -> bool:
        """As :meth:`receive` for the *count* ascending offsets from *first* to *last*, if that is plain: False if not.

        Plain is what comes next, without a gap, and with nothing of it known to be finished.
        """
        if first != self.position or last - first != count - 1 or self._claims:
            return False
        self._flags += bytes(count)
        self.position = self._claims_at = last + 1
        return True

    def finish_all(self, offsets: Iterable[int]) -> None:
        """As :meth:`finish` for each."""
        base, flags = self._base, self._flags
        end = len(flags)
        for offset in offsets:
            at = offset - base
            if 0 <= at < end:
                flags[at] = 1
            else:
                self.finish(offset)

    def finish(self, offset: int) -> None:
        """*offset* is finished. Received or not."""
        at = offset - self._base
        if at < 0:
            return
        if at < len(self._flags):
            self._flags[at] = 1
            return
        at = offset - self._claims_at
        if at >= len(self._claims):
            self._claims += bytes(at + 1 - len(self._claims))
        self._claims[at] = 1

    def skip_to(self, offset: int) -> None:
        """Nothing below *offset* that was not received yet will be handled here."""
        if offset > self.position:
            self._flags += b"\x01" * (offset - self.position)
            self.position = offset
            self._forget_claims()

    def is_finished(self, offset: int) -> bool:
        at = offset - self._base
        if at < len(self._flags):
            return at < 0 or self._flags[at] == 1
        at = offset - self._claims_at
        return at < len(self._claims) and self._claims[at] == 1

    def _forget_claims(self) -> None:
        if self.position - self._claims_at >= len(self._claims):
            self._claims.clear()
            self._claims_at = self.position

    @property
    def watermark(self) -> int:
        """The lowest offset that is not finished; the position when none is."""
        at = self._flags.find(0, self._low)
        self._low = len(self._flags) if at < 0 else at
        if self._low > 8192:
            del self._flags[: self._low]
            self._base += self._low
            self._low = 0
        if self._low == len(self._flags):
            # finished ones that were claimed before they were received need not be received to be passed
            at = self.position - self._claims_at
            if at < len(self._claims) and self._claims[at]:
                end = self._claims.find(0, at)
                self.skip_to(self._claims_at + (len(self._claims) if end < 0 else end))
                self._low = len(self._flags)
        return self._base + self._low

    @property
    def span(self) -> int:
        """Offsets from the watermark to the last one received."""
        return self.position - self.watermark

    @property
    def unfinished(self) -> int:
        """How many of those received are not finished."""
        watermark = self.watermark
        return self._flags.count(0, watermark - self._base)

    def beyond(self) -> bytes:
        """The map beyond the watermark, up to the last finished offset."""
        start = self.watermark - self._base
        found = bytes(self._flags[start:]) + bytes(self._claims[self.position - self._claims_at :])
        return found.rstrip(b"\x00")
