"""What `make` does on machines that lack something: one line that says what, and a set-up that goes on where it stopped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from harness import REPOSITORY

# Answers the three questions that .ci/environment asks of every Python it finds.
_PYTHON = """#!/bin/sh
case "$2" in
    *ensurepip*) exit {complete} ;;
    *print*) echo 3.11 ;;
    *) exit {recent} ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A clone on a machine whose only commands are those that any POSIX system has."""
    (tmp_path / "clone").mkdir()
    shutil.copytree(REPOSITORY / ".ci", tmp_path / "clone" / ".ci")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path / "clone")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sh", "dirname"):
        found = shutil.which(name)
        assert found is not None
        (commands / name).symlink_to(found)
    return tmp_path


def _install(machine: Path, name: str, *, complete: int, recent: int) -> None:
    python = machine / "bin" / name
    python.write_text(_PYTHON.format(complete=complete, recent=recent))
    python.chmod(0o755)


def _set_up(machine: Path, python: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", ".ci/environment", "run"],
        cwd=machine / "clone",
        env={"PATH": str(machine / "bin"), "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_without_a_python_it_says_which_one_is_needed(machine: Path) -> None:
    """On a machine without Python there is one line, and it names the version."""
    done = _set_up(machine)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "Python 3.11 or newer" in line


def test_an_old_python_is_not_used(machine: Path) -> None:
    """A Python below 3.11 is passed over, and it says that a newer one is needed."""
    _install(machine, "python3", complete=1, recent=1)

    done = _set_up(machine)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "Python 3.11 or newer" in line


def test_a_python_without_venv_says_which_package_brings_it(machine: Path) -> None:
    """Debian's bare python3 cannot make environments; the line names the package to install."""
    _install(machine, "python3.11", complete=1, recent=0)

    done = _set_up(machine)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "apt install python3.11-venv" in line


def test_a_chosen_python_that_is_not_there_is_not_replaced_by_another(machine: Path) -> None:
    """PYTHON= is taken at its word."""
    _install(machine, "python3", complete=1, recent=0)

    done = _set_up(machine, python=str(machine / "nowhere" / "python3.12"))

    assert done.returncode == 1
    assert "nowhere" in done.stderr
