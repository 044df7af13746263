"""What the watcher tells of a project's files, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from handrail import watch
from handrail.config.model import Settings
from handrail.errors import ConfigError
from handrail.watch import Change, Watcher

Next = Callable[[], Awaitable[Change]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "handlers").mkdir(parents=True)
    (root / "queues.yaml").write_text("queues: {a: one}\n")
    (root / "handlers" / "one.py").write_text("A = 1\n")
    (root / "shared.py").write_text("B = 1\n")
    return root


@pytest.fixture(params=["auto", "poll"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HANDRAIL_WATCH", request.param)
    # events alone must suffice: the look that happens without an occasion comes never
    monkeypatch.setattr(watch, "SAFETY", 3600.0)
    monkeypatch.setattr(watch, "POLL", 0.05)
    monkeypatch.setattr(watch, "SHARE", 1.0)
    return str(request.param)


def settings(root: Path) -> Settings:
    return Settings(path=str(root / "queues.yaml"), root=str(root), brokers={}, queues={})


def watching(root: Path, story: Callable[[Next], Awaitable[None]], *, falls_back: bool = False) -> None:
    """Run *story* while the project is watched; ``await next()`` is the next change."""

    async def main() -> None:
        watcher = Watcher(settings(root))
        changes = watcher.changes()
        told: asyncio.Queue[Change] = asyncio.Queue()

        async def follow() -> None:
            async for change in changes:
                told.put_nowait(change)

        following = asyncio.create_task(follow())
        try:
            async with asyncio.timeout(30):
                while not (watcher.polling or watcher._watches):
                    await asyncio.sleep(0.01)
                await story(told.get)
        finally:
            watcher.close()
            await asyncio.wait_for(following, 10)
        assert told.empty()

    asyncio.run(main())


def test_saved_file(project: Path, way: str) -> None:
    """A saved handler is one change that names it."""

    async def story(next_change: Next) -> None:
        (project / "handlers" / "one.py").write_text("A = 2\n")
        assert await next_change() == Change(("handlers/one.py",))

    watching(project, story)


def test_between_making_and_watching(project: Path, way: str) -> None:
    """What changes after the watcher was made and before anybody listens is told."""

    async def main() -> Change:
        watcher = Watcher(settings(project))
        (project / "shared.py").write_text("B = 2\n")
        changes = watcher.changes()
        try:
            return await asyncio.wait_for(anext(changes), 20)
        finally:
            watcher.close()
            await changes.aclose()

    assert asyncio.run(main()) == Change(("shared.py",))


def test_config(project: Path, way: str) -> None:
    """A change of queues.yaml says so, and that it is gone as well."""

    async def story(next_change: Next) -> None:
        (project / "queues.yaml").write_text("queues: {b: one}\n")
        assert await next_change() == Change(("queues.yaml",), config=True)
        (project / "queues.yaml").unlink()
        assert await next_change() == Change((), ("queues.yaml",), config=True)

    watching(project, story)


def test_touch_does_nothing(project: Path, way: str) -> None:
    """A new time, or the same content written again, is no change."""

    async def story(next_change: Next) -> None:
        for _ in range(3):
            (project / "handlers" / "one.py").touch()
            (project / "queues.yaml").write_text("queues: {a: one}\n")
            await asyncio.sleep(0.15)
        (project / "shared.py").write_text("B = 3\n")
        assert await next_change() == Change(("shared.py",))

    watching(project, story)


def test_same_size_at_once(project: Path, way: str) -> None:
    """A second save of the same size, its time set back to the first's, is seen."""
    path = project / "handlers" / "one.py"

    async def story(next_change: Next) -> None:
        for number in range(2, 6):
            times = path.stat()
            path.write_text(f"A = {number}\n")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert await next_change() == Change(("handlers/one.py",))

    watching(project, story)


def test_thousand_files(project: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that writes a thousand files, and takes others away, is one change."""
    monkeypatch.setattr(watch, "LONGEST", 20.0)

    def git(*arguments: str) -> None:
        own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *own, *arguments], cwd=project, check=True, capture_output=True)

    git("init", "-b", "one")
    git("add", ".")
    git("commit", "-m", "one")
    git("checkout", "-b", "two")
    (project / "pkg").mkdir()
    for number in range(1000):
        (project / "pkg" / f"m{number}.py").write_text(str(number))
    git("rm", "shared.py")
    git("add", ".")
    git("commit", "-m", "two")
    git("checkout", "one")

    async def story(next_change: Next) -> None:
        await asyncio.to_thread(git, "checkout", "two")
        change = await next_change()
        assert len(change.files) == 1000
        assert change.gone == ("shared.py",)
        assert not change.config

    watching(project, story)


def test_editors(project: Path, way: str) -> None:
    """Vim's probe, backup and rename, Emacs' locks and a temporary file moved over the handler are one change of it."""
    path = project / "handlers" / "one.py"
    folder = path.parent

    async def story(next_change: Next) -> None:
        (folder / "4913").touch()
        (folder / "4913").unlink()
        (folder / ".one.py.swp").write_bytes(b"swap")
        path.rename(folder / "one.py~")
        path.write_text("A = 'vim'\n")
        (folder / "one.py~").unlink()
        assert await next_change() == Change(("handlers/one.py",))

        (folder / ".#one.py").symlink_to("somebody@nowhere.1:2")
        (folder / "#one.py#").write_text("A = 'em")
        (folder / "one.py.tmp").write_text("A = 'emacs'\n")
        (folder / "one.py.tmp").replace(path)
        (folder / ".#one.py").unlink()
        assert await next_change() == Change(("handlers/one.py",))

    watching(project, story)


def test_slow_replacing(project: Path, way: str) -> None:
    """A file that is away, or empty, for a moment while it is written anew is not told as gone."""
    path = project / "handlers" / "one.py"

    async def story(next_change: Next) -> None:
        path.unlink()
        await asyncio.sleep(0.08)
        path.write_text("")
        await asyncio.sleep(0.08)
        path.write_text("A = 'whole'\n")
        assert await next_change() == Change(("handlers/one.py",))

    watching(project, story)


def test_renamed_and_deleted(project: Path, way: str) -> None:
    """A renamed file is new under one name and gone under the other; folders likewise."""

    async def story(next_change: Next) -> None:
        (project / "handlers" / "one.py").rename(project / "handlers" / "two.py")
        assert await next_change() == Change(("handlers/two.py",), ("handlers/one.py",))
        (project / "handlers" / "deep" / "er").mkdir(parents=True)
        (project / "handlers" / "deep" / "er" / "x.py").write_text("X = 1\n")
        assert await next_change() == Change(("handlers/deep/er/x.py",))
        (project / "handlers" / "deep" / "er" / "x.py").write_text("X = 2\n")
        assert await next_change() == Change(("handlers/deep/er/x.py",))
        (project / "handlers" / "deep").rename(project / "handlers" / "flat")
        assert await next_change() == Change(("handlers/flat/er/x.py",), ("handlers/deep/er/x.py",))
        (project / "handlers" / "flat" / "er" / "x.py").write_text("X = 3\n")
        assert await next_change() == Change(("handlers/flat/er/x.py",))
        shutil.rmtree(project / "handlers" / "flat")
        assert await next_change() == Change((), ("handlers/flat/er/x.py",))

    watching(project, story)


def test_handlers_removed_and_made_again(project: Path, way: str) -> None:
    """The handlers folder may go and come back; what is saved in the new one is seen."""

    async def story(next_change: Next) -> None:
        shutil.rmtree(project / "handlers")
        assert await next_change() == Change((), ("handlers/one.py",))
        (project / "handlers").mkdir()
        (project / "handlers" / "one.py").write_text("A = 'again'\n")
        assert await next_change() == Change(("handlers/one.py",))
        (project / "handlers" / "one.py").write_text("A = 'and again'\n")
        assert await next_change() == Change(("handlers/one.py",))

    watching(project, story)


def test_new_package(project: Path, way: str) -> None:
    """A package made after the start is watched."""

    async def story(next_change: Next) -> None:
        (project / "lib").mkdir()
        (project / "lib" / "__init__.py").write_text("L = 1\n")
        assert await next_change() == Change(("lib/__init__.py",))
        (project / "lib" / "__init__.py").write_text("L = 2\n")
        assert await next_change() == Change(("lib/__init__.py",))

    watching(project, story)


def test_symbolic_links(project: Path, way: str) -> None:
    """Handlers behind a symbolic link are followed to where they are, and to where the link points next."""
    for name in ("old", "new"):
        (project.parent / name).mkdir()
        (project.parent / name / "one.py").write_text(f"A = '{name}'\n")
    shutil.rmtree(project / "handlers")
    (project / "handlers").symlink_to("../old")

    async def story(next_change: Next) -> None:
        (project.parent / "old" / "one.py").write_text("A = 'edited'\n")
        assert await next_change() == Change(("handlers/one.py",))
        (project / "switch").symlink_to("../new")
        (project / "switch").replace(project / "handlers")
        assert await next_change() == Change(("handlers/one.py",))
        (project.parent / "new" / "one.py").write_text("A = 'edited too'\n")
        assert await next_change() == Change(("handlers/one.py",))

    watching(project, story)


def test_linked_file(project: Path, way: str) -> None:
    """A queues.yaml or handler that is a link to a file elsewhere is seen when that file changes."""
    (project.parent / "elsewhere").mkdir()
    for target, link in (("real.yaml", "queues.yaml"), ("real.py", "handlers/linked.py")):
        (project.parent / "elsewhere" / target).write_text("1")
        (project / link).unlink(missing_ok=True)
        (project / link).symlink_to(project.parent / "elsewhere" / target)

    async def story(next_change: Next) -> None:
        (project.parent / "elsewhere" / "real.yaml").write_text("2")
        assert await next_change() == Change(("queues.yaml",), config=True)
        (project.parent / "elsewhere" / "real.py").write_text("2")
        assert await next_change() == Change(("handlers/linked.py",))

    watching(project, story)


def test_circle_of_links(project: Path, way: str) -> None:
    """Links that lead in a circle, or nowhere, are no trouble."""
    (project / "handlers" / "round").symlink_to("..")
    (project / "handlers" / "nowhere.py").symlink_to("missing.py")

    async def story(next_change: Next) -> None:
        (project / "shared.py").write_text("B = 'round'\n")
        assert await next_change() == Change(("shared.py",))

    watching(project, story)


def test_not_code(project: Path, way: str) -> None:
    """Data, environments, packages of others, hidden folders, bytecode and tests are no change; named pipes are not read."""
    for folder in (".venv/lib", "env/lib", "web/node_modules/x", ".git", ".platform", "handlers/__pycache__", "tests"):
        (project / folder).mkdir(parents=True)
    (project / "env" / "pyvenv.cfg").write_text("home = /usr\n")

    async def story(next_change: Next) -> None:
        for folder in (
            ".venv/lib",
            "env/lib",
            "web/node_modules/x",
            ".git",
            ".platform",
            "handlers/__pycache__",
            "tests",
        ):
            (project / folder / "x.py").write_text("X = 1\n")
        (project / ".platform" / "queues.db").write_bytes(b"SQLite format 3\0")
        (project / "handlers" / "data.db").write_bytes(b"SQLite format 3\0")
        os.mkfifo(project / "handlers" / "pipe.py")
        (project / "web" / "app.py").write_text("W = 1\n")
        assert await next_change() == Change(("web/app.py",))

    watching(project, story)


def test_unreadable(project: Path, way: str) -> None:
    """A folder with a file's name, and a file whose name is not UTF-8, are no trouble."""
    (project / "handlers" / "folder.py").mkdir()
    strange = Path(os.fsdecode(bytes(project / "handlers") + b"/\xff.py"))

    async def story(next_change: Next) -> None:
        os.close(os.open(strange, os.O_CREAT))
        assert await next_change() == Change((os.fsdecode(b"handlers/\xff.py"),))

    watching(project, story)


def test_project_removed_and_made_again(project: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole project may go and come back: all is gone, then all is new."""
    monkeypatch.setattr(watch, "SAFETY", 0.1)  # nothing tells of a new folder in the place of the root

    async def story(next_change: Next) -> None:
        os.rename(project, project.parent / "aside")  # noqa: PTH104
        change = await next_change()
        assert change == Change((), ("handlers/one.py", "queues.yaml", "shared.py"), config=True)
        (project.parent / "aside").rename(project)
        assert (await next_change()).files == ("handlers/one.py", "queues.yaml", "shared.py")

    watching(project, story)


def test_a_look_that_is_held_up_is_not_long_the_last(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look waits for, on a busy machine, does not count as work of which there shall be little."""
    monkeypatch.setenv("HANDRAIL_WATCH", "poll")
    monkeypatch.setattr(watch, "POLL", 0.05)
    look = watch._Tree._folder

    def held_up(*arguments: Any) -> None:
        time.sleep(0.1)
        look(*arguments)

    monkeypatch.setattr(watch._Tree, "_folder", held_up)

    async def story(next_change: Next) -> None:
        for n in range(2):
            (project / "shared.py").write_text(f"HELD = {n}\n")
            assert (await next_change()).files == ("shared.py",)

    watching(project, story)


def test_unknown_way(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HANDRAIL_WATCH takes auto or poll, and nothing else in silence."""
    monkeypatch.setenv("HANDRAIL_WATCH", "pol")

    with pytest.raises(ConfigError, match="HANDRAIL_WATCH is 'pol'; use auto or poll"):
        Watcher(settings(project))


def test_closing_ends_the_changes(project: Path, way: str) -> None:
    """Closing ends the iteration, before it began as well, and may be done twice."""

    async def main() -> list[Change]:
        watcher = Watcher(settings(project))
        asyncio.get_running_loop().call_later(0.05, watcher.close)
        found = [change async for change in watcher.changes()]
        watcher.close()
        return found + [change async for change in watcher.changes()]

    assert asyncio.run(asyncio.wait_for(main(), 20)) == []


def test_who_follows_can_be_cancelled_at_any_moment(project: Path, way: str) -> None:
    """A cancellation in the very moment of an event ends the iteration as any other does."""

    async def main() -> bool:
        watcher = Watcher(settings(project))

        async def follow() -> None:
            async for _change in watcher.changes():
                pass

        for _ in range(20):
            following = asyncio.create_task(follow())
            await asyncio.sleep(0.1)
            watcher._event.set()
            following.cancel()
            _done, still = await asyncio.wait([following], timeout=20)
            if still:
                watcher.close()
                return False
        watcher.close()
        return True

    assert asyncio.run(main())


_LIMITED = """
import asyncio, sys
from pathlib import Path
from handrail import watch
from handrail.config.model import Settings
from handrail.watch import Watcher

watch.SHARE = 1.0
limit, root = sys.argv[1:]
name, _, value = limit.partition("=")
Path("/proc/sys/user", name).write_text(value)

async def main():
    watcher = Watcher(Settings(path=root + "/queues.yaml", root=root, brokers={}, queues={}))
    changes = watcher.changes()
    for number in range(2):
        following = asyncio.ensure_future(anext(changes))
        while not watcher.polling:
            await asyncio.sleep(0.01)
        Path(root, "handlers/deep/x.py").write_text(f"X = {number}")
        print(await following)
    watcher.close()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("limit", ["max_inotify_instances=0", "max_inotify_watches=0", "max_inotify_watches=2"])
def test_inotify_limit(project: Path, limit: str) -> None:
    """At the system's limit of watches the files are looked at instead, which is said once."""
    (project / "handlers" / "deep").mkdir()
    own = ["unshare", "--user", "--map-root-user"]  # limits of its own, so that nobody else's are touched
    if not shutil.which("unshare") or subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no user namespace")

    done = subprocess.run(
        [*own, sys.executable, "-c", _LIMITED, limit, str(project)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("handlers/deep/x.py") == 2
    assert (done.stdout + done.stderr).count("the system's inotify limit is reached") == 1


def test_a_change_while_the_watcher_ends_is_no_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What watchdog says of an event that comes too late is nothing for users; what else it says is."""
    monkeypatch.setenv("HANDRAIL_WATCH", "auto")

    async def story(next_change: Next) -> None:
        pass

    watching(project, story)
    said = logging.getLogger("watchdog.observers.inotify")
    said.error("InotifyEmitter.queue_events() called when the thread is inactive")
    said.error("something else")

    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_no_word_in_quiet(project: Path, way: str) -> None:
    """A watcher that works says nothing."""

    async def story(next_change: Next) -> None:
        (project / "shared.py").write_text("B = 4\n")
        await next_change()

    with capture_logs() as said:
        watching(project, story)

    assert said == []
