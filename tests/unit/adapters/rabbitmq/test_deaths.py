"""Where workers of one machine tell each other what they were running, and that nobody else can say it for them."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

import pytest

from handrail.board import COMPLETED, RUNNING, Board
from handrail.errors import BrokerError
from handrail.message import Message, new_id
from handrail_rabbitmq import deaths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's workers; it does not exist yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Path(tmp_path, f"handrail-{os.getuid()}")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_folder_is_the_users_alone_whatever_the_umask(folder: Path) -> None:
    """A lax umask opens the folder to nobody, and one that an earlier start left open is closed."""
    before = os.umask(0)
    try:
        first = deaths.Deaths("broker")
        first.begin(Path("board"))
        assert mode(folder) == 0o700
        folder.chmod(0o777)
        second = deaths.Deaths("broker")
        second.begin(Path("board"))
        assert mode(folder) == 0o700
    finally:
        os.umask(before)
    first.end()
    second.end()


def test_a_completion_is_believed_of_its_own_message_alone(folder: Path, tmp_path: Path) -> None:
    """Foreign clients give one id to many messages: none of them passes for done because another of its id is."""
    worker = deaths.Deaths("broker")
    board = Board.create(tmp_path / "dead.board")
    ours = Message(queue="work", id=new_id(), body=b"", sent_at=time.time())
    chosen = Message(queue="work", id="1", body=b"", sent_at=time.time(), send=new_id())
    foreign = Message(queue="work", id="2", body=b"")
    for one in (ours, chosen, foreign):
        board.mark(board.take(one.queue, one.id, 0, one.send), COMPLETED)
    worker.begin(tmp_path / "mine.board")
    (workers,) = folder.glob("workers/*")
    Path(workers, "victim").write_bytes(os.fsencode(tmp_path / "dead.board"))

    heir = deaths.Deaths("broker")

    assert [heir.completed(one) for one in (ours, chosen, foreign)] == [True, True, False]
    again = Message(queue="work", id="1", body=b"", sent_at=time.time(), send=new_id())
    late = Message(queue="work", id=ours.id, body=b"", sent_at=time.time() + 3600)
    assert not heir.completed(again)
    assert not heir.completed(late)
    worker.end()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder that belongs to another user")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    """Where another user came first the worker does not start: one line names the folder and its owner."""
    folder.mkdir()
    os.chown(folder, 12345, 12345)

    with pytest.raises(BrokerError, match=r"belongs to another user \(uid 12345\)") as caught:
        deaths.Deaths("broker").begin(Path("board"))

    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_in_the_folders_place_is_refused(folder: Path, tmp_path: Path) -> None:
    """A symbolic link is not followed, wherever it leads."""
    folder.symlink_to(tmp_path)

    with pytest.raises(BrokerError, match="is no folder"):
        deaths.Deaths("broker").begin(Path("board"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder that belongs to another user")
def test_what_another_user_wrote_is_not_believed(folder: Path, tmp_path: Path) -> None:
    """A worker's file counts where the folder is this user's; the same file in another's folder counts nothing."""
    path = tmp_path / "dead.board"
    board = Board.create(path)
    board.mark(board.take("work", "1", 0), RUNNING)
    worker = deaths.Deaths("broker")
    worker.begin(tmp_path / "mine.board")
    (workers,) = folder.glob("workers/*")
    Path(workers, "victim").write_bytes(os.fsencode(path))
    worker.end()

    assert deaths.Deaths("broker").crashes("work", "1") == 1
    os.chown(folder, 12345, 12345)
    assert deaths.Deaths("broker").crashes("work", "1") == 0
