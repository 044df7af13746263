"""`platform invoke`."""

from __future__ import annotations

import json

import pytest

HANDLER = """
from handrail import context


def handler(message, callback):
    print("got", message)
    callback(None, {"doubled": message["n"] * 2})


async def answer(message):
    context.job.log("thinking")
    return message


def fails(message):
    raise ValueError("no such user")


def sends(message):
    context.queues.send_to_queue("task", {"n": 5})


def rejects(message):
    from handrail.errors import Reject

    raise Reject("never")
"""


@pytest.fixture
def handlers(project):
    project.lay("  task: task\n  text: {handler: task.answer, content: text}\n", handler=HANDLER)
    return project


def test_a_queues_handler_is_called_once_without_a_broker(handlers) -> None:
    """The handler runs here, its result is on stdout as JSON, and no data folder comes to be."""
    ran = handlers.run("invoke", "task", '{"n": 4}')

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("got {'n': 4}\n")
    assert json.loads(ran.stdout.split("\n", 1)[1]) == {"doubled": 8}
    assert "handlers/task.py:handler: completed in" in ran.stderr
    assert not (handlers.root / ".platform").exists()


def test_a_handler_can_be_named_by_its_reference(handlers) -> None:
    """A function that no queue is bound to can be tried as well."""
    found = json.loads(handlers.run("invoke", "task.answer", "[1]", "--json").stdout)

    assert (found["outcome"], found["result"]) == ("completed", [1])
    assert found["logs"] == [{"level": "info", "text": "thinking"}]


def test_a_failure_shows_the_users_frames_and_exits_5(handlers) -> None:
    """The traceback begins in the user's file."""
    ran = handlers.run("invoke", "task.fails", "1")

    assert ran.returncode == 5
    assert 'handlers/task.py", line 16' in ran.stderr
    assert "ValueError: no such user" in ran.stderr
    assert "handrail/host" not in ran.stderr


def test_a_rejection_is_told_with_its_reason(handlers) -> None:
    """What would be a dead letter exits with 5 and says why."""
    found = handlers.run("invoke", "task.rejects", "1", "--json")

    assert found.returncode == 5
    assert (json.loads(found.stdout)["outcome"], json.loads(found.stdout)["reason"]) == ("dead", "never")


def test_what_the_handler_sends_is_shown_and_not_sent(handlers) -> None:
    """One call has no effect on any queue."""
    ran = handlers.run("invoke", "task.sends", "1")

    assert ran.returncode == 0, ran.stderr
    assert 'would send to task: {"n":5}' in ran.stderr


def test_text_goes_to_a_text_queue_as_it_is(handlers) -> None:
    """--text is the body itself where the queue says `content: text`."""
    assert handlers.run("invoke", "text", "--text", "hello").stdout == '"hello"\n'


def test_an_unknown_handler_is_named_with_what_there_is(handlers) -> None:
    """Neither a queue nor a function: one line."""
    assert "did you mean 'task'?" in handlers.refused("invoke", "tsk", "1", code=2)
    assert "fails" in handlers.refused("invoke", "task.failz", "1", code=2)


def test_a_message_or_a_dead_letter_is_needed(handlers) -> None:
    """Without either the command says what it wants."""
    assert "--from-dead" in handlers.refused("invoke", "task", code=2)


def test_debug_opens_the_debugger_where_it_failed(handlers) -> None:
    """On an error `--debug` stops in the user's frame."""
    ran = handlers.run("invoke", "task.fails", "41", "--debug", stdin="p message + 1\nq\n")

    assert "ValueError: no such user" in ran.stderr
    assert "42" in ran.stdout
    assert ran.returncode == 5


def test_a_failures_text_moves_no_cursor(handlers) -> None:
    """Control characters in an error are shown, not obeyed, as a dead letter's are."""
    handlers.write("handlers/bad.py", "def handler(message):\n    raise ValueError('a\\x1b[31mb')\n")
    said = handlers.run("invoke", "bad", "1").stderr

    assert "ValueError: a\\x1b[31mb" in said
    assert "\x1b" not in said


def test_a_message_that_does_not_fit_is_dead(handlers) -> None:
    """The outcome has the word that a worker's log has."""
    handlers.write("handlers/typed.py", "def handler(message: int):\n    pass\n")
    ran = handlers.run("invoke", "typed", '"x"', "--json")

    assert (ran.returncode, json.loads(ran.stdout)["outcome"]) == (5, "dead")
