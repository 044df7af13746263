"""`order: key` and `order: partition`: one after another, in place, whatever goes wrong; and refused where it cannot be kept."""

from __future__ import annotations

import itertools
import random

import pytest
from contract_harness import Project

from handrail.adapter import Capability, load
from handrail.errors import StartError
from handrail.outcome import Outcome

needs = pytest.mark.needs

BY_KEY = {"work": {"handler": "work", "order": "key", "concurrency": 20, "attempts": 3, "backoff": ["0s"]}}


def send(project: Project, *messages: tuple[str, int]) -> None:
    """Send these in this order, each with its key."""
    for key, number in messages:
        project.send("work", [key, number], key=key)


def ran(project: Project, key: str) -> list[int]:
    """The numbers of the messages of *key* in the order in which they ran."""
    return [one.facts[0] for one in project.notes(key)]


@needs(Capability.BY_KEY)
def test_messages_of_a_key_run_one_after_another_and_keys_beside_each_other(project: Project) -> None:
    """No message of a key starts before the one before it is done, while every key has one running."""
    project.handler("""
        async def handler(message):
            key, number = message
            note(key, number, 'in')
            if number == 0: await agate("all")
            note(key, number, 'out')
    """)
    project.queues(BY_KEY)
    project.start()

    send(project, *((key, number) for number in range(10) for key in "abc"))

    for key in "abc":
        project.noted(key)
    project.open("all")
    project.wait(Outcome.COMPLETED, count=30)
    expected = [(number, way) for number in range(10) for way in ("in", "out")]
    assert {key: [one.facts for one in project.notes(key)] for key in "abc"} == dict.fromkeys("abc", expected)


@needs(Capability.BY_KEY)
def test_messages_without_a_key_wait_for_nobody(project: Project) -> None:
    """What has no key is in no order: it runs beside everything, and its retries go by way of the tail."""
    project.handler("""
        async def handler(message):
            note('in', message)
            await agate("all")
    """)
    project.queues(BY_KEY)
    project.start()

    project.send_bulk("work", list(range(5)))

    project.noted("in", 5)
    project.open("all")
    project.wait(Outcome.COMPLETED, count=5)


@needs(Capability.BY_KEY)
def test_a_retry_holds_its_own_key_and_no_other(project: Project) -> None:
    """A message that failed waits for its next attempt in its place; its key waits behind it, other keys go on."""
    project.handler("""
        from handrail import context
        async def handler(message):
            key, number = message
            note(key, number)
            if key == 'a' and number == 1 and context.job.attempt < 3:
                if context.job.attempt == 1: await agate("fail")
                raise ValueError
    """)
    project.queues({"work": {**BY_KEY["work"], "backoff": ["300ms"]}})
    project.start()
    send(project, ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3))
    project.noted("b", 2)
    project.open("fail")

    project.wait(Outcome.COMPLETED, count=5)

    assert ran(project, "a") == [1, 1, 1, 2, 3]
    first, second, third = (one.at for one in project.notes("a")[:3])
    assert second - first >= 0.3
    assert third - second >= 0.3


@needs(Capability.BY_KEY)
def test_retry_later_keeps_its_place_too(project: Project) -> None:
    """`RetryLater` holds the key until the message has come back."""
    project.handler("""
        from handrail import RetryLater, context
        starts = []
        async def handler(message):
            key, number = message
            note(key, number)
            starts.append(number)
            if starts == [1]: raise RetryLater(0.2)
    """)
    project.queues(BY_KEY)
    project.start()

    send(project, ("a", 1), ("a", 2))

    project.wait(Outcome.COMPLETED, count=2)
    assert ran(project, "a") == [1, 1, 2]
    assert [one.outcome for one in project.seen] == [Outcome.LATER, Outcome.COMPLETED, Outcome.COMPLETED]


@needs(Capability.BY_KEY)
def test_a_dead_letter_lets_its_key_go_on(project: Project) -> None:
    """When no attempt is left the message is dead, and only then the next of its key runs."""
    project.handler("""
        async def handler(message):
            key, number = message
            note(key, number)
            if number == 1: raise ValueError
    """)
    project.queues(BY_KEY)
    project.start()

    send(project, ("a", 1), ("a", 2))

    project.wait(Outcome.COMPLETED)
    assert ran(project, "a") == [1, 1, 1, 2]
    assert [one.outcome for one in project.seen] == [*[Outcome.FAILED] * 2, Outcome.DEAD, Outcome.COMPLETED]
    assert [one.attempts for one in project.peek(state="dead")] == [3]


@needs(Capability.BY_KEY)
def test_a_crash_keeps_the_order_of_its_key(project: Project) -> None:
    """A message whose process died runs again before those behind it, and is dead after `max_crashes`, in its place."""
    project.handler("""
        import os, signal
        async def handler(message):
            key, number = message
            note(key, number)
            if number == 1: os.kill(os.getpid(), signal.SIGKILL)
    """)
    project.queues({"work": {**BY_KEY["work"], "max_crashes": 2}})
    project.start()

    send(project, ("a", 1), ("a", 2), ("a", 3))

    project.wait(Outcome.COMPLETED, count=2)
    assert ran(project, "a") == [1, 1, 2, 3]
    assert [one.outcome for one in project.seen][:2] == [Outcome.CRASHED, Outcome.DEAD]


@needs(Capability.BY_KEY)
def test_a_stop_keeps_the_order_and_the_counts_of_what_it_interrupts(project: Project) -> None:
    """What waits for its retry when the worker stops stands at its place with its attempts, and goes on from there."""
    project.handler("""
        from handrail import context
        async def handler(message):
            key, number = message
            note(key, number, context.job.attempt)
            if number == 1 and context.job.attempt == 1: raise ValueError
            if key == 'b' and not is_open("go"): await agate("go")
    """)
    project.queues({"work": {**BY_KEY["work"], "backoff": ["5s"]}})
    running = project.start()
    send(project, ("a", 1), ("a", 2), ("b", 2), ("b", 3))
    project.wait(Outcome.FAILED)
    project.noted("b")

    running.stop(drain=0.05)

    waiting = {one.body: (one.attempts, one.starts) for one in project.peek()}
    assert waiting == {b'["a",1]': (1, 1), b'["a",2]': (0, 0), b'["b",2]': (0, 1), b'["b",3]': (0, 0)}
    project.open("go")
    project.start()
    project.wait(Outcome.COMPLETED, count=4)
    assert [one.facts for one in project.notes("a")] == [(1, 1), (1, 2), (2, 1)]
    assert [one.facts for one in project.notes("b")] == [(2, 1), (2, 1), (3, 1)]


@needs(Capability.BY_KEY)
def test_a_long_backlog_of_one_key_does_not_keep_others_from_running(project: Project) -> None:
    """A key that hangs with hundreds of messages behind it costs the others nothing."""
    project.handler("""
        async def handler(message):
            key, number = message
            note(key, number)
            if key == 'hot': await agate("go")
    """)
    project.queues({"work": {**BY_KEY["work"], "concurrency": 2}})
    project.send_bulk("work", [["hot", n] for n in range(300)], key="hot")
    send(project, ("cold", 1))

    project.start()

    project.noted("cold")
    assert ran(project, "hot") == [0]
    project.open("go")
    project.wait(Outcome.COMPLETED, count=301)
    assert ran(project, "hot") == list(range(300))


@needs(Capability.BY_KEY)
@pytest.mark.parametrize("seed", range(2))
def test_order_by_key_survives_whatever_happens(project: Project, seed: int) -> None:
    """Failures, retries, deaths of hosts and stops of the worker at random: each key runs in order, and to its end."""
    chance = random.Random(seed)
    keys = [f"k{n}" for n in range(8)]
    messages = [(chance.choice(keys), number) for number in range(120)]
    fates = {number: chance.choice([0] * 6 + [1, 1, 2]) for _key, number in messages}
    deadly = set(chance.sample(range(120), 2))
    project.handler(f"""
        import os, signal
        from handrail import context
        FATES, DEADLY = {fates!r}, {deadly!r}
        async def handler(message):
            key, number = message
            note(key, number, context.job.attempt)
            if number in DEADLY and not is_open(f"died-{{number}}"):
                from notes import ROOT
                (ROOT / "gates" / f"died-{{number}}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if context.job.attempt <= FATES[number]: raise ValueError
    """)
    project.queues({"work": {**BY_KEY["work"], "attempts": 5, "backoff": ["0s", "20ms"]}})
    send(project, *messages)
    for completed in (40, 80):
        running = project.start()
        project.wait(Outcome.COMPLETED, count=completed)
        running.stop(drain=chance.choice([0.0, 0.01, 1.0]))
    project.start()
    project.wait(Outcome.COMPLETED, count=120)

    for key in keys:
        order = [number for number, _again in itertools.groupby(ran(project, key))]
        assert order == [number for one, number in messages if one == key], key
    assert not project.peek(state="dead")


@pytest.mark.parametrize("order", ["key", "partition"])
def test_an_order_that_the_broker_cannot_keep_is_refused_at_start(project: Project, order: str) -> None:
    """A worker does not serve a queue in an order that it could not hold: it says so in one line, and starts otherwise."""
    project.handler("def handler(message): pass")
    project.queues({"work": {"handler": "work", "order": order}})
    capability = {"key": Capability.BY_KEY, "partition": Capability.BY_PARTITION}[order]

    if load(project.settings.brokers["default"]).capabilities[capability] is False:
        with pytest.raises(StartError, match=f"queue work: .* cannot keep `order: {order}`") as refused:
            project.start()
        assert "\n" not in str(refused.value)
    else:
        project.start()


@needs(Capability.BY_PARTITION)
def test_messages_of_a_partition_run_one_after_another(project: Project) -> None:
    """With `order: partition` a partition has one running at a time, retries in place, and partitions go beside each other."""
    project.handler("""
        from handrail import context
        async def handler(message):
            note('in', message)
            if message % 5 == 0 and context.job.attempt == 1: raise ValueError
            note('out', message)
    """)
    project.queues({"work": {**BY_KEY["work"], "order": "partition"}})
    project.send_bulk("work", list(range(30)), key="the same")

    project.start()

    project.wait(Outcome.COMPLETED, count=30)
    expected = []
    for number in range(30):
        expected += [("in", number)] * (2 if number % 5 == 0 else 1) + [("out", number)]
    assert [(one.tag, *one.facts) for one in project.notes()] == expected
