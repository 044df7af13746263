"""The port itself: what every adapter does with what it is given, apart from any worker."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from contract_harness import Inbox, Port, connected, eventually, message

from handrail.adapter import Adapter, Capability, Delivery, QueueSpec, Settlement, Verb, load
from handrail.errors import BrokerError
from handrail.message import Message, Options, new_id
from handrail.outcome import Backoff, Fault

needs = pytest.mark.needs

replace = msgspec.structs.replace

FULL: dict[str, Any] = {
    "content_type": "text/plain",
    "headers": {"text": "ä \U0001f600", "number": 7, "big": -(2**62), "share": 0.5, "flag": True, "raw": b"\x00\xff"},
    "priority": 7,
    "key": "user-1",
    "options": Options(attempts=9, backoff=Backoff(type="fixed", delay=3.0), timeout=1.5, expires=60.0),
    "attempts": 2,
    "starts": 5,
    "crashes": 1,
    "send": "one-act",
}


def bodies(deliveries: list[Delivery]) -> list[object]:
    return [msgspec.json.decode(one.message.body) for one in deliveries]


def ack(*deliveries: Delivery) -> list[Settlement]:
    return [Settlement(one, Verb.ACK) for one in deliveries]


async def _back(adapter: Adapter, count: int) -> None:
    """Wait until *count* are ready. They are counted, for who looks while some come back may put others before them."""

    async def back() -> bool:
        return (await adapter.depth("work")).ready == count

    await eventually(back, f"{count} to be ready")


async def waiting(adapter: Adapter, state: str = "ready") -> list[object]:
    return [msgspec.json.decode(one.body) for one in await adapter.peek("work", state, 1000)]  # type: ignore[arg-type]


async def publish(adapter: Adapter, *messages: Message) -> None:
    assert await adapter.publish(messages, 20.0) == {}


# -- publishing and delivering ---------------------------------------------------------------------------------------------


async def test_everything_of_a_message_survives_the_broker(port: Port) -> None:
    """Body, id, headers of every type, key, options and counts arrive as they were published."""
    sent = message({"n": 1}, **FULL)
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, sent)
        (got,) = await inbox.take(1)

        delivered = replace(got.message, native=None)
        assert delivered.sent_at == pytest.approx(sent.sent_at, abs=1e-3)
        assert replace(delivered, sent_at=sent.sent_at) == sent
        await inbox.settle(*ack(got))


async def test_a_message_without_our_metadata_has_the_defaults(port: Port) -> None:
    """What a foreign client sends is a first attempt of priority 4 without a time of sending, due at once."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, Message(queue="work", id="foreign", body=b'{"a": 1}'))
        (got,) = await inbox.take(1)

        found = got.message
        assert (found.body, found.attempts, found.starts, found.crashes) == (b'{"a": 1}', 0, 0, 0)
        assert (found.priority, found.sent_at, found.due, found.options, found.fault) == (4, 0.0, None, None, None)
        await inbox.settle(*ack(got))


@pytest.mark.parametrize("body", [b"", b"\x00\xff\xfe", b"x" * 1_000_000], ids=["empty", "not text", "a megabyte"])
async def test_a_body_is_bytes(port: Port, body: bytes) -> None:
    """Any bytes are a body: empty ones, no text, and as many as `max_message_bytes` allows by default."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, Message(queue="work", id=new_id(), body=body))
        (got,) = await inbox.take(1)

        assert got.message.body == body
        await inbox.settle(*ack(got))


@needs(Capability.FIFO)
async def test_messages_of_one_publish_and_of_several_keep_their_order(port: Port) -> None:
    """Messages are delivered in the order in which they were published, in one batch or many, also concurrent ones."""
    async with port.worker() as adapter:
        batches = [[message([batch, n]) for n in range(20)] for batch in range(20)]
        results = await asyncio.gather(*(adapter.publish(batch, 20.0) for batch in batches))
        inbox = await port.consume(adapter, credit=1000)
        got = await inbox.take(400)

        assert results == [{}] * 20
        assert bodies(got) == [[batch, n] for batch in range(20) for n in range(20)]
        await inbox.settle(*ack(*got))


async def test_two_messages_may_have_one_id(port: Port) -> None:
    """An adapter drops no duplicates: what becomes of a second message of an id is decided by workers."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1, id="same"), message(2, id="same"))
        got = await inbox.take(2)

        assert sorted(bodies(got)) == [1, 2]  # type: ignore[type-var]
        await inbox.settle(*ack(*got))


@needs(Capability.PRIORITY)
async def test_the_best_priority_is_delivered_first(port: Port) -> None:
    """9 comes before 0, and equal priorities in the order of their publishing."""
    async with port.worker() as adapter:
        await publish(adapter, *(message(f"{p}{n}", priority=p, key="k") for n in "ab" for p in (0, 4, 9, 5)))
        inbox = await port.consume(adapter)
        got = await inbox.take(8)

        assert bodies(got) == ["9a", "9b", "5a", "5b", "4a", "4b", "0a", "0b"]
        await inbox.settle(*ack(*got))


@needs(Capability.DELAY)
async def test_nothing_undue_is_delivered(port: Port) -> None:
    """A message is delivered when it falls due and never before, whatever credit is free."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        due = time.time() + 0.4
        await publish(adapter, message("now"), message("far", due=due + 3600), message("soon", due=due))
        (now,) = await inbox.take(1)
        (soon,) = await inbox.take(1)

        assert bodies([now, soon]) == ["now", "soon"]
        assert time.time() >= due
        assert await waiting(adapter, "delayed") == ["far"]
        await inbox.settle(*ack(now, soon))


@needs(Capability.DELAY)
async def test_messages_due_at_different_times_do_not_block_one_another(port: Port) -> None:
    """A message due soon is not held up by one published before it and due much later."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        now = time.time()
        await publish(
            adapter, *(message(n, due=now + wait, key="k") for n, wait in ((3, 3.0), (9, 90.0), (1, 1.0), (2, 2.0)))
        )

        got = await inbox.take(3)

        # where all of them are overdue, on a machine that stands still, any may come first
        assert sorted(bodies(got)) == [1, 2, 3]
        assert time.time() < now + 90.0
        await inbox.settle(*ack(*got))


async def test_what_was_published_before_anyone_subscribed_is_delivered(port: Port) -> None:
    """Messages wait for their first subscriber."""
    async with port.worker() as adapter:
        await publish(adapter, message(1))
        inbox = await port.consume(adapter)

        got = await inbox.take(1)
        await inbox.settle(*ack(*got))


async def test_declaring_again_changes_nothing(port: Port) -> None:
    """`declare` is idempotent and deletes nothing."""
    async with port.worker() as adapter:
        await publish(adapter, message(1))
        await adapter.declare([port.queue, QueueSpec(name="another")])
        await adapter.declare([port.queue])

        inbox = await port.consume(adapter)
        await inbox.settle(*ack(*await inbox.take(1)))


async def test_a_plan_makes_nothing_and_tells_what_stands(port: Port) -> None:
    """What a start would make is missing however often it is asked for, and there once it was declared."""
    before = [await load(port.settings).plan([port.queue]) for _ in range(2)]
    async with port.client():
        after = await load(port.settings).plan([port.queue])

    assert before[0] == before[1]
    assert {one.state for one in before[0]} <= {"missing", "later"}
    assert any(one.state == "missing" and one.name == port.settings.prefix + "work" for one in before[0])
    if not port.settings.url.endswith(":memory:"):  # which is of one adapter, and gone with it
        assert any(one.state == "there" and one.name == port.settings.prefix + "work" for one in after)
        assert not [one for one in after if one.state in ("missing", "differs")]


async def test_queues_do_not_mix(port: Port) -> None:
    """A subscription gets messages of its own queue alone."""
    other = QueueSpec(name="other", dead_letter="other.dead")
    async with port.worker(port.queue, other) as adapter:
        work, rest = await port.consume(adapter), await port.consume(adapter, other)
        await publish(
            adapter,
            *(
                message(text, queue, key="k")
                for text, queue in zip(("w1", "o1", "w2", "o2"), ("work", "other") * 2, strict=True)
            ),
        )

        ours, theirs = await work.take(2), await rest.take(2)
        assert (bodies(ours), bodies(theirs)) == (["w1", "w2"], ["o1", "o2"])
        await work.settle(*ack(*ours, *theirs))


# -- credit, pause, cancel -------------------------------------------------------------------------------------------------


async def _stays(inbox: Inbox, adapter: Adapter, count: int) -> None:
    """Assert that no more than *count* come: by something that would have come after them."""
    probe = QueueSpec(name="probe")
    await adapter.declare([probe])
    arrived: list[Delivery] = []
    subscription = await adapter.subscribe(probe, 10, arrived.extend, lambda _lost: None)
    for _ in range(3):
        await publish(adapter, message("probe", "probe"))
        await eventually(lambda: _true(bool(arrived)), "the probe")
        await adapter.settle(ack(*arrived))
        arrived.clear()
    await subscription.cancel()
    assert len(inbox.deliveries) == count


async def _true(value: bool) -> bool:
    return value


async def test_no_more_than_the_credit_is_unsettled(port: Port) -> None:
    """Credit is a window: as many deliveries may be unsettled, and each settlement makes room for another."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=3)
        await publish(adapter, *(message(n, key="k") for n in range(10)))
        first = await inbox.take(3)
        await _stays(inbox, adapter, 0)

        await inbox.settle(*ack(*first[:2]))
        second = await inbox.take(2)
        await _stays(inbox, adapter, 0)

        await inbox.settle(*ack(first[2], *second))
        rest = await inbox.take(3)
        assert sorted(bodies([*first, *second, *rest])) == list(range(8))  # type: ignore[type-var]
        await inbox.settle(*ack(*rest, *await inbox.take(0)))


async def test_credit_may_change_at_any_time(port: Port) -> None:
    """More credit lets more come at once; less keeps what was delivered and lets nothing come until there is room."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=1)
        await publish(adapter, *(message(n) for n in range(10)))
        held = await inbox.take(1)
        inbox.subscription.set_credit(4)
        held += await inbox.take(3)
        inbox.subscription.set_credit(2)
        await inbox.settle(*ack(*held[:2]))
        await _stays(inbox, adapter, 0)

        await inbox.settle(*ack(held[2]))

        last = await inbox.take(1)
        await _stays(inbox, adapter, 0)
        await inbox.settle(*ack(held[3], *last))


async def test_a_pause_delivers_nothing_and_keeps_what_was_delivered(port: Port) -> None:
    """While paused nothing comes and what came can be settled; afterwards all that waited comes."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1))
        (held,) = await inbox.take(1)
        inbox.subscription.pause()
        await publish(adapter, message(2))
        await _stays(inbox, adapter, 0)

        assert await inbox.settle(*ack(held)) == []
        await _stays(inbox, adapter, 0)
        inbox.subscription.resume()

        await inbox.settle(*ack(*await inbox.take(1)))


async def test_a_cancelled_subscription_delivers_nothing_and_what_it_delivered_can_be_settled(port: Port) -> None:
    """After `cancel` nothing more comes, ever; what came before is still ours to settle."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1, key="k"), message(2, key="k"))
        held = await inbox.take(2)

        await inbox.subscription.cancel()

        await publish(adapter, message(3))
        await _stays(inbox, adapter, 0)
        assert await inbox.settle(ack(held[0])[0], Settlement(held[1], Verb.RELEASE)) == []
        again = await port.consume(adapter)
        got = await again.take(2)
        assert sorted(bodies(got)) == [2, 3]  # type: ignore[type-var]
        await again.settle(*ack(*got))


# -- settling --------------------------------------------------------------------------------------------------------------


async def test_an_acknowledged_message_is_gone(port: Port) -> None:
    """ACK takes a message away for good."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1))

        assert await inbox.settle(*ack(*await inbox.take(1))) == []

        await inbox.subscription.cancel()
        again = await port.consume(adapter)
        await _stays(again, adapter, 0)


@needs(Capability.HEAD, Capability.FIFO)
async def test_a_release_goes_to_the_head_uncounted(port: Port) -> None:
    """RELEASE without a message leaves it as if it had never been delivered, in its old place."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=3)
        await publish(adapter, *(message(n) for n in range(5)))
        held = await inbox.take(3)
        await inbox.subscription.cancel()

        await inbox.settle(*(Settlement(one, Verb.RELEASE) for one in (held[1], held[0], held[2])))

        await _back(adapter, 5)
        assert await waiting(adapter) == [0, 1, 2, 3, 4]
        again = await port.consume(adapter)
        got = await again.take(5)
        assert {(one.message.attempts, one.message.starts, one.message.crashes) for one in got} == {(0, 0, 0)}
        await again.settle(*ack(*got))


@needs(Capability.HEAD, Capability.FIFO)
async def test_what_goes_back_in_parts_comes_in_its_order(port: Port) -> None:
    """The last of what is in hand goes back first, and what was before it later: the one worker there is gets all in order."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=100)
        await publish(adapter, *(message(n) for n in range(100)))
        held = await inbox.take(100)
        inbox.subscription.set_credit(1)

        for part in (held[60:], held[20:60], held[1:20]):
            assert await inbox.settle(*(Settlement(one, Verb.RELEASE) for one in part)) == []
        inbox.subscription.set_credit(100)
        assert await inbox.settle(*ack(held[0])) == []

        got = await inbox.take(99)
        assert bodies(got) == [*range(1, 100)]
        assert {(one.message.attempts, one.message.starts, one.message.crashes) for one in got} == {(0, 0, 0)}
        await inbox.settle(*ack(*got))


@needs(Capability.HEAD, Capability.FIFO)
async def test_what_goes_back_comes_before_what_is_fetched_meanwhile(port: Port) -> None:
    """A release with more on its way: what was given back is delivered again before what stood behind it."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=50)
        await publish(adapter, *(message(n) for n in range(200)))
        held = await inbox.take(50)

        releasing = asyncio.create_task(inbox.settle(*(Settlement(one, Verb.RELEASE) for one in held[10:])))
        acking = asyncio.create_task(inbox.settle(*ack(*held[:10])))
        assert await releasing == await acking == []

        got = []
        while len(got) < 190:
            some = await inbox.take(10)
            await inbox.settle(*ack(*some))
            got += some
        assert bodies(got) == [*range(10, 200)]


@needs(Capability.HEAD, Capability.FIFO)
async def test_looking_at_some_of_what_went_back_leaves_the_order(port: Port) -> None:
    """Of messages that were given back, a look at the first few does not push those behind the others."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=20)
        await publish(adapter, *(message(n) for n in range(30)))
        held = await inbox.take(20)
        await inbox.subscription.cancel()
        await inbox.settle(*(Settlement(one, Verb.RELEASE) for one in held))

        await _back(adapter, 30)
        for most in (3, 7, 1):
            first = await adapter.peek("work", "ready", most)
            assert [msgspec.json.decode(one.body) for one in first] == list(range(most))
        assert await waiting(adapter) == [*range(30)]


async def test_a_release_with_a_message_keeps_its_new_counts(port: Port) -> None:
    """RELEASE with a message brings it back with the counts it was given, at the head where the broker can."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=1)
        await publish(adapter, message("a", headers={"x": 1}, key="k"), message("b", key="k"))
        (held,) = await inbox.take(1)
        inbox.subscription.set_credit(1)

        await inbox.settle(Settlement(held, Verb.RELEASE, replace(held.message, starts=1, crashes=1)))

        got = [*await inbox.take(1)]
        if adapter.capabilities[Capability.HEAD] is True:
            assert bodies(got) == ["a"]
        await inbox.settle(*ack(*got))
        got += await inbox.take(1)
        back = next(one.message for one in got if one.message.id == held.message.id)
        assert (back.starts, back.crashes, back.attempts, back.headers) == (1, 1, 0, {"x": 1})
        await inbox.settle(*ack(got[1]))


@needs(Capability.FIFO)
async def test_a_move_goes_to_the_tail(port: Port) -> None:
    """MOVE puts a message behind those that were there, with what changed of it."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=1)
        await publish(adapter, message("a"), message("b"), message("c"))
        (held,) = await inbox.take(1)
        await inbox.subscription.cancel()

        await inbox.settle(Settlement(held, Verb.MOVE, replace(held.message, attempts=1, starts=1)))

        shown = await adapter.peek("work", "ready", 10)
        assert [msgspec.json.decode(one.body) for one in shown] == ["b", "c", "a"]
        assert shown[-1].attempts == 1


@needs(Capability.DELAY)
async def test_a_move_with_a_due_time_waits_in_the_broker(port: Port) -> None:
    """MOVE with `due` keeps the message among the delayed until then."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message("a"))
        (held,) = await inbox.take(1)
        due = time.time() + 1.0

        await inbox.settle(Settlement(held, Verb.MOVE, replace(held.message, attempts=1, due=due)))

        async def delayed() -> bool:
            return await waiting(adapter, "delayed") == ["a"] or time.time() >= due

        await eventually(delayed, "it to wait")  # on its way from delay to delay it is nowhere for a moment
        (got,) = await inbox.take(1)
        assert time.time() >= due
        assert got.message.attempts == 1
        await inbox.settle(*ack(got))


async def test_a_move_may_go_to_another_queue(port: Port) -> None:
    """MOVE with another `queue` takes the message there, and away from here."""
    other = QueueSpec(name="other")
    async with port.worker(port.queue, other) as adapter:
        inbox, there = await port.consume(adapter), await port.consume(adapter, other)
        await publish(adapter, message("a", headers={"x": 1}))
        (held,) = await inbox.take(1)

        await inbox.settle(Settlement(held, Verb.MOVE, replace(held.message, queue="other")))

        (got,) = await there.take(1)
        assert (got.message.queue, got.message.id, got.message.headers) == ("other", held.message.id, {"x": 1})
        await there.settle(*ack(got))
        await _stays(inbox, adapter, 0)


@needs(Capability.DEAD_LETTERS)
async def test_a_dead_letter_keeps_all_and_comes_back_by_replay(port: Port) -> None:
    """DEAD keeps the message with its fault; `replay` brings it back to the tail with its counts at 0."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message("a", **FULL))
        (held,) = await inbox.take(1)
        fault = Fault(reason="no ä", traceback="File …\n  line", at=time.time(), queue="work")

        await inbox.settle(Settlement(held, Verb.DEAD, replace(held.message, attempts=3, fault=fault)))

        letter = await adapter.find("work", "dead", held.message.id)
        assert letter is not None
        assert letter.attempts == 3
        assert letter.fault is not None
        assert replace(letter.fault, at=fault.at) == fault
        assert letter.fault.at == pytest.approx(fault.at, abs=1e-5)
        assert letter.headers == FULL["headers"]
        assert await adapter.replay("work", [held.message.id]) == 1
        (again,) = await inbox.take(1)
        back = again.message
        assert (back.id, back.headers, back.key, back.priority) == (held.message.id, FULL["headers"], "user-1", 7)
        assert (back.attempts, back.starts, back.crashes, back.fault) == (0, 0, 0, None)
        assert back.options == FULL["options"]
        assert await adapter.peek("work", "dead", 10) == []
        await inbox.settle(*ack(again))


async def test_a_queue_without_dead_letters_drops_them(port: Port) -> None:
    """With `dead_letter=None` DEAD takes the message away."""
    spec = QueueSpec(name="work", dead_letter=None)
    async with port.worker(spec) as adapter:
        inbox = await port.consume(adapter, spec)
        await publish(adapter, message(1))
        (held,) = await inbox.take(1)

        fault = Fault(reason="no", at=time.time(), queue="work")
        assert await inbox.settle(Settlement(held, Verb.DEAD, replace(held.message, fault=fault))) == []

        await _stays(inbox, adapter, 0)
        if adapter.capabilities[Capability.DEAD_LETTERS] is not False:
            assert await adapter.peek("work", "dead", 10) == []


async def test_a_delivery_is_settled_once(port: Port) -> None:
    """The second settlement of a delivery is refused: it has no effect, and `settle` returns it."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1))
        (held,) = await inbox.take(1)
        await inbox.settle(Settlement(held, Verb.RELEASE))
        (again,) = await inbox.take(1)

        stale = Settlement(held, Verb.ACK)

        assert await inbox.settle(stale) == [stale]
        assert await inbox.settle(*ack(again)) == []
        assert await inbox.settle(*ack(again)) != []


async def test_one_batch_may_hold_every_verb(port: Port) -> None:
    """A batch of settlements is carried out one by one: a refused one keeps no other from its effect."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, *(message(n, key="k") for n in range(4)))
        held = await inbox.take(4)
        await inbox.settle(ack(held[0])[0])
        stale = Settlement(held[0], Verb.MOVE, held[0].message)
        fault = Fault(reason="no", at=time.time(), queue="work")
        await inbox.subscription.cancel()

        refused = await inbox.settle(
            Settlement(held[1], Verb.MOVE, replace(held[1].message, attempts=1)),
            stale,
            Settlement(held[2], Verb.DEAD, replace(held[2].message, fault=fault)),
            Settlement(held[3], Verb.ACK),
        )

        assert refused == [stale]
        again = await port.consume(adapter)
        got = await again.take(1)
        assert bodies(got) == [1]
        await again.settle(*ack(*got))
        await _stays(again, adapter, 0)


# -- looking and tidying -----------------------------------------------------------------------------------------------------


@needs(Capability.PEEK, Capability.FIFO)
async def test_peek_shows_messages_in_their_order_and_touches_nothing(port: Port) -> None:
    """`peek` shows what waits in its order of delivery, from an offset, and nothing changes by it."""
    async with port.worker() as adapter:
        await publish(adapter, *(message(n) for n in range(10)))

        shown = await adapter.peek("work", "ready", 3, 5)
        assert [msgspec.json.decode(one.body) for one in shown] == [5, 6, 7]
        assert await adapter.find("work", "ready", shown[0].id) is not None
        assert await adapter.find("work", "ready", "unknown") is None

        inbox = await port.consume(adapter)
        got = await inbox.take(10)
        assert bodies(got) == list(range(10))
        if adapter.capabilities[Capability.PEEK] is True:  # where peeking is getting and putting back, it shows
            assert {one.redelivered for one in got} == {False}
        await inbox.settle(*ack(*got))


@needs(Capability.PURGE)
async def test_purge_takes_what_waits_and_says_how_many(port: Port) -> None:
    """`purge` deletes by state and by id what nobody works on."""
    async with port.worker() as adapter:
        await publish(adapter, message("a", id="a"), message("b", id="b"), message("later", due=time.time() + 3600))
        inbox = await port.consume(adapter, credit=1)
        (held,) = await inbox.take(1)

        assert await adapter.purge("work", "ready", [held.message.id, "unknown"]) == 0
        assert await adapter.purge("work", "ready") == 1
        assert await adapter.purge("work", "delayed") == 1
        assert await inbox.settle(*ack(held)) == []
        await _stays(inbox, adapter, 0)


@needs(Capability.DEPTH)
async def test_depth_counts_by_state(port: Port) -> None:
    """`depth` tells ready, delayed, active and dead, exactly."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter, credit=2)
        await publish(adapter, *(message(n) for n in range(5)), message("later", due=time.time() + 3600))
        held = await inbox.take(2)
        found = await adapter.depth("work")
        assert (found.ready, found.delayed, found.active, found.dead) == (3, 1, 2, 0)

        await inbox.subscription.cancel()
        fault = Fault(reason="no", at=time.time(), queue="work")
        await inbox.settle(Settlement(held[0], Verb.DEAD, replace(held[0].message, fault=fault)), ack(held[1])[0])

        async def counted() -> bool:
            found = await adapter.depth("work")
            return (found.ready, found.delayed, found.active, found.dead) == (3, 1, 0, 1)

        await eventually(counted, "all to be in its count")
        nothing = await adapter.depth("never declared")
        assert (nothing.ready or 0, nothing.dead or 0) == (0, 0)


# -- opening and closing -------------------------------------------------------------------------------------------------------


async def test_an_adapter_that_serves_is_up(port: Port) -> None:
    """`health` is up while messages flow, and says in one line what is the matter when the adapter is closed."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1))
        await inbox.settle(*ack(*await inbox.take(1)))

        await connected(adapter)  # it may have stood still
        assert "\n" not in adapter.health().detail
    assert not adapter.health().up


async def test_catching_up_costs_nothing_that_is_ours(port: Port) -> None:
    """`catch_up` returns when the broker has answered; what is in hand all the while stays there, and nothing comes twice."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await adapter.catch_up()
        await publish(adapter, *(message(n) for n in range(10)))
        held = await inbox.take(10)

        await asyncio.gather(adapter.catch_up(), adapter.catch_up())

        assert inbox.lost == []
        assert await inbox.settle(*ack(*held)) == []
        await adapter.catch_up()
        await _stays(inbox, adapter, 0)
    with pytest.raises(BrokerError):
        await adapter.catch_up()


async def test_closing_is_safe_at_any_time(port: Port) -> None:
    """`close` may come twice, and before any `open`."""
    never = load(port.settings)
    await never.close()
    async with port.worker() as adapter:
        await adapter.close()
    await adapter.close()


async def test_a_closed_adapter_settles_nothing(port: Port) -> None:
    """`settle` after `close` raises: what was held went back already."""
    async with port.worker() as adapter:
        inbox = await port.consume(adapter)
        await publish(adapter, message(1))
        (held,) = await inbox.take(1)
        await adapter.close()

        with pytest.raises(BrokerError):
            await inbox.settle(*ack(held))


async def test_every_capability_is_declared(port: Port) -> None:
    """`capabilities` says of each Capability True, False, or the limit in one line; `place` shows no password."""
    adapter = load(port.settings)

    assert set(adapter.capabilities) == set(Capability)
    assert all(isinstance(value, bool) or (value and "\n" not in value) for value in adapter.capabilities.values())
    assert adapter.name
    assert adapter.place
