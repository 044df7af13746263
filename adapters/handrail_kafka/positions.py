"""Where to go on in a partition: what its group committed, held against what the log still has. It does no I/O."""

from __future__ import annotations

import msgspec
from aiokafka import TopicPartition

from handrail.logger import get_logger
from handrail_kafka import progress
from handrail_kafka.options import LostPosition
from handrail_kafka.part import Commit
from handrail_kafka.progress import Stand

log = get_logger("handrail.kafka")


class Log(msgspec.Struct, frozen=True):
    """What a partition holds now."""

    #: Its first offset, and the one that comes next.
    begin: int
    end: int
    #: Id of its topic, where the servers tell it.
    topic_id: str = ""
    #: The group has finished something of it before, as the register has it.
    known: bool = False


def start_of(
    tp: TopicPartition, group: str, commit: Commit | None, held: Log, on_lost: LostPosition
) -> tuple[Stand, int] | str:
    """What is known of *tp*, which is *held* by the server, and where to go on.

    Or, where a person must decide that, one line of why.
    """
    where = f"{tp.topic}/{tp.partition}"
    begin, end = held.begin, held.end
    new = Stand(begin, topic_id=held.topic_id, noted=held.known)
    if commit is not None:
        stand, wrong = progress.decode(*commit)
        if stand.topic_id and held.topic_id and stand.topic_id != held.topic_id:
            log.warning(
                "the topic was deleted and made anew; all that it holds now is handled", partition=where, group=group
            )
            return msgspec.structs.replace(new, noted=False), begin
        stand = msgspec.structs.replace(stand, topic_id=held.topic_id)
        if not wrong and stand.watermark + len(stand.beyond) > end:
            wrong = f"it claims offsets up to {stand.watermark + len(stand.beyond)}, the log ends at {end}"
            stand = msgspec.structs.replace(
                new, watermark=stand.watermark, ours=stand.ours, noted=stand.noted or new.noted
            )
        if wrong and stand.watermark <= end:
            log.warning(
                "what was finished beyond the watermark is not known; it is handled again",
                partition=where,
                group=group,
                reason=wrong,
            )
        if stand.watermark <= end:
            _tell_of_gone(stand, begin, where, group)
            return left_of(stand, begin), max(stand.watermark, begin)
        what = f"the position {stand.watermark} lies beyond the log's end {end}"
    elif begin == end or not held.known:
        if begin < end and begin > 0:
            log.info(
                "the group is new here; it begins with the first record that is left", partition=where, group=group
            )
        return new, begin
    else:
        what = "its position is gone (the group was empty for longer than offsets.retention.minutes?)"
    if on_lost == "earliest":
        log.warning("position lost; everything that is left is handled again", partition=where, group=group)
        return new, begin
    if on_lost == "latest":
        log.warning("position lost; what waits is skipped", partition=where, group=group, messages=end - begin)
        return msgspec.structs.replace(new, watermark=end), end
    return (
        f"group {group!r} has lost its place in {where}: {what}; set on_lost_position: "
        f"earliest to handle again what is left ({end - begin} records), or latest to skip it"
    )


def left_of(stand: Stand, begin: int) -> Stand:
    """*stand* of a log that begins at *begin*: what lay before it is gone, handled or not."""
    gone = begin - stand.watermark
    if gone <= 0:
        return stand
    return msgspec.structs.replace(
        stand,
        watermark=begin,
        beyond=stand.beyond[gone:],
        held_at=tuple(at for at in stand.held_at if at >= begin),
        counts=tuple(one for one in stand.counts if one[0] >= begin),
    )


def _tell_of_gone(stand: Stand, begin: int, where: str, group: str) -> None:
    gone = max(0, begin - stand.watermark)
    if unfinished := gone - stand.beyond[:gone].count(1):
        log.warning(
            "messages that were not handled are no longer in the topic: was it cleared, or is its retention limited?",
            partition=where,
            group=group,
            messages=unfinished,
        )
