"""What the README says is so: its commands run as written, its tables are complete."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import REPOSITORY, Project

from handrail import config
from handrail.cli.exit_codes import ExitCode

_README = (REPOSITORY / "README.md").read_text()
_BLOCK = re.compile(r"<!-- tested(?:: (?P<how>[\w.]+))? -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)


def blocks(how: str | None) -> list[str]:
    """The fenced blocks that are marked to be tested in this way."""
    return [match["text"].strip() for match in _BLOCK.finditer(_README) if match["how"] == how]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Project]:
    """What a fresh clone holds, on a machine where nothing of ours is installed."""
    target = tmp_path / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    made = Project(target)
    yield made
    made.end_all()


def _bare(project: Project) -> dict[str, str]:
    """An environment that knows nothing of the environment that runs the tests."""
    own = str(Path(sys.executable).parent)
    kept = {name: value for name, value in project.environment.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return {**kept, "PATH": os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part != own)}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_first_minute_is_as_written(clone: Project) -> None:
    """In a fresh clone the README's commands, exactly as they stand there, lead to a handled message; Ctrl-C drains."""
    environment = _bare(clone)
    [start] = blocks("background")
    worker = clone.start(shell=start, environment=environment)
    try:
        worker.until_ready(timeout=300)
    except AssertionError:
        if "pip could not install" in worker.output() and not os.environ.get("CI"):
            pytest.skip("no package index can be reached from here")
        raise

    for command in blocks(None):
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=clone.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    worker.until_says("Received message: {'n': 1}")

    # what Ctrl-C does: the signal goes to make and to the worker alike
    os.killpg(worker.pid, signal.SIGINT)
    worker.process.wait(60)
    assert worker.events("stopped")
    _the_second_start_installs_nothing(clone, environment)


def _the_second_start_installs_nothing(clone: Project, environment: dict[str, str]) -> None:
    # two at once: neither breaks the other
    again = [
        subprocess.Popen(
            ["sh", ".ci/environment", "run"],
            cwd=clone.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]
    for each in again:
        said, _ = each.communicate(timeout=60)
        assert each.returncode == 0
        assert b"installing" not in said


def test_a_project_of_your_own_is_as_written(project: Project) -> None:
    """`platform new` makes a project that the README's other commands fit."""
    [command] = blocks("new")
    environment = {**project.environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    subprocess.run(["sh", "-c", command], cwd=project.root, env=environment, check=True, capture_output=True)

    demo = Project(project.root / "demo")
    worker = demo.worker()
    demo.send("taskQueue", {"n": 1})
    try:
        worker.until_says("Received message: {'n': 1}")
    finally:
        demo.end_all()


def test_the_settings_shown_are_valid(project: Project) -> None:
    """The README's queues.yaml loads, with the values that it shows."""
    [text] = blocks("queues.yaml")
    path = project.write("queues.yaml", text)

    settings = config.load(path, check_handlers=False)

    assert settings.queues["welcome-email"].timeout == 30.0
    assert settings.queues["taskQueue"].handler is not None


def test_every_setting_is_in_the_reference() -> None:
    """A key that queues.yaml takes, and that concerns every broker, has its row."""
    schema = config.schema()
    # the keys of one broker alone are told where that broker is
    elsewhere = {"queue_type", "partitions", "on_lost_position"}
    keys = set(schema["properties"]) | set(schema["$defs"]["QueueShape"]["properties"]) - elsewhere

    missing = {key for key in keys if f"\n| `{key}` |" not in _README}

    assert missing == set()


def test_every_exit_code_is_documented() -> None:
    """The exit codes are an interface; each has its row."""
    rows = re.findall(r"^\| ([\d, ]+) \|", _README, re.MULTILINE)
    documented = {int(code) for row in rows for code in row.split(",")}

    assert documented == {int(code) for code in ExitCode}


def test_the_capability_table_is_what_the_adapters_say(project: Project) -> None:
    """`platform capabilities --markdown` prints the table that stands between the README's markers."""
    printed = project.platform("capabilities", "--markdown").stdout.strip()

    shown = _README.partition("<!-- capabilities:start -->")[2].partition("<!-- capabilities:end -->")[0].strip()

    assert shown == printed, "the adapters have changed: make readme"
