"""How processes of one machine learn that another died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from handrail.lifeline import Lifeline, dead

OTHER = """
import os, subprocess, sys
from pathlib import Path
from handrail.lifeline import Lifeline
line = Lifeline(Path(sys.argv[1]))
line.write(b"what it was about")
child = subprocess.Popen(["sleep", "60"], close_fds=False)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_process_is_dead_when_it_is_and_not_before(tmp_path: Path) -> None:
    """The lock goes with the process, though a child of it lives on; what it wrote is there to be read, by several at once."""
    file = tmp_path / "line"
    process = subprocess.Popen([sys.executable, "-c", OTHER, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    child = int(process.stdout.readline())
    try:
        assert dead(file) is None
        process.kill()
        process.wait()

        first, second = dead(file), dead(file)

        assert first is not None
        assert second is not None
        assert os.read(first, 100) == b"what it was about"
        os.close(first)
        os.close(second)
    finally:
        os.kill(child, 9)
        process.stdin.close()
        process.stdout.close()


def test_this_process_lives_and_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    """Asking after our own file says that we live, and drops no lock; after `end` there is nobody to ask after."""
    file = tmp_path / "line"
    line = Lifeline(file)

    assert dead(file) is None
    line.end()
    assert not file.exists()
    assert dead(file) is None
    line.end()
