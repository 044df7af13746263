"""The pytest plugin as a user's own pytest finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUEUES = "queues: {work: work}\n"
HANDLER = (
    "def handler(message):\n    if message == 'bad': raise ValueError('the handler says no')\n    return message\n"
)


def pytest_in(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    (folder / "handlers").mkdir()
    (folder / "handlers" / "work.py").write_text(HANDLER)
    (folder / "queues.yaml").write_text(QUEUES)
    tests = folder / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(tests)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_fixture_finds_the_project_above_the_test(tmp_path: Path) -> None:
    """`handrail_project` needs no set-up: it is the project of the nearest queues.yaml above the test's file."""
    ran = pytest_in(
        tmp_path,
        "def test_it(handrail_project):\n"
        "    handrail_project.send('work', 1)\n"
        "    handrail_project.run_until_idle()\n"
        "    assert handrail_project.results == [1]\n",
    )

    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_fixture_has_a_short_name(tmp_path: Path) -> None:
    """`project` is `handrail_project`, and a fixture of that name of the user's own takes its place."""
    ran = pytest_in(
        tmp_path,
        "import pytest\n"
        "def test_short(project, handrail_project):\n"
        "    assert project is handrail_project\n"
        "class TestOwn:\n"
        "    @pytest.fixture\n"
        "    def project(self): return 'mine'\n"
        "    def test_own(self, project): assert project == 'mine'\n",
    )

    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


def test_a_failed_test_shows_what_its_handlers_did(tmp_path: Path) -> None:
    """The report of a failed test holds the outcomes of its messages with their tracebacks."""
    ran = pytest_in(
        tmp_path,
        "def test_it(handrail_project):\n"
        "    handrail_project.send('work', 'bad', attempts=1)\n"
        "    handrail_project.run_until_idle()\n"
        "    assert not handrail_project.dead\n",
    )

    assert "1 failed" in ran.stdout
    assert "what became of the messages" in ran.stdout
    assert "the handler says no" in ran.stdout
    assert "handlers/work.py" in ran.stdout
