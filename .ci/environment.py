"""Makes .venv and installs what is asked for, once a pyproject.toml and constraints.txt; needs only the standard library."""  # noqa: INP001

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PYTHON = VENV / "bin" / "python"
VERSION = "{}.{}".format(*sys.version_info)


def main(stage: str) -> int:
    """Bring .venv to *stage*: ``run`` installs handrail alone, ``dev`` also what its tests and checks need."""
    # two makes at once: the second waits for the first, and then finds the work done
    with PROJECT.open("rb") as project:
        try:
            fcntl.flock(project, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another make that sets up .venv …")
            fcntl.flock(project, fcntl.LOCK_EX)
        return bring_to(stage, project.read())


def bring_to(stage: str, project: bytes) -> int:
    # the place is part of it: a folder that was moved or copied has scripts that point to the old one; so is the
    # version, which differs from that of .venv when another was chosen by PYTHON=
    wanted = hashlib.sha256(project + CONSTRAINTS.read_bytes() + f"{ROOT} {VERSION}".encode()).hexdigest()
    stages = ["run"] if stage == "run" else ["run", "dev"]
    missing = [name for name in stages if read(VENV / f"handrail-{name}.stamp") != wanted]
    if not missing:
        return 0
    began = time.monotonic()
    if not works():
        say(f"making .venv with Python {sys.version.split()[0]} …")
        if subprocess.run([base_python(), "-m", "venv", "--clear", VENV], check=False).returncode:
            say("could not make .venv; the lines above say why")
            return 1
    for name in missing:
        say("installing handrail …" if name == "run" else "installing what the tests need …")
        # apart from the package, so that preparing the tests never reinstalls it under a running worker
        what = (
            ["--editable", str(ROOT)]
            if name == "run"
            else tomllib.loads(project.decode())["project"]["optional-dependencies"]["dev"]
        )
        if not pip_install(what):
            return 1
        (VENV / f"handrail-{name}.stamp").write_text(wanted)
    say(f"ready in {time.monotonic() - began:.0f} s; this was for the first time only")
    return 0


def works() -> bool:
    """Whether .venv is whole and of our version: a set-up that was interrupted leaves one without pip."""
    if not PYTHON.exists():
        return False
    check = "import sys, pip; print('{}.{}'.format(*sys.version_info))"
    done = subprocess.run([PYTHON, "-c", check], check=False, capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == VERSION


def base_python() -> str:
    """The interpreter outside of .venv, for a broken .venv cannot be made anew with its own."""
    return getattr(sys, "_base_executable", "") or sys.executable


def pip_install(what: list[str]) -> bool:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [PYTHON, "-m", "pip", "install", *quiet, "--constraint", CONSTRAINTS, *what]
    for again in (False, True):
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not done.returncode:
            return True
        sys.stderr.write(done.stdout)
        if not again:
            # pip asks again where no connection comes about, but not where one breaks
            say("pip could not install it; trying once more in 3 s …")
            time.sleep(3)
    say("pip could not install it; is a package index reachable? The lines above say more")
    return False


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        code = main(sys.argv[1])
    except KeyboardInterrupt:
        say("interrupted; the next make goes on from here")
        code = 130
    sys.exit(code)
