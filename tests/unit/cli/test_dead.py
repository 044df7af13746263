"""`platform dead`, `job` and `cancel`, with dead letters that a real worker made."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_support import Project, wait_for

from handrail.cli import jobs
from handrail_sqlite import SQLiteAdapter


@pytest.fixture(scope="module")
def with_three(tmp_path_factory):
    """A folder with three dead letters, made in the order d1, d2, d3; no test changes it."""
    project = Project(tmp_path_factory.mktemp("three"))
    project.lay("  task: {handler: task, attempts: 1}\n", handler="def handler(m):\n    raise ValueError(f'no {m}')\n")
    worker = project.start("work")
    project.ready(worker)
    for n in (1, 2, 3):
        project.ok("send", "task", str(n), "--id", f"d{n}")
        wait_for(lambda n=n: len(project.json("dead", "list", "task")) == n, f"{n} dead letters")
    worker.terminate()
    assert worker.wait(30) == 0
    return project.root


@pytest.fixture
def three(project, with_three):
    """A project with three dead letters of its own."""
    shutil.copytree(with_three, project.root, dirs_exist_ok=True)
    return project


def ids(project):
    return [each["id"] for each in project.json("dead", "list", "task")]


def test_list_is_newest_first_with_reasons(three) -> None:
    """Each with its reason, attempts and the start of its payload."""
    found = three.json("dead", "list", "task")

    assert [(each["id"], each["reason"], each["attempts"], each["message"]) for each in found] == [
        ("d3", "ValueError: no 3", 1, 3),
        ("d2", "ValueError: no 2", 1, 2),
        ("d1", "ValueError: no 1", 1, 1),
    ]
    said = three.ok("dead", "list", "task")
    assert "ValueError: no 2" in said
    assert "d2" in three.ok("dead", "list", "task", "--limit", "1", "--offset", "1")


def test_show_is_the_whole_letter_and_what_to_do_with_it(three) -> None:
    """Payload, reason, traceback in the user's file, and the commands to go on with."""
    said = three.ok("dead", "show", "task", "d2")

    assert "ValueError: no 2" in said
    assert "handlers/task.py" in said
    assert "platform invoke task --from-dead d2" in said
    assert three.json("dead", "show", "task", "d2")["traceback"]
    assert "has no dead letter d9" in three.refused("dead", "show", "task", "d9", code=1)


def test_invoke_takes_a_dead_letter(three) -> None:
    """A mended handler can be tried with the very message that died; the letter stays."""
    three.write("handlers/task.py", "def handler(m):\n    return m + 1\n")

    ran = three.run("invoke", "task", "--from-dead", "d2")

    assert (ran.stdout, ran.returncode) == ("3\n", 0)
    assert len(ids(three)) == 3


def test_replay_sends_back_some_or_all(three) -> None:
    """Named ones first, then the rest; their counters are reset."""
    assert three.ok("dead", "replay", "task", "d2") == "sent 1 dead letter back to task\n"
    assert ids(three) == ["d3", "d1"]
    assert three.json("dead", "replay", "task", "--all") == {"queue": "task", "replayed": 2}

    found = three.json("peek", "task")
    assert {each["id"]: each["attempts"] for each in found} == {"d1": 0, "d2": 0, "d3": 0}


def test_purge_deletes_some_or_all(three) -> None:
    """It asks first."""
    assert "Delete 1 dead letter of task" in three.refused("dead", "purge", "task", "d1", code=2)
    assert three.ok("dead", "purge", "task", "d1", "--yes") == "deleted 1 dead letter of task\n"
    assert "is not in task" in three.refused("job", "task", "d1", code=1)
    assert three.ok("dead", "purge", "task", "--all", "--yes") == "deleted 2 dead letters of task\n"
    assert ids(three) == []
    assert three.ok("dead", "list", "task") == "no dead letters in task\n"


def test_what_is_not_there_is_said_after_what_was_done(three) -> None:
    """An id that is no dead letter does not keep the others from being replayed; the exit code tells."""
    ran = three.run("dead", "replay", "task", "d1", "nope")

    assert ran.returncode == 1
    assert "1 of 2 were dead letters" in ran.stderr
    assert ids(three) == ["d3", "d2"]


def test_ids_or_all_must_be_said(three) -> None:
    """Neither and both are refused: nothing is replayed by a slip."""
    assert "--all" in three.refused("dead", "replay", "task", code=2)
    assert "--all" in three.refused("dead", "purge", "task", "d1", "--all", code=2)


def test_job_says_how_it_ended_and_where_it_lies(three) -> None:
    """What the ledger remembers and what the broker holds, together."""
    found = three.json("job", "task", "d1")

    assert (found["state"], found["outcome"], found["error"]) == ("dead", "dead", "ValueError: no 1")
    assert "dead" in three.ok("job", "task", "d1")
    assert "is not in task" in three.refused("job", "task", "unknown", code=1)


def test_a_queue_that_keeps_none_says_so(project) -> None:
    """`dead_letter: false` has nothing to list."""
    project.lay("  task: {handler: task, dead_letter: false}\n")
    assert "keeps no dead letters" in project.refused("dead", "list", "task", code=2)


def test_a_cancelled_job_does_not_run(project) -> None:
    """A waiting job that is cancelled is dropped by the next worker; one that is nowhere cannot be cancelled."""
    project.lay()
    project.ok("send", "task", "1", "--id", "stop-me")
    project.ok("send", "task", "2", "--id", "run-me")
    assert project.ok("cancel", "task", "stop-me") == "cancelling stop-me of task\n"
    assert "nothing to cancel" in project.refused("cancel", "task", "nowhere", code=1)

    worker = project.start("work")
    project.ready(worker)
    wait_for(lambda: "got 2" in project.out(), "the other ran")
    wait_for(lambda: project.json("job", "task", "stop-me")["outcome"] == "cancelled", "it is cancelled")

    assert "got 1" not in project.out()
    assert "has ended already" in project.refused("cancel", "task", "stop-me", code=1)
    assert json.loads(project.ok("queues", "--json"))[0]["ready"] == 0


def test_a_job_that_goes_back_to_wait_between_two_looks_is_found(project, monkeypatch, capsys) -> None:
    """A retry may be active when the delayed ones are looked through, and delayed when the active ones are."""
    project.lay()
    project.ok("send", "task", "1", "--id", "moves", "--delay", "1h")
    find, looks = SQLiteAdapter.find, []

    async def look(self, queue, state, message_id):
        looks.append(state)
        return None if looks.count(state) == 1 else await find(self, queue, state, message_id)

    monkeypatch.setenv("HANDRAIL_CONFIG", str(project.root / "queues.yaml"))  # the command sets it, for what it imports
    monkeypatch.setattr(SQLiteAdapter, "find", look)

    jobs.job("task", "moves", None, as_json=True)
    assert json.loads(capsys.readouterr().out)["state"] == "delayed"
    looks.clear()
    jobs.cancel("task", "moves", None)
    assert "cancelling moves" in capsys.readouterr().out
