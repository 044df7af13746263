"""`platform check` and `schema`."""

from __future__ import annotations

import json


def test_a_right_project_is_shown_and_exits_0(project) -> None:
    """Every queue with its handler, kind, attempts and what its timeout can do."""
    project.lay()

    said = project.ok("check")

    assert "handlers/task.py:handler" in said
    assert "15m, only abandons the thread" in said


def test_its_json_says_the_same(project) -> None:
    """`--json` gives all fields, durations in seconds."""
    project.lay("  task: {handler: task, timeout: 30s, isolation: process, concurrency: 2}\n")

    found = project.json("check")

    assert found == {
        "ok": True,
        "problems": [],
        "queues": [
            {
                "queue": "task",
                "handler": "handlers/task.py:handler",
                "kind": "process",
                "callback": True,
                "type": None,
                "concurrency": 2,
                "attempts": 3,
                "timeout": 30.0,
                "at_timeout": "kills the process",
                "broker": "default",
            }
        ],
    }


def test_all_problems_of_queues_yaml_are_shown_and_it_exits_2(project) -> None:
    """One line a problem with its place."""
    project.lay("  task: {handler: task, attemps: 3}\n  other: nowhere\n")

    ran = project.run("check")

    assert ran.returncode == 2
    assert [line.split(":")[:2] for line in ran.stderr.splitlines()] == [["queues.yaml", "2"], ["queues.yaml", "3"]]
    assert project.run("check", "--json").returncode == 2


def test_an_order_that_the_broker_cannot_keep_is_found(project) -> None:
    """`order: partition` on SQLite is a problem before any worker starts; `order: key` is none."""
    project.lay("  task: {handler: task, order: partition}\n")

    ran = project.run("check")

    assert ran.returncode == 2
    assert "sqlite cannot keep `order: partition`" in ran.stderr
    project.lay("  task: {handler: task, order: key}\n")
    project.ok("check")


def test_a_handler_that_cannot_be_imported_is_found(project) -> None:
    """Checking really imports the handlers, in another process."""
    project.lay(handler="import no_such_module\n\ndef handler(message):\n    pass\n")

    ran = project.run("check")

    assert ran.returncode == 2
    assert "task.py:1" in ran.stderr
    assert "no_such_module" in ran.stderr
    found = json.loads(project.run("check", "--json").stdout)
    assert (found["ok"], len(found["problems"])) == (False, 1)


def test_config_names_another_file_or_folder(project, tmp_path) -> None:
    """`--config` takes the file or its folder, from anywhere."""
    project.lay()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    for path in (project.root, project.root / "queues.yaml"):
        assert project.run("check", "--config", str(path), cwd=elsewhere).returncode == 0
    assert "nothing.yaml" in project.refused("check", "--config", "nothing.yaml", code=2)


def test_the_schema_is_json(project, tmp_path) -> None:
    """`platform schema` needs no project and writes to a file as well."""
    printed = json.loads(project.ok("schema"))
    project.ok("schema", "-o", "x.json")

    assert json.loads((tmp_path / "x.json").read_text()) == printed
    assert "queues" in printed["properties"]
