"""Messages as records: nothing of a message is lost, and nothing of a foreign record."""

from __future__ import annotations

import dataclasses

from handrail.message import Message
from handrail_kafka import wire


@dataclasses.dataclass
class Record:
    topic: str = "t"
    partition: int = 2
    offset: int = 7
    key: bytes | None = None
    value: bytes | None = b"{}"
    headers: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)


def back(record: Record) -> Record:
    """*record* as it is after it was delivered and published again."""
    message = wire.message_of(record, "q", record)
    return Record(key=wire.key_of(message), value=message.body, headers=wire.headers_of(message))


def test_a_foreign_record_gets_its_id_from_its_position() -> None:
    """Without our headers a message is named by topic, partition and offset."""
    assert wire.message_of(Record(), "q", Record()) == Message(queue="q", id="t/2/7", body=b"{}")


def test_foreign_headers_survive_twice_null_and_binary() -> None:
    """Names that come twice, null values and bytes that are no text are there again after a republish."""
    theirs = [("a", b"1"), ("a", b"2"), ("none", None), ("raw", b"\xff\x00")]

    again = back(Record(headers=theirs))  # type: ignore[arg-type]

    assert [one for one in again.headers if not one[0].startswith("handrail-")] == theirs


def test_a_tombstone_stays_one() -> None:
    """A record without a value is a message with an empty body, and has no value again after a republish."""
    record = Record(key=b"k", value=None)

    assert wire.message_of(record, "q", record).body == b""
    message = wire.message_of(record, "q", record)
    assert (wire.key_of(message), wire.value_of(message)) == (b"k", None)
    assert wire.value_of(wire.message_of(Record(value=b""), "q", Record())) == b""


def test_a_key_that_is_no_text_survives() -> None:
    """Its partition depends on it, so it is kept as it is."""
    assert back(Record(key=b"\xff\xfe")).key == b"\xff\xfe"


def test_bad_headers_of_ours_are_no_obstacle() -> None:
    """Anybody may write headers: what cannot be read has its default."""
    headers = [("handrail-id", b"\xff not an id"), ("handrail-priority", b"many"), ("handrail-attempts", b"-1")]

    message = wire.message_of(Record(headers=headers), "q", Record())

    assert (message.id, message.priority, message.attempts) == ("t/2/7", 4, 0)
