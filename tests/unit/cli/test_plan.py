"""`platform plan`: what a start would make, shown without making it."""

from __future__ import annotations

import json

from cli_support import Project


def test_nothing_is_made(project: Project) -> None:
    """Everything that a start would make is named, with its settings, and no file comes into being."""
    project.lay("  task: task\n  other: {handler: task, order: lifo}\n")

    planned = project.run("plan")

    assert planned.returncode == 0, planned.stderr
    assert [line.split()[:3] for line in planned.stdout.splitlines() if "missing" in line][1:3] == [
        ["queue", "task", "missing"],
        ["queue", "other", "missing"],
    ]
    assert planned.stdout.splitlines()[-1] == "3 missing"
    assert not (project.root / ".platform").exists()


def test_what_stands_already_is_told_as_json(project: Project) -> None:
    """After a send the file and its queues are there; a queue that came later is missing, and a changed order is named."""
    project.lay("  task: task\n")
    assert project.run("send", "task", "1").returncode == 0
    project.lay("  task: {handler: task, order: lifo}\n  other: task\n")

    planned = project.run("plan", "--json")

    assert planned.returncode == 0, planned.stderr
    found = {one["name"]: one for one in json.loads(planned.stdout)}
    assert found[str(project.root / ".platform/queues.db")]["state"] == "there"
    assert found["task"]["state"] == "there"
    assert found["task"]["detail"] == "has order: fifo, which a start changes"
    assert found["other"] == {**found["other"], "kind": "queue", "state": "missing", "settings": {"order": "fifo"}}


def test_a_broker_that_does_not_answer_is_one_line(project: Project) -> None:
    """Without the server there is no plan: one line says why, and the exit code is that of a broker out of reach."""
    project.lay("  task: task\n", top="broker: amqp://guest:secret@127.0.0.1:1/\n")

    planned = project.run("plan")

    assert planned.returncode == 3
    assert planned.stdout == ""
    assert "nothing listens on 127.0.0.1:1" in planned.stderr
    assert len(planned.stderr.splitlines()) == 1
    assert "secret" not in planned.stderr
