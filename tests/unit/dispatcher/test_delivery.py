"""A message's way through a worker when something goes wrong: hosts that die, settings that change, brokers that stall."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from typing import Any

import pytest

from handrail import adapter as port
from handrail import board as boards
from handrail import pipe
from handrail.adapter import Delivery
from handrail.dispatcher import core, fleet, hosts, verdict
from handrail.dispatcher.lane import Lane
from handrail.duration import LONGEST
from handrail.errors import BrokerError, StartError
from handrail.ledger.sqlite import SQLiteLedger
from handrail.logs import Journal
from handrail.message import Message, Options
from handrail.outcome import Backoff, Outcome
from handrail.worker import Worker
from handrail_sqlite import SQLiteAdapter


def shared_hosts(worker: Worker) -> list[hosts.Host]:
    generation = worker.dispatcher.fleet.current
    assert generation is not None
    return generation.shared


# -- what cannot be handed over ------------------------------------------------------------------------------------------


async def test_what_the_pipe_cannot_carry_is_dead_and_harms_no_other(site) -> None:
    """A message with a header that cannot cross to a host is dead with the reason; those around it are handled."""
    site.handler("def handler(message): pass")
    settings = site.queues()
    async with site.worker(settings) as worker:
        worker.pause()
        await site.send("before")
        await site.send("odd", headers={"number": 1 << 70})
        await site.send("after")
        worker.resume()
        await site.until(lambda: len(site.seen) == 3, "three outcomes")

    assert sorted(site.outcomes()) == [("after", "completed"), ("before", "completed"), ("odd", "dead")]
    assert "cannot be given to a handler" in next(verdict.reason for one, verdict in site.seen if one == "odd")


async def test_a_suspect_the_pipe_cannot_carry_does_not_keep_the_next_from_running(site) -> None:
    """A suspect that cannot cross to a host is dead, and the suspect behind it runs."""
    site.handler("def handler(message): pass")
    async with site.worker(site.queues()):
        await site.send("odd", headers={"number": 1 << 70}, crashes=1)
        await site.send("next", crashes=1)
        await site.until(lambda: len(site.seen) == 2, "two outcomes")

    assert site.outcomes() == [("odd", "dead"), ("next", "completed")]


async def test_more_jobs_than_the_board_has_slots(site, monkeypatch) -> None:
    """Jobs for which the board has no slot run like the others, and their host's death counts as a crash of theirs."""
    monkeypatch.setattr(boards, "SLOTS", 2)
    site.handler("async def handler(message): note(message); await agate('go')")
    async with site.worker(site.queues({"work": {"handler": "work", "concurrency": 5}})) as worker:
        await site.send(*range(5))
        await site.until(lambda: len(site.notes()) == 5, "five running")
        os.kill(shared_hosts(worker)[0].pid, signal.SIGKILL)
        await site.until(lambda: len(site.seen) == 5, "five crashes")
        site.open("go")
        await site.until(lambda: len(site.seen) == 10, "five more outcomes")

    assert {kind for _, kind in site.outcomes()[:5]} == {"crashed"}
    assert {kind for _, kind in site.outcomes()[5:]} == {"completed"}


async def test_a_worker_that_stood_still_hears_of_its_brokers_before_it_begins(site, monkeypatch) -> None:
    """What was fetched before a long standstill may be another's by now: nothing of it is begun before the broker answers."""
    answered = []

    async def answers(adapter):
        await asyncio.sleep(0.5)
        await catch_up(adapter)
        answered.append(time.monotonic())

    catch_up = SQLiteAdapter.catch_up
    monkeypatch.setattr(SQLiteAdapter, "catch_up", answers)
    site.handler("def handler(message): note(time.monotonic())")
    async with site.worker(site.queues()) as worker:
        worker.dispatcher._sure_until = time.monotonic()  # as if it had not looked round for long
        await site.send(1, 2)
        await site.until(lambda: len(site.seen) == 2, "both outcomes")

    [heard] = answered
    assert all(began >= heard for [began] in site.notes())
    assert [entry for entry in site.logs if "stood still" in entry["event"]]


async def one_after_a_standstill(site) -> None:
    """A worker that has not looked round for long gets a message, which has its outcome."""
    async with site.worker(site.queues()) as worker:
        worker.dispatcher._sure_until = time.monotonic()
        await site.send("one")
        await site.until(lambda: site.seen, "its outcome")


async def test_a_worker_that_stands_still_again_asks_again(site, monkeypatch) -> None:
    """An answer from before another standstill says nothing of what was lost in that."""
    asked = []

    async def answers(_adapter):
        asked.append(True)
        if len(asked) == 1:
            time.sleep(0.3)  # noqa: ASYNC251 - the whole process stands still

    monkeypatch.setattr(SQLiteAdapter, "catch_up", answers)
    monkeypatch.setattr(core, "STOOD_STILL", 0.25)
    site.handler("def handler(message): note(len(message))")
    await one_after_a_standstill(site)

    assert len(asked) >= 2


async def test_an_adapter_that_cannot_be_asked_stops_nothing(site, monkeypatch) -> None:
    """A worker whose adapter does not know the question goes on as well."""
    monkeypatch.setattr(SQLiteAdapter, "catch_up", None)
    site.handler("def handler(message): note(message)")
    await one_after_a_standstill(site)

    assert site.outcomes() == [("one", "completed")]


@pytest.mark.parametrize("error", [BrokerError("away"), RuntimeError("a slip of an adapter"), None])
async def test_a_broker_that_cannot_say_what_it_took_back_stops_nothing_for_good(site, monkeypatch, error) -> None:
    """A worker that woke goes on when a broker refuses to answer, and after a while when it says nothing."""

    async def silent(_adapter):
        if error is not None:
            raise error
        await asyncio.sleep(3600)

    monkeypatch.setattr(SQLiteAdapter, "catch_up", silent)
    monkeypatch.setattr(core, "HEARING", 0.3)
    site.handler("def handler(message): note(message)")
    await one_after_a_standstill(site)

    assert site.outcomes() == [("one", "completed")]


async def test_options_from_the_wire_cannot_kill_a_host(site) -> None:
    """A backoff whose numbers are beyond all bounds waits for the longest time there is, and harms nobody else."""
    site.handler("def handler(message):\n    if message: raise ValueError")
    async with site.worker(site.queues()) as worker:
        pid = shared_hosts(worker)[0].pid
        odd = Options(attempts=100, backoff=Backoff(delay=1.0, factor=1e308))
        await site.send("odd", options=odd, attempts=5)
        await site.until(lambda: site.seen, "its outcome")
        await site.send(None)
        await site.until(lambda: len(site.seen) == 2, "the next")

        assert [host.pid for host in shared_hosts(worker)] == [pid]
    assert site.outcomes() == [("odd", "failed"), (None, "completed")]


# -- timeouts ------------------------------------------------------------------------------------------------------------


async def test_a_timeout_counts_from_when_the_handler_was_entered(site) -> None:
    """What waited in a busy host for longer than its timeout has all of it once it runs."""
    site.handler("""
        async def handler(message):
            note(message)
            if message == "blocks":
                gate("go")  # blocks the loop, so that the other waits in its host
    """)
    settings = site.queues({"work": {"handler": "work", "timeout": "8s", "attempts": 1, "concurrency": 2}})
    async with site.worker(settings) as worker:
        await site.send("blocks", options=Options(timeout=120.0))
        await site.until(site.notes, "the first to run")
        await site.send("waits")
        await site.until(lambda: worker.dispatcher.running == 2, "the second handed over")
        await asyncio.sleep(8.5)  # more than all of its timeout
        site.open("go")
        await site.until(lambda: len(site.seen) == 2, "two outcomes")

    assert dict(site.outcomes()) == {"blocks": "completed", "waits": "completed"}


async def test_a_suspect_that_times_out_leaves_nothing_that_the_next_is_blamed_for(site) -> None:
    """A suspect's host ends with its timeout: what it left running cannot kill the host under the next suspect."""
    site.handler("""
        def handler(message):
            note(message, os.getpid())
            if message == "hangs": gate("never")
    """)
    settings = site.queues({"work": {"handler": "work", "timeout": "60s", "attempts": 1}})
    async with site.worker(settings):
        await site.send("hangs", crashes=1, options=Options(timeout=8.0))
        await site.send("next", crashes=1)
        await site.until(lambda: len(site.seen) == 2, "two outcomes")

    assert site.outcomes() == [("hangs", "dead"), ("next", "completed")]
    (_, first), (_, second) = site.notes()
    assert first != second


async def test_a_host_full_of_abandoned_threads_serves_until_another_does(site) -> None:
    """A host is replaced for its abandoned threads, but goes on serving while no other can be started."""
    site.handler("""
        def handler(message):
            if message == "hangs": gate("never")
    """)
    queues = {"work": {"handler": "work", "timeout": "60s", "attempts": 1, "concurrency": 1}}
    async with site.worker(site.queues(queues)) as worker:
        (first,) = shared_hosts(worker)
        site.handler("raise RuntimeError('not now')\ndef handler(message): pass")
        await site.send("hangs", options=Options(timeout=0.2))
        await site.until(lambda: any("did not start" in str(one) for one in site.logs), "a start that failed")
        await site.send("served")
        await site.until(lambda: len(site.seen) == 2, "its outcome")
        assert site.outcomes()[1] == ("served", "completed")

        site.handler("def handler(message): pass")
        await site.until(lambda: first not in shared_hosts(worker), "its successor")
        assert len(shared_hosts(worker)) == 1


# -- hosts that die --------------------------------------------------------------------------------------------------------


async def test_a_host_that_dies_between_its_start_and_the_switch_is_replaced(site) -> None:
    """A host that dies after it was ready and before its generation serves is replaced like any other."""
    site.handler("def handler(message): pass")
    settings = site.queues()
    async with site.worker(settings) as worker:
        generation = await worker.dispatcher.load(settings, ["work"])
        (host,) = generation.shared
        os.kill(host.pid, signal.SIGKILL)
        await site.until(lambda: host.ended, "its end")
        await worker.dispatcher.switch(generation)

        await site.send(1)
        await site.until(lambda: site.seen, "the message to be handled")


async def test_a_host_that_dies_while_it_is_replaced_has_one_successor(site) -> None:
    """A host that dies while another starts in its place is not replaced twice."""
    site.handler("def handler(message): pass")
    async with site.worker(site.queues()) as worker:
        (host,) = shared_hosts(worker)
        worker.dispatcher.fleet.replace(host)
        os.kill(host.pid, signal.SIGKILL)
        await site.until(lambda: host.ended and len(shared_hosts(worker)) == 1, "its successor")
        await site.until(lambda: not len(worker.dispatcher.fleet._tasks), "all that was begun to be done")

        assert len(shared_hosts(worker)) == 1


def test_a_start_that_fails_for_days_is_still_tried() -> None:
    """However often a host could not be started, the pause before the next try has an end."""
    assert [fleet.pause(deaths) for deaths in (0, 1, 2, 5000)] == [0.0, 0.1, 0.2, fleet.LONGEST_PAUSE]


async def test_no_process_to_be_had_is_no_end(site, monkeypatch) -> None:
    """When the system gives no process for a host, that is said and tried again."""
    site.handler("def handler(message): pass")
    async with site.worker(site.queues()) as worker:
        (host,) = shared_hosts(worker)
        popen = hosts.subprocess.Popen

        def refuse(*_args: Any, **_kwargs: Any) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(hosts.subprocess, "Popen", refuse)
        os.kill(host.pid, signal.SIGKILL)
        await site.until(lambda: any("did not start" in str(one) for one in site.logs), "a start that failed")
        monkeypatch.setattr(hosts.subprocess, "Popen", popen)

        await site.send(1)
        await site.until(lambda: site.seen, "the message to be handled")


async def test_a_signal_without_a_name_is_a_death_like_any_other(site) -> None:
    """A host that a real-time signal killed is noticed and replaced."""
    site.handler("def handler(message): pass")
    async with site.worker(site.queues()) as worker:
        (host,) = shared_hosts(worker)
        os.kill(host.pid, 40)
        await site.until(lambda: host.ended, "its end")
        await site.until(lambda: len(shared_hosts(worker)) == 1, "its successor")


async def test_what_a_host_had_not_begun_when_its_queue_was_left_goes_back(site) -> None:
    """A message handed to a host that dies after its queue was removed from the worker is back in its queue at once."""
    site.handler("""
        async def handler(message):
            note(message)
            gate("go")  # blocks the loop
            os._exit(9)
    """)
    site.handler("def handler(message): pass", "other")
    settings = site.queues({"work": {"handler": "work", "concurrency": 2}, "other": "other"})
    async with site.worker(settings) as worker:
        await site.send("poison")
        await site.until(site.notes, "the poison")
        await site.send("bystander")
        await site.until(lambda: worker.dispatcher.running == 2, "the hand-over")
        report = await worker.reload(site.queues({"work": {}, "other": "other"}))
        assert report.problems == []
        site.open("go")
        await site.until(lambda: site.seen, "the crash")

        adapter = worker.adapter("default")
        end = time.monotonic() + 10
        while (await adapter.depth("work")).active and time.monotonic() < end:
            await asyncio.sleep(0.01)
        depth = await adapter.depth("work")
        assert (depth.active, depth.ready) == (0, 2)


async def test_no_host_is_left_unwatched_by_a_stop(site) -> None:
    """Hosts that were killed for a timeout, or loaded for a reload that came to nothing, have ended when `stop` returns."""
    site.handler("def handler(message): note(message); gate('never')")
    settings = site.queues({"work": {"handler": "work", "isolation": "process", "concurrency": 3}})
    async with site.worker(settings) as worker:
        await site.send(1, 2, 3)
        await site.until(lambda: len(site.notes()) == 3, "three running")
        await worker.dispatcher.load(settings, ["work"])
    # the end of `site.worker` asserts that no task is left


# -- reloads ---------------------------------------------------------------------------------------------------------------


async def test_a_change_to_isolation_leaves_bystanders_alone(site) -> None:
    """A timeout of what runs in the old shared host kills nobody there, though its queue is isolated by now."""
    site.handler("async def handler(message): note(message); await agate('go')")
    site.handler("async def handler(message): note(message); await agate('go')", "other")
    queues: dict[str, Any] = {
        "work": {"handler": "work", "timeout": "700ms", "attempts": 1},
        "other": "other",
    }
    async with site.worker(site.queues(queues)) as worker:
        await site.send("times out")
        await site.send("bystander", queue="other")
        await site.until(lambda: len(site.notes()) == 2, "both running")
        queues["work"]["isolation"] = "process"
        site.handler("def handler(message): pass")
        assert (await worker.reload(site.queues(queues))).problems == []
        await site.until(lambda: site.seen, "the timeout")
        site.open("go")
        await site.until(lambda: len(site.seen) == 2, "the bystander")

    assert site.outcomes() == [("times out", "dead"), ("bystander", "completed")]


async def test_suspects_of_a_queue_that_becomes_isolated_run(site) -> None:
    """Suspects that wait while their queue becomes isolated run in processes of their own."""
    site.handler("def handler(message): note(message); message == 'first' and gate('go')")
    site.handler("def handler(message): pass", "other")
    queues: dict[str, Any] = {"work": {"handler": "work"}, "other": "other"}
    async with site.worker(site.queues(queues)) as worker:
        await site.send("first", "second", crashes=1)
        await site.until(site.notes, "the first suspect")
        queues["work"]["isolation"] = "process"
        assert (await worker.reload(site.queues(queues))).problems == []
        await site.until(lambda: ("second", "completed") in site.outcomes(), "the second")
        site.open("go")
        await site.until(lambda: len(site.seen) == 2, "the first")


async def test_a_reload_the_broker_refuses_changes_nothing(site, monkeypatch) -> None:
    """When the broker will not have a new queue, the old code and settings serve on, and no host is left over."""
    site.handler("def handler(message): return 1")
    async with site.worker(site.queues()) as worker:
        before = [host.pid for host in worker.dispatcher.fleet]
        adapter = worker.adapter("default")

        async def refuse(_queues: Any) -> None:
            raise BrokerError("queue added: exists with other arguments")

        monkeypatch.setattr(adapter, "declare", refuse)
        report = await worker.reload(site.queues({"work": "work", "added": "work"}))

        assert report.problems == ["queue added: exists with other arguments"]
        assert [host.pid for host in worker.dispatcher.fleet] == before
        assert list(worker.settings.queues) == ["work"]
        await site.send(1)
        await site.until(lambda: site.seen, "the message")


async def test_a_broker_that_handlers_sent_to_can_be_served_later(site) -> None:
    """A queue on a second broker is served by a worker of that broker, though it was only sent to before."""
    site.handler("""
        from handrail import context
        async def handler(message): await context.queues.send_to_queue("far", message)
    """)
    site.handler("def handler(message): note('far', message)", "far")
    brokers = {"default": {"url": "sqlite:one.db"}, "second": {"url": "sqlite:two.db"}}
    queues: dict[str, Any] = {"work": "work", "far": {"broker": "second"}}
    async with site.worker(site.queues(queues, brokers=brokers)) as worker:
        await site.send(7)
        await site.until(lambda: site.seen, "the send")
        queues["far"] = {"broker": "second", "handler": "far"}
        report = await worker.reload(site.queues(queues, brokers=brokers))

        assert report.problems == []
        await site.until(lambda: ["far", 7] in site.notes(), "the second queue's message")
        assert worker.adapter("second")._writer._worker  # one with a lease, whose death is noticed


async def test_a_reload_while_paused_starts_nothing(site) -> None:
    """A paused worker stays paused through a reload, for its old queues and its new ones; then all is handled."""
    site.handler("def handler(message): note(message)")
    async with site.worker(site.queues()) as worker:
        worker.pause()
        await site.send("old")
        report = await worker.reload(site.queues({"work": "work", "added": "work"}))
        assert report.problems == []
        await site.send("new", queue="added")
        await site.until(lambda: len(worker.dispatcher.lanes) == 2, "both lanes")
        assert site.notes() == []
        worker.resume()
        await site.until(lambda: len(site.seen) == 2, "both messages")


async def test_a_paused_worker_that_stops_gives_back_what_it_held(site) -> None:
    """What a paused worker had fetched is back in its queue, untouched, once the worker has stopped."""
    site.handler("def handler(message): note(message); gate('go')")
    settings = site.queues({"work": {"handler": "work", "concurrency": 1}})
    async with site.worker(settings) as worker:
        await site.send(*range(5))
        await site.until(site.notes, "the first to run")
        worker.pause()
        site.open("go")
        await site.until(lambda: site.seen, "its end")
    client = port.load(settings.brokers["default"])
    await client.open("client")
    try:
        waiting = await client.peek("work", "ready", 10)
        assert [(one.body, one.starts) for one in waiting] == [(b"1", 0), (b"2", 0), (b"3", 0), (b"4", 0)]
    finally:
        await client.close()


# -- credit ----------------------------------------------------------------------------------------------------------------


async def test_a_queue_that_turned_slow_stops_hoarding(site) -> None:
    """After a fast burst the window falls back, and slow messages are left to others."""
    site.handler("async def handler(message): message == 'slow' and await agate('go')")
    async with site.worker(site.queues({"work": {"handler": "work", "concurrency": 10}})) as worker:
        lane = worker.dispatcher.lanes["work"]
        await site.send(*range(5000))
        await site.until(lambda: len(site.seen) == 5000, "the burst")
        await site.until(lambda: lane.window == lane.capacity, "the window to fall back")
        await site.send(*["slow"] * 500)
        await site.until(lambda: lane.running == 10, "ten slow ones")
        depth = await worker.adapter("default").depth("work")
        assert depth.active is not None
        assert depth.active <= 10


async def test_what_was_fetched_for_a_rate_that_is_past_goes_back(site) -> None:
    """Messages fetched ahead while handlers were fast are given back when they turn out to be slow."""
    site.handler("async def handler(message): message == 'slow' and await agate('go')")
    async with site.worker(site.queues({"work": {"handler": "work", "concurrency": 10}})) as worker:
        lane = worker.dispatcher.lanes["work"]
        await site.send(*range(4000), *["slow"] * 3000)
        await site.until(lambda: lane.running == 10 and len(site.seen) == 4000, "the slow ones")
        await site.until(lambda: len(lane.buffer) <= 10, "the rest to go back")
        async with asyncio.timeout(30):
            while True:  # ten run, and ten may be fetched ahead
                active = (await worker.adapter("default").depth("work")).active
                if active is not None and active <= 20:
                    break
                await asyncio.sleep(0.05)
        site.open("go")
        await site.until(lambda: len(site.seen) == 7000, "all of them")

    assert {kind for _, kind in site.outcomes()} == {"completed"}


async def test_a_standstill_makes_no_handler_slow(site, monkeypatch) -> None:
    """What waits here is kept when this process stood still, for what was fetched behind it would overtake it else."""

    async def never(_worker: Worker, _dispatcher: core.Dispatcher) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Worker, "_look_round", never)
    site.handler("async def handler(message): await agate('go')")
    async with site.worker(site.queues({"work": {"handler": "work", "concurrency": 1}})) as worker:
        dispatcher, lane = worker.dispatcher, worker.dispatcher.lanes["work"]
        dispatcher.look_round()
        lane._set_rate(1000.0)  # as after a burst
        await site.send(*range(30))
        await site.until(lambda: len(lane.buffer) == 29, "one to run and the others to wait")

        looked_at = lane._measured = time.monotonic() - core.LATE - 1
        dispatcher._sure_until = looked_at + core.STOOD_STILL
        dispatcher.look_round()
        assert len(lane.buffer) == 29

        lane._measured -= core.LATE
        dispatcher.look_round()
        await site.until(lambda: not lane.buffer, "the others to go back")
        site.open("go")


def test_lanes_forget_what_waits_for_the_ledger(site) -> None:
    """What is lost while the ledger is asked about it does not run."""
    site.handler("def handler(message): pass")
    lane = Lane(site.queues().queues["work"], "async", settler=None)  # type: ignore[arg-type]
    lost, kept = (Delivery(Message(queue="work", id=name, body=b""), None) for name in "ab")
    lane.unclaimed.extend((lost, kept))

    lane.forget([lost])

    assert list(lane.unclaimed) == [kept]


# -- the ledger --------------------------------------------------------------------------------------------------------------


async def test_a_message_that_waits_for_the_ledger_is_not_overtaken(site) -> None:
    """Messages keep their order, whether or not their senders chose their ids."""
    site.handler("async def handler(message): note(message)")
    settings = site.queues({"work": {"handler": "work", "concurrency": 1}}, ledger="sqlite:ledger.db")
    async with site.worker(settings) as worker:
        worker.pause()
        for number in range(0, 60, 3):
            await site.send(number, id=f"chosen-{number}", send=f"act-{number}")
            await site.send(number + 1, number + 2)
        worker.resume()
        await site.until(lambda: len(site.seen) == 60, "all of them")

    assert [number for (number,) in site.notes()] == list(range(60))


async def test_a_second_sending_of_an_id_is_a_duplicate(site) -> None:
    """Of two acts of sending one id the first runs; one that names no act of sending is never dropped for its id."""
    site.handler("def handler(message): pass")
    settings = site.queues(ledger="sqlite:ledger.db")
    async with site.worker(settings):
        await site.send("first", id="same", send="one")
        await site.until(lambda: site.seen, "the first")
        await site.send("second", id="same", send="two")
        await site.send("foreign", id="same")
        await site.until(lambda: len(site.seen) == 3, "all three")

    assert dict(site.outcomes()) == {"first": "completed", "second": "duplicate", "foreign": "completed"}


async def test_what_was_cancelled_while_it_waited_never_begins(site, monkeypatch) -> None:
    """A worker that starts takes nothing before it has asked what was cancelled, however long the answer takes."""
    asked = SQLiteLedger.cancelled

    async def slowly(ledger: SQLiteLedger) -> set[tuple[str, str]]:
        await asyncio.sleep(0.5)
        return {*await asked(ledger), ("work", "unwanted")}

    monkeypatch.setattr(SQLiteLedger, "cancelled", slowly)
    site.handler("def handler(message): note(message)")
    settings = site.queues(ledger="sqlite:ledger.db")
    await site.send("unwanted", id="unwanted", send="one")
    await site.send("wanted")
    async with site.worker(settings):
        await site.until(lambda: len(site.seen) == 2, "both outcomes")

    assert dict(site.outcomes()) == {"unwanted": "cancelled", "wanted": "completed"}
    assert site.notes() == [["wanted"]]


async def test_large_bodies_and_results(site) -> None:
    """Bodies and results of ten megabytes cross between the processes, several of them at once."""
    site.handler("async def handler(message): note(len(message)); await agate('go'); return message")
    async with site.worker(site.queues()) as worker:
        await site.send(*["x" * 10_000_000] * 6)
        await site.until(lambda: len(site.notes()) == 6, "all of them running")
        site.open("go")
        await site.until(lambda: len(site.seen) == 6, "all of them")
        assert len(shared_hosts(worker)) == 1

    assert {verdict.outcome for _, verdict in site.seen} == {Outcome.COMPLETED}


async def test_a_result_too_large_for_the_pipe_is_a_failed_attempt(site, monkeypatch) -> None:
    """A result that does not fit between two processes fails its attempt, with that as the reason."""
    monkeypatch.setattr(pipe, "LARGEST_FRAME", pipe.FULL_FRAME + 5000)
    site.handler("async def handler(message): return 'x' * message")
    site.handler("def handler(message): return 'x' * message", "thread")
    queues = {name: {"handler": name, "attempts": 1} for name in ("work", "thread")}
    async with site.worker(site.queues(queues), in_process=True):
        await site.send(6000, 10)
        await site.send(6000, 10, queue="thread")
        await site.until(lambda: len(site.seen) == 4, "four outcomes")

    assert sorted(site.outcomes()) == [(10, "completed"), (10, "completed"), (6000, "dead"), (6000, "dead")]
    assert all("its result cannot be kept" in verdict.reason for size, verdict in site.seen if size == 6000)


# -- the end -----------------------------------------------------------------------------------------------------------------


async def test_a_broker_that_stalls_does_not_keep_a_worker_from_stopping(site, monkeypatch) -> None:
    """A worker stops in bounded time though another process holds the queue file, and at once when told to hurry."""
    site.handler("async def handler(message): note(message); await agate('go')")
    worker_of = site.worker(site.queues())
    worker = await worker_of.__aenter__()
    await site.send(1)
    await site.until(site.notes, "the message to run")
    turn = next(site.root.rglob("turn"))
    with turn.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stopping = asyncio.ensure_future(worker.stop(0.0))
        worker.hurry()
        await asyncio.wait((stopping,), timeout=25.0)
        assert stopping.done()
        fcntl.flock(held, fcntl.LOCK_UN)
    assert [host.pid for host in worker.dispatcher.fleet] == []


def _hang_on_leaving(site: Any) -> None:
    """Give the project a lifespan that is entered at once and never left."""
    (site.root / "handlers" / "_lifespan.py").write_text(
        "import asyncio\nasync def lifespan():\n    yield {}\n    await asyncio.sleep(3600)\n"
    )


async def test_a_hurry_ends_hosts_that_do_not_end_by_themselves(site, monkeypatch) -> None:
    """A second signal does not wait for a lifespan that hangs."""
    monkeypatch.setattr(hosts, "LEAVE_TIMEOUT", 600.0)
    site.handler("async def handler(message): pass")
    _hang_on_leaving(site)
    async with site.worker(site.queues()) as worker:
        stopping = asyncio.ensure_future(worker.stop(0.0))
        await site.until(lambda: worker.dispatcher.fleet.stopping, "the hosts being told")
        worker.hurry()
        async with asyncio.timeout(60):
            await stopping


async def test_a_hurry_during_the_drain_ends_them_too(site, monkeypatch) -> None:
    """A second signal while a handler drains waits neither for it nor for a lifespan that would hang after it."""
    monkeypatch.setattr(hosts, "LEAVE_TIMEOUT", 600.0)
    site.handler("async def handler(message): note(message); await agate('never')")
    _hang_on_leaving(site)
    async with site.worker(site.queues()) as worker:
        await site.send(1)
        await site.until(site.notes, "the message to run")
        stopping = asyncio.ensure_future(worker.stop(600.0))
        await site.until(lambda: worker.dispatcher.stopping, "the drain")
        assert not worker.dispatcher.fleet.stopping
        worker.hurry()
        async with asyncio.timeout(60):
            await stopping


async def test_exit_functions_of_handlers_run_to_their_end(site, monkeypatch) -> None:
    """A worker that stops in order lets its hosts end by themselves: what a handler's module registered runs whole."""
    monkeypatch.setattr(hosts, "LEAVE_TIMEOUT", 600.0)
    site.handler("""
        import atexit, sys, time
        sys.modules["__main__"].EXIT = 600.0
        def leave():
            note("begun")
            time.sleep(0.2)
            note("done")
        atexit.register(leave)
        def handler(message): pass
    """)
    async with site.worker(site.queues()) as worker:
        await worker.stop(0.0)

    assert site.notes() == [["begun"], ["done"]]


async def test_whoever_listens_cannot_harm_what_is_settled(site) -> None:
    """An error in what is told of outcomes costs neither the next outcome nor the stop."""
    site.handler("def handler(message): pass")
    async with site.worker(site.queues()) as worker:

        def fail(*_args: Any) -> None:
            raise ZeroDivisionError

        worker.dispatcher._on_outcome = fail
        await site.send(*range(5))
        await site.until(lambda: sum("could not be told" in str(one) for one in site.logs) == 5, "five errors told")
        assert await worker.idle(10.0)


@pytest.mark.parametrize("factor", [1e308, 2.0])
def test_a_wait_is_never_longer_than_brokers_can_hold(factor: float) -> None:
    """No backoff leads beyond ten years."""
    assert verdict._wait(Backoff(delay=10.0, factor=factor), 60) == LONGEST
    assert verdict._wait(Backoff("fixed", 3.0), 60) == 3.0


async def test_a_stop_while_it_starts(site) -> None:
    """A worker that is stopped while its handlers load does not start, and leaves nothing behind."""
    site.handler("note('loading'); gate('go')\ndef handler(message): pass")
    worker = Worker(site.queues(), journal=Journal("off"))
    starting = asyncio.ensure_future(worker.start())
    await site.until(site.notes, "the handlers to be loaded")

    await worker.stop()

    with pytest.raises(StartError):
        await starting
    assert asyncio.all_tasks() == {asyncio.current_task()}
