"""Orders, delays, settling and credit, as far as they are SQLite's own affair."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from sqlite_bench import WAIT, WORK, Bench, eventually, message

from handrail.adapter import Delivery, Depth, QueueSpec, Settlement, Verb
from handrail.outcome import Fault

replace = msgspec.structs.replace


def bodies(deliveries: list[Any]) -> list[str]:
    return [(one.message if isinstance(one, Delivery) else one).body.decode() for one in deliveries]


async def test_fallen_due_goes_behind_what_waits_and_keeps_its_priority(bench: Bench) -> None:
    """A delayed message becomes ready at the tail of its own priority, in order of due times, and keeps its due time."""
    async with bench.worker() as adapter:
        for lead in (0.3, 3.0, 10.0):
            due = time.time() + lead
            delayed = [message("late", due=due + 0.1), message("soon", due=due), message("urgent", due=due, priority=8)]
            await adapter.publish(delayed, WAIT)
            await adapter.publish([message("waits"), message("also")], WAIT)
            if await _depth(adapter, Depth(ready=2, delayed=3, active=0, dead=0)):
                break  # all stood there before any of them fell due
            for state in ("ready", "delayed"):
                await adapter.purge("work", state)
        await eventually(lambda: _depth(adapter, Depth(ready=5, delayed=0, active=0, dead=0)))

        inbox = await bench.consume(adapter)
        got = await inbox.take(5)

        assert bodies(got) == ["urgent", "waits", "also", "soon", "late"]
        assert got[3].message.due is not None
        assert abs(got[3].message.due - due) < 1e-5


async def _depth(adapter: Any, expected: Depth) -> bool:
    return bool(await adapter.depth("work") == expected)


async def test_a_released_message_is_the_next_of_its_priority(bench: Bench) -> None:
    """What goes back comes again before what was published after it, untouched or with new counts."""
    async with bench.worker() as adapter:
        await adapter.publish([message(n) for n in range(5)], WAIT)
        inbox = await bench.consume(adapter, credit=3)
        first = await inbox.take(3)
        inbox.subscription.pause()

        await adapter.settle(
            [
                Settlement(first[0], Verb.RELEASE),
                Settlement(first[2], Verb.RELEASE, replace(first[2].message, starts=1)),
                Settlement(first[1], Verb.ACK),
            ]
        )
        inbox.subscription.resume()
        again = await inbox.take(3)

        assert bodies(again) == ["0", "2", "3"]
        assert [one.redelivered for one in again] == [False, True, False]
        assert again[1].message.starts == 1


async def test_newest_first_and_what_goes_back_first_of_all(bench: Bench) -> None:
    """A queue of `order: lifo` delivers the newest first; an interrupted message comes before even newer ones."""
    spec = QueueSpec(name="work", order="lifo", dead_letter="work.dead")
    async with bench.worker(None, spec) as adapter:
        await adapter.publish([message(n) for n in range(4)], WAIT)
        inbox = await bench.consume(adapter, credit=1, spec=spec)
        (newest,) = await inbox.take(1)
        assert bodies([newest]) == ["3"]

        await adapter.publish([message("newer")], WAIT)
        await inbox.settle(Verb.RELEASE, newest)
        inbox.subscription.set_credit(10)

        assert bodies(await inbox.take(5)) == ["3", "newer", "2", "1", "0"]


async def test_a_retry_stands_behind_what_waits(bench: Bench) -> None:
    """A message moved without a delay goes to the tail of its priority, a delayed one to the delays, with what changed."""
    async with bench.worker() as adapter:
        await adapter.publish([message(n, headers={"a": 1}) for n in range(3)], WAIT)
        inbox = await bench.consume(adapter, credit=2)
        one, two = await inbox.take(2)
        inbox.subscription.pause()
        due = float(int(time.time()) + 600)
        await adapter.settle(
            [
                Settlement(one, Verb.MOVE, replace(one.message, attempts=1, body=b"changed", headers={"b": 2.5})),
                Settlement(two, Verb.MOVE, replace(two.message, attempts=2, due=due, headers=None)),
            ]
        )

        assert bodies(await adapter.peek("work", "ready", 10)) == ["2", "changed"]
        assert (await adapter.peek("work", "ready", 10))[1].headers == {"b": 2.5}
        (waits,) = await adapter.peek("work", "delayed", 10)
        assert (waits.attempts, waits.headers, waits.due) == (2, None, due)
        assert await adapter.depth("work") == Depth(ready=2, delayed=1, active=0, dead=0)


async def test_a_message_moves_to_another_queue(bench: Bench) -> None:
    """MOVE takes a message to the queue that it names, which need not have been known before."""
    async with bench.worker() as adapter:
        await adapter.publish([message("x")], WAIT)
        inbox = await bench.consume(adapter)
        (got,) = await inbox.take(1)
        await inbox.settle(Verb.MOVE, got, message=replace(got.message, queue="elsewhere"))

        assert bodies(await adapter.peek("elsewhere", "ready", 10)) == ["x"]
        assert await adapter.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)
        assert await adapter.depth("elsewhere") == Depth(ready=1, delayed=0, active=0, dead=0)


async def test_settling_twice_is_refused(bench: Bench) -> None:
    """The second settlement of a delivery is refused, and touches nothing, even when the same worker holds the row again."""
    async with bench.worker() as adapter:
        await adapter.publish([message("x")], WAIT)
        inbox = await bench.consume(adapter)
        (first,) = await inbox.take(1)
        assert await inbox.settle(Verb.MOVE, first, message=first.message) == []
        (second,) = await inbox.take(1)

        late = await inbox.settle(Verb.ACK, first)

        assert [one.delivery for one in late] == [first]
        assert await adapter.depth("work") == Depth(ready=0, delayed=0, active=1, dead=0)
        assert await inbox.settle(Verb.ACK, second) == []


async def test_one_refused_settlement_spoils_none_beside_it(bench: Bench) -> None:
    """In a batch with a settlement that is not ours any more, all others are carried out."""
    async with bench.worker() as adapter:
        await adapter.publish([message(n) for n in range(3)], WAIT)
        inbox = await bench.consume(adapter)
        got = await inbox.take(3)
        await inbox.settle(Verb.ACK, got[1])

        refused = await inbox.settle(Verb.ACK, *got)

        assert [one.delivery for one in refused] == [got[1]]
        assert await adapter.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)


async def test_dead_letters_are_dropped_where_nobody_wants_them(bench: Bench) -> None:
    """With `dead_letter: false` a dead message is gone."""
    spec = QueueSpec(name="work", dead_letter=None)
    async with bench.worker(None, spec) as adapter:
        await adapter.publish([message("x", key="k")], WAIT)
        inbox = await bench.consume(adapter, spec=spec)
        (got,) = await inbox.take(1)
        await inbox.settle(Verb.DEAD, got, message=replace(got.message, fault=Fault(reason="no")))

        assert await adapter.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)
        assert await adapter.find("work", "dead", got.message.id) is None


async def test_a_queue_that_bears_the_name_of_dead_letters_gets_them(bench: Bench) -> None:
    """A handler bound to another queue's `dead_letter` name is given its dead letters with their fault, old ones too."""
    async with bench.worker() as adapter:
        await adapter.publish([message("old"), message("new")], WAIT)
        inbox = await bench.consume(adapter, credit=1)
        (old,) = await inbox.take(1)
        fault = Fault(reason="ValueError: no", traceback="tb", at=1.5, queue="work")
        await inbox.settle(Verb.DEAD, old, message=replace(old.message, fault=fault))
        (new,) = await inbox.take(1)
        graves = await bench.consume(adapter, spec=QueueSpec(name="work.dead", dead_letter=None))
        (first,) = await graves.take(1)
        await inbox.settle(Verb.DEAD, new, message=replace(new.message, fault=fault))
        (second,) = await graves.take(1)

        assert bodies([first, second]) == ["old", "new"]
        assert (first.message.fault, first.message.queue) == (fault, "work.dead")
        assert (await adapter.depth("work")).dead == 0


async def test_a_replayed_message_is_as_new(bench: Bench) -> None:
    """Replay clears counts and fault, keeps id and headers, and starts the time within which it must start anew."""
    async with bench.worker() as adapter:
        sent = message("x", headers={"big": 1 << 70, "raw": b"\xff"}, id="kept")
        await adapter.publish([sent, message("y")], WAIT)
        inbox = await bench.consume(adapter, credit=1)
        (got,) = await inbox.take(1)
        inbox.subscription.set_credit(0)
        dead = replace(got.message, attempts=3, starts=4, crashes=1, fault=Fault(reason="r", at=2.0, queue="work"))
        await inbox.settle(Verb.DEAD, got, message=dead)
        before = time.time()

        assert await adapter.replay("work", ["other"]) == 0
        assert await adapter.replay("work", ["kept"]) == 1

        back = (await adapter.peek("work", "ready", 10))[-1]
        assert (back.id, back.headers, back.attempts, back.starts, back.crashes) == ("kept", sent.headers, 0, 0, 0)
        assert back.fault is None
        assert back.due is not None
        assert before - 1e-5 <= back.due <= time.time()


async def test_clearing_more_than_one_step_takes(bench: Bench) -> None:
    """Purge and replay of many thousand messages reach all of them, and the counters agree."""
    async with bench.worker() as adapter:
        count = 12_000
        await adapter.publish([message(n) for n in range(count)], 20)
        inbox = await bench.consume(adapter, credit=count)
        got = await inbox.take(count)
        await inbox.settle(Verb.DEAD, *got)
        await inbox.subscription.cancel()
        assert (await adapter.depth("work")).dead == count

        assert await adapter.replay("work") == count
        assert bodies(await adapter.peek("work", "ready", 3)) == ["0", "1", "2"]
        assert await adapter.purge("work", "ready") == count
        assert await adapter.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)


async def test_one_bad_message_spoils_none_beside_it(bench: Bench) -> None:
    """Of a publish, exactly the messages that no row can hold are named, and all others are stored in order."""
    async with bench.client() as adapter:
        bad = message("bad", id="\ud800")
        odd = message("odd", headers={"what": object()})
        errors = await adapter.publish([message(0), bad, message(1), odd, message(2)], WAIT)

        assert sorted(errors) == [1, 3]
        assert "cannot be stored" in str(errors[3])
        assert bodies(await adapter.peek("work", "ready", 10)) == ["0", "1", "2"]


async def test_large_bodies_are_claimed_within_bounds(bench: Bench) -> None:
    """Bodies that together exceed what one claim takes arrive whole and in order, in several batches."""
    async with bench.worker() as adapter:
        sent = [message(bytes([n]) * 6_000_000) for n in range(8)]
        assert await adapter.publish(sent, 30) == {}
        sizes: list[int] = []
        got: list[Delivery] = []

        def deliver(batch: list[Delivery]) -> None:
            sizes.append(len(batch))
            got.extend(batch)

        await adapter.subscribe(WORK, 100, deliver, lambda _lost: None)
        await eventually(lambda: len(got) == len(sent))

        assert [one.message.body for one in got] == [one.body for one in sent]
        assert max(sizes) < len(sent)


async def test_what_was_claimed_while_pausing_comes_after_resuming(bench: Bench) -> None:
    """Pausing loses nothing: whatever was on its way arrives after resume, and cancel gives it back untouched."""
    async with bench.worker() as adapter:
        inbox = await bench.consume(adapter, credit=10)
        for round_ in range(20):
            publishing = asyncio.ensure_future(adapter.publish([message(round_)], WAIT))
            inbox.subscription.pause()
            await publishing
            inbox.subscription.resume()
        assert sorted(bodies(await inbox.take(10)), key=int) == [str(n) for n in range(10)]

        inbox.subscription.pause()
        await inbox.subscription.cancel()
        await eventually(lambda: _depth(adapter, Depth(ready=10, delayed=0, active=10, dead=0)))


async def test_a_busy_queue_starves_no_other(bench: Bench) -> None:
    """While one queue holds thousands, a message of another queue of the same worker is delivered before they are through."""
    busy = QueueSpec(name="busy")
    async with bench.worker(None, WORK, busy) as adapter:
        await adapter.publish([message(n, "busy") for n in range(20_000)], 20)
        await adapter.publish([message("other")], WAIT)
        seen: list[str] = []

        def deliver(batch: list[Delivery]) -> None:
            seen.extend(one.message.queue for one in batch)
            task = asyncio.ensure_future(adapter.settle([Settlement(one, Verb.ACK) for one in batch]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        tasks: set[asyncio.Future[Any]] = set()
        await adapter.subscribe(busy, 500, deliver, lambda _lost: None)
        await adapter.subscribe(WORK, 500, deliver, lambda _lost: None)
        await eventually(lambda: "work" in seen)

        assert len(seen) < 15_000
        await eventually(lambda: len(seen) == 20_001 and not tasks)


async def test_the_memory_broker_is_shared_within_a_process(bench: Bench) -> None:
    """Adapters of one URL and root meet in `sqlite::memory:`; it is empty once all of them closed, and leaves no file."""
    async with bench.client(url="sqlite::memory:") as sender, bench.worker(url="sqlite::memory:") as worker:
        await sender.publish([message("hello")], WAIT)
        inbox = await bench.consume(worker)
        assert bodies(await inbox.take(1)) == ["hello"]
        await sender.publish([message("left")], WAIT)

    async with bench.client(url="sqlite::memory:") as later:
        assert await later.depth("work") == Depth(ready=0, delayed=0, active=0, dead=0)
    assert list(bench.root.iterdir()) == []


async def test_prefixes_keep_projects_apart_in_one_file(bench: Bench) -> None:
    """Two projects with different prefixes share a file and see nothing of each other."""
    async with bench.client(prefix="a-") as ours, bench.client(prefix="b-") as theirs:
        await ours.publish([message("x")], WAIT)

        assert (await ours.depth("work")).ready == 1
        assert (await theirs.depth("work")).ready == 0
        assert (await ours.peek("work", "ready", 1))[0].queue == "work"
