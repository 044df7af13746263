"""The board: what it tells after its writers died."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from handrail import board
from handrail.board import (
    COMPLETED,
    EMPTY,
    ENDED,
    GIVEN,
    NO_SLOT,
    RUNNING,
    SLOTS,
    Board,
    completed_at,
    running_at,
    sendings_completed_at,
)
from handrail.errors import StartError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workers" / "w.board"


def test_only_running_is_told(path: Path) -> None:
    """Only what was running is suspect: not what was handed over, has ended, or left its slot."""
    one = Board.create(path)
    slots = [one.take("mail", f"id{number}", number) for number in range(4)]
    one.mark(slots[1], RUNNING)
    one.mark(slots[2], RUNNING)
    one.mark(slots[2], ENDED)
    one.mark(slots[3], RUNNING)
    one.give_back(slots[3])

    assert running_at(path) == {("mail", "id1"): 1}
    assert [one.state(slot) for slot in slots] == [GIVEN, RUNNING, ENDED, EMPTY]
    one.close()


def test_longest_names(path: Path) -> None:
    """The longest queue name and the longest id are kept whole, and crash counts stop at 65535."""
    one = Board.create(path)
    one.mark(one.take("q" * 128, "i" * 128, 1 << 20), RUNNING)

    assert running_at(path) == {("q" * 128, "i" * 128): 65535}
    one.close()


def test_shorter_name_after_a_longer(path: Path) -> None:
    """A slot that is used again tells of its last job alone."""
    one = Board.create(path)
    one.give_back(one.take("a-long-queue-name", "a-long-id", 3))
    one.mark(one.take("q", "1", 0), RUNNING)

    assert running_at(path) == {("q", "1"): 0}
    one.close()


def test_full_and_emptied(path: Path) -> None:
    """A full board has no slot for the next job, which passes for running; what is given back can be taken again."""
    one = Board.create(path)
    assert one.free == SLOTS
    slots = {one.take("q", str(number), 0) for number in range(SLOTS)}
    assert len(slots) == SLOTS
    assert one.free == 0

    beyond = one.take("q", "one too many", 0)
    one.begin(beyond, 1.0)
    one.mark(beyond, ENDED)

    assert beyond == NO_SLOT
    assert one.state(beyond) == RUNNING
    assert (len(running_at(path)), one.free) == (0, 0)
    one.give_back(beyond)
    assert one.free == 0
    one.give_back(7)
    assert one.take("q", "fits", 0) == 7
    one.close()


def test_when_it_was_begun(path: Path) -> None:
    """The board tells when a handler was entered, and not of the job that had its slot before."""
    one = Board.create(path)
    slot = one.take("q" * 128, "i" * 128, 0)
    one.begin(slot, 12.5)

    assert (one.state(slot), one.begun(slot)) == (RUNNING, 12.5)
    assert running_at(path) == {("q" * 128, "i" * 128): 0}
    one.close()


def test_what_was_completed(path: Path) -> None:
    """A board tells what was completed and perhaps not acknowledged, once for each message of that name."""
    one = Board.create(path)
    for state in (COMPLETED, COMPLETED, ENDED):
        one.mark(one.take("mail", "twice", 0), state)
    one.take("mail", "given", 0)

    assert completed_at(path) == [("mail", "twice"), ("mail", "twice")]
    assert running_at(path) == {}
    one.close()


def test_a_completed_message_is_named_with_its_sending(path: Path) -> None:
    """Where a sender chose the id, the board tells one sending of that id from another."""
    one = Board.create(path)
    one.mark(one.take("q" * 128, "i" * 128, 0, "s" * 32), COMPLETED)
    one.mark(one.take("mail", "1", 0), COMPLETED)

    assert sendings_completed_at(path) == {("q" * 128, "i" * 128, "s" * 32), ("mail", "1", "")}
    assert completed_at(path) == [("q" * 128, "i" * 128), ("mail", "1")]
    one.close()


def test_completions_of_another_boot_are_not_believed(path: Path) -> None:
    """After a power cut a file may hold anything: what it says was completed runs again."""
    one = Board.create(path)
    one.mark(one.take("mail", "1", 0), COMPLETED)
    one.map[:4] = b"else"

    assert completed_at(path) == []
    one.close()


def test_no_board(path: Path) -> None:
    """Where no board is, nothing was running."""
    assert running_at(path) == {}


def test_cut_board(path: Path) -> None:
    """A board that was cut short or holds rubbish is read as far as it goes."""
    path.parent.mkdir()
    path.write_bytes(bytes(320) + bytes([RUNNING]) + b"\xff" * 500)

    assert len(running_at(path)) == 1


def test_never_over_another(path: Path) -> None:
    """A board is never made over another worker's, which stays as it was."""
    one = Board.create(path)
    one.mark(one.take("q", "1", 0), RUNNING)

    with pytest.raises(StartError, match="File exists"):
        Board.create(path)

    assert running_at(path) == {("q", "1"): 0}
    one.close(unlink=True)
    assert not path.exists()


def test_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the worker does not start, in one line, rather than die at some later moment."""

    def full(_fd: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(board, "_reserve", full)

    with pytest.raises(StartError, match=r"cannot make the board .* No space left on device"):
        Board.create(path)
    assert not path.exists()


def test_space_is_taken_at_once(path: Path) -> None:
    """The board's space is taken when it is made: writing to it later can never fail."""
    one = Board.create(path)

    assert path.stat().st_blocks * 512 >= path.stat().st_size
    one.close()


_WRITER = """
import os, signal, sys
from pathlib import Path
from handrail.board import RUNNING, Board

dispatcher = Board.create(Path(sys.argv[1]))
slot = dispatcher.take("mail", "poison", 2)
if os.fork() == 0:
    host = Board(dispatcher.fd, None)  # a host maps the same file by its descriptor
    host.mark(slot, RUNNING)
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_outlives_its_writers(path: Path) -> None:
    """What a host marked is found after SIGKILL of the host and of the dispatcher."""
    done = subprocess.run([sys.executable, "-c", _WRITER, str(path)], check=False, timeout=60)

    assert done.returncode == -signal.SIGKILL
    assert running_at(path) == {("mail", "poison"): 2}


def test_nameless() -> None:
    """A nameless board works the same and leaves no file."""
    one = Board.create(None)
    slot = one.take("q", "1", 0)
    one.mark(slot, RUNNING)

    assert one.state(slot) == RUNNING
    assert os.fstat(one.fd).st_nlink == 0
    one.close(unlink=True)
