"""`platform new`."""

from __future__ import annotations

import json
import subprocess
import sys

from cli_support import Project, wait_for


def test_a_new_project_is_right_as_it_is(project) -> None:
    """The scaffold passes its own check, and editors find the schema beside queues.yaml."""
    said = project.ok("new", "demo")

    demo = project.root / "demo"
    assert {"queues.yaml", "queues.schema.json", "handlers", "app.py", "tests", ".gitignore", "README.md"} <= {
        each.name for each in demo.iterdir()
    }
    assert (demo / "queues.yaml").read_text().startswith("# yaml-language-server: $schema=queues.schema.json\n")
    assert json.loads((demo / "queues.schema.json").read_text())["properties"]
    assert not list(demo.rglob("*.template"))
    assert "@" not in (demo / "requirements.txt").read_text()
    assert "cd demo\n" in said
    assert "send taskQueue '{\"n\": 1}'" in said
    assert project.run("check", cwd=demo).returncode == 0


def test_a_new_project_runs_as_it_is(project) -> None:
    """Its worker serves what its app sends, and its own tests pass."""
    project.ok("new", "demo")
    demo = Project(project.root / "demo")
    try:
        demo.ready(demo.start("run"))
        app = subprocess.run(
            [sys.executable, "app.py"], cwd=demo.root, env=demo.environment, capture_output=True, text=True, check=False
        )
        assert app.returncode == 0, app.stderr
        wait_for(lambda: "Received message: {'n': 1}" in demo.out(), "the task is handled")
        wait_for(lambda: "Welcome, Ada <ada@example.org>" in demo.out(), "Ada is welcomed")
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            cwd=demo.root,
            env=demo.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert tests.returncode == 0, tests.stdout + tests.stderr
        assert "3 passed" in tests.stdout
    finally:
        demo.end()


def test_a_folder_that_holds_something_is_left_alone(project) -> None:
    """Nothing is written into a folder that is not empty, and nothing over a file."""
    project.write("demo/mine.txt", "x")
    project.write("file", "x")

    assert "not an empty folder" in project.refused("new", "demo", code=2)
    assert "not an empty folder" in project.refused("new", "file", code=2)
    assert [each.name for each in (project.root / "demo").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_taken(project) -> None:
    """`platform new .` works in a fresh folder."""
    (project.root / "empty").mkdir()

    assert project.run("new", ".", cwd=project.root / "empty").returncode == 0
    assert (project.root / "empty" / "queues.yaml").is_file()


def test_a_place_that_cannot_be_written_is_one_line(project) -> None:
    """An error of the file system names the place."""
    project.write("file", "x")
    assert "file/demo" in project.refused("new", "file/demo", code=2)
