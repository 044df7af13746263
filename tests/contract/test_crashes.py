"""Processes that die, workers that stop, code that is replaced: nothing is lost, and the innocent are not blamed."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from contract_harness import Project

from handrail.adapter import Settlement, Verb
from handrail.outcome import Outcome


def test_a_message_whose_process_died_is_delivered_again(project: Project) -> None:
    """When its process dies a message runs again; a crash is counted, and no attempt."""
    project.handler("""
        import os
        from handrail import context
        def handler(message):
            note('ran', context.job.attempt, context.job.crashes)
            if context.job.crashes == 0: os._exit(9)
    """)
    project.queues({"work": {"handler": "work", "attempts": 1}})
    project.start()

    project.send("work", 1)

    last = project.one(Outcome.COMPLETED)
    assert [one.facts for one in project.notes("ran")] == [(1, 0), (1, 1)]
    assert (last.message.attempts, last.message.starts, last.message.crashes) == (0, 1, 1)
    assert project.one(Outcome.CRASHED).id == last.id


def test_a_poison_message_is_dead_after_max_crashes(project: Project) -> None:
    """A message that kills its process `max_crashes` times is dead with that as its reason."""
    project.handler("import os, signal\ndef handler(message): note('ran'); os.kill(os.getpid(), signal.SIGKILL)")
    project.queues({"work": {"handler": "work", "max_crashes": 2}})
    project.start()

    project.send("work", 1)

    assert "died 2 times" in project.one(Outcome.DEAD).verdict.reason
    assert len(project.notes("ran")) == 2
    letter = project.peek(state="dead")[0]
    assert (letter.crashes, letter.attempts) == (2, 0)


def test_suspects_run_one_at_a_time_and_bystanders_are_not_blamed(project: Project) -> None:
    """What ran beside a poison message is not dead-lettered with it: suspects run alone until the guilty one is known."""
    project.handler("""
        import asyncio, os
        from handrail import context
        async def handler(message):
            note('in', message)
            if message == 'poison':
                if context.job.crashes == 0:
                    await agate("all")
                os._exit(9)
            if context.job.crashes == 0:
                await agate("never")
            await asyncio.sleep(0.05)  # long enough for another to come in, if another could
            note('out', message)
    """)
    project.queues({"work": {"handler": "work", "concurrency": 10, "max_crashes": 2}})
    project.start()
    project.send_bulk("work", ["a", "b", "poison", "c", "d"])
    project.noted("in", 5)

    project.open("all")

    assert [one.payload for one in project.wait(Outcome.DEAD)] == ["poison"]
    completed = project.wait(Outcome.COMPLETED, count=4)
    assert sorted(one.payload for one in completed) == ["a", "b", "c", "d"]
    assert {one.message.crashes for one in completed} == {1}
    again = [(one.tag, one.facts[0]) for one in project.notes() if one.tag in ("in", "out")][5:]
    inside = 0
    for tag, payload in again:
        inside += {"in": 1, "out": -1}[tag]
        if payload == "poison":
            inside -= 1  # it leaves no note when it dies
        assert inside in (0, 1)


def test_what_was_only_handed_over_is_no_suspect(project: Project) -> None:
    """Only what was running is suspect when a process dies: what its host had not begun has no crash to its name."""
    project.handler("""
        import os
        from handrail import context
        async def handler(message):
            note('ran', message, context.job.crashes)
            if message == 'poison':
                gate("all")  # it blocks the loop, so that its host begins nothing else
                os._exit(9)
    """)
    project.queues({"work": {"handler": "work", "concurrency": 10, "max_crashes": 1}})
    running = project.start()
    project.send("work", "poison")
    project.noted("ran")
    project.send_bulk("work", ["a", "b", "c"])
    project.until(lambda: running.worker.dispatcher.running == 4, "the hand-over of all")

    project.open("all")

    project.wait(Outcome.COMPLETED, count=3)
    assert project.one(Outcome.DEAD).payload == "poison"
    assert {one.facts for one in project.notes("ran")} == {("poison", 0), ("a", 0), ("b", 0), ("c", 0)}


def test_a_death_of_an_isolated_process_harms_nobody_else(project: Project) -> None:
    """An isolated handler that dies takes nothing of other queues with it."""
    project.handler("import os\ndef handler(message): os._exit(9)", "dies")
    project.handler("def handler(message): note('in'); gate(\"go\")")
    project.queues({"dies": {"handler": "dies", "isolation": "process", "max_crashes": 1}, "work": "work"})
    project.start()
    project.send("work", 1)
    project.noted("in")

    project.send("dies", 1)

    assert project.one(Outcome.DEAD, queue="dies")
    project.open("go")
    project.one(Outcome.COMPLETED, queue="work")
    assert len(project.notes("in")) == 1


def test_a_killed_host_is_replaced_and_its_work_done(project: Project) -> None:
    """SIGKILL to a host in the midst of work loses nothing: all of it is done by the host that follows."""
    project.handler("""
        import asyncio
        async def handler(message):
            note('in', message)
            if not is_open("go"): await agate("go")
    """)
    project.queues({"work": {"handler": "work", "concurrency": 5}})
    running = project.start()
    project.send_bulk("work", list(range(30)))
    project.noted("in", 5)

    for pid in running.host_pids():
        os.kill(pid, signal.SIGKILL)
    project.open("go")

    project.wait(Outcome.COMPLETED, count=30)
    assert sorted(one.payload for one in project.wait(Outcome.COMPLETED)) == list(range(30))
    assert len(project.wait(Outcome.CRASHED)) == 5


def test_a_drain_lets_running_handlers_finish(project: Project) -> None:
    """A stop starts nothing new and waits for what runs; finished within `drain_timeout` it is completed."""
    project.handler("def handler(message): note('in', message); gate(\"go\")")
    project.queues({"work": {"handler": "work", "concurrency": 1}})
    running = project.start()
    project.send_bulk("work", ["runs", "waits"], key="k")
    project.noted("in")

    async def stop() -> int:
        stopping = asyncio.ensure_future(running.worker.stop(20.0))
        while not running.worker.dispatcher.stopping:
            await asyncio.sleep(0.005)
        project.open("go")
        return await stopping

    assert project.run(stop()) == 0
    running.stopped = True
    assert [(one.payload, one.outcome) for one in project.seen] == [("runs", Outcome.COMPLETED)]
    assert [one.body for one in project.peek()] == [b'"waits"']
    assert [one.facts for one in project.notes("in")] == [("runs",)]


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
def test_what_outlives_the_drain_is_interrupted_and_no_attempt(project: Project, kind: str) -> None:
    """What still runs after the drain goes back: a start, not an attempt; and it runs again elsewhere."""
    word, gate = ("async def", "await agate") if kind == "async" else ("def", "gate")
    project.handler(f"""
        from handrail import context
        {word} handler(message):
            note('in', context.job.attempt, context.job.starts)
            {gate}("go")
    """)
    isolation = {"isolation": "process"} if kind == "process" else {}
    project.queues({"work": {"handler": "work", "attempts": 1, **isolation}})
    running = project.start()
    project.send("work", 1)
    project.noted("in")

    assert running.stop(drain=0.05) == 1

    assert project.one().outcome is Outcome.INTERRUPTED
    project.open("go")
    project.start()
    project.one(Outcome.COMPLETED)
    assert [one.facts for one in project.notes("in")] == [(1, 1), (1, 2)]


def test_a_late_outcome_is_refused_and_logged(project: Project) -> None:
    """An outcome that comes after the message was no longer the worker's is refused and logged; there is no second outcome."""
    project.handler("def handler(message): note('in'); count('in') == 1 and gate(\"go\")")
    running = project.start()
    sent = project.send("work", 1)
    project.noted("in")
    running.pause()

    async def lose_it() -> None:
        (run,) = running.worker.dispatcher._runs.values()
        assert await running.worker.adapter("default").settle([Settlement(run.delivery, Verb.RELEASE)]) == []

    project.run(lose_it())
    project.open("go")

    project.until(lambda: bool(project.journal), "a line in the journal")
    assert [(outcome, which) for outcome, which, _reason in project.journal] == [(Outcome.REFUSED, sent)]
    assert project.seen == []
    running.resume()
    project.one(Outcome.COMPLETED)
    assert [outcome for outcome, _id, _reason in project.journal] == [Outcome.REFUSED, Outcome.COMPLETED]


def test_a_reload_disturbs_nothing_in_flight(project: Project) -> None:
    """After a reload new messages run new code, while what runs finishes in the old code, once."""
    project.handler("def handler(message):\n    note('in', message)\n    gate(\"go\")\n    return 'old'")
    project.queues({"work": {"handler": "work", "concurrency": 2}})
    running = project.start()
    project.send("work", "first")
    project.noted("in")
    project.handler("def handler(message):\n    note('in', message)\n    return 'new'")

    report = running.reload()

    assert report.problems == []
    project.send("work", "second")
    assert project.one(Outcome.COMPLETED).result == "new"
    project.open("go")
    results = {one.payload: one.result for one in project.wait(Outcome.COMPLETED, count=2)}
    assert results == {"first": "old", "second": "new"}
    assert [one.facts[0] for one in project.notes("in")] == ["first", "second"]


def test_concurrency_holds_across_a_reload(project: Project) -> None:
    """`concurrency: 1` counts old and new code together: nothing new starts before the old has ended."""
    project.handler("def handler(message): note('in', message); gate(\"go\"); note('out', message)")
    project.queues({"work": {"handler": "work", "concurrency": 1}})
    running = project.start()
    project.send_bulk("work", ["first", "second"], key="k")
    project.noted("in")

    running.reload()
    project.open("go")

    project.wait(Outcome.COMPLETED, count=2)
    told = [(one.tag, one.facts[0]) for one in project.notes()]
    assert told == [("in", "first"), ("out", "first"), ("in", "second"), ("out", "second")]


def test_two_saves_within_a_second_leave_no_stale_code(project: Project) -> None:
    """Code saved twice in the same second, with the same size, is the code that runs."""
    project.handler("def handler(message): return 'a'")
    running = project.start()
    for version in "bcd":
        project.handler(f"def handler(message): return '{version}'")
        assert running.reload().problems == []
        project.send("work", version)
        project.wait(Outcome.COMPLETED, count="bcd".index(version) + 1)

    assert all(one.result == one.payload for one in project.seen)


def test_a_broken_file_leaves_the_old_code_serving(project: Project) -> None:
    """A reload of a file that does not load changes nothing, and says what is wrong with file and line."""
    project.handler("def handler(message): return 'old'")
    running = project.start()
    project.handler("def handler(message):\n    return 'new'\nraise RuntimeError('not like this')")

    report = running.reload()

    assert "work.py" in "\n".join(report.problems)
    assert "not like this" in "\n".join(report.problems)
    project.send("work", 1)
    assert project.one(Outcome.COMPLETED).result == "old"


def test_a_reload_adopts_new_settings_and_queues(project: Project) -> None:
    """A queue added, one left out and a setting changed are served as they now stand, without a restart."""
    project.handler("def handler(message): raise ValueError")
    project.handler("def handler(message): pass", "other")
    project.queues({"work": {"handler": "work", "attempts": 5, "backoff": ["1h"]}, "gone": "other"})
    running = project.start()
    project.queues({"work": {"handler": "work", "attempts": 1}, "added": "other", "gone": {}})

    report = running.reload()

    assert report.problems == []
    project.send("work", 1)
    assert project.one(queue="work").outcome is Outcome.DEAD
    project.send("added", 1)
    assert project.one(queue="added").outcome is Outcome.COMPLETED


def test_a_stop_while_a_host_is_being_replaced_leaves_nothing_behind(project: Project) -> None:
    """A worker that is stopped while a new host starts ends that host, too, before `stop` returns."""
    project.handler("def handler(message): pass")
    running = project.start()
    watched = "Host._until_gone"  # the task that waits for a host's process as long as there is one

    def tasks() -> list[str]:
        return project.call(lambda: [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()])

    (pid,) = running.host_pids()
    os.kill(pid, signal.SIGKILL)
    project.logged("a host died")
    project.until(lambda: watched in tasks(), "the start of another host")

    running.stop(drain=0.0)

    assert watched not in tasks()
