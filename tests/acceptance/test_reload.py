"""`platform run` takes up what was saved, and never at the cost of a message or of a running handler."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial

import pytest
from harness import Project, Running, wait_for

# Notes which version of the file ran. All versions are of one length, so that size alone tells nothing.
_VERSION = """
from journal import note, wait_at


def handler(message, callback):
    note("version-@", message["n"])
    callback()


def held(message, callback):
    note("start", message["n"])
    note("held-by-@", message["n"])
    wait_at("gate", message["n"])
    note("end", message["n"])
    callback()
"""

_BRIEF = """
import asyncio
from journal import note


async def handler(message, callback):
    note("start", message["n"])
    await asyncio.sleep(0.02)
    note("end", message["n"])
    callback()
"""


def version_of(version: str) -> str:
    """handlers/task.py in this version."""
    return _VERSION.replace("@", version)


class Served:
    """A running project whose handlers tell their version."""

    def __init__(self, project: Project, worker: Running) -> None:
        self.project = project
        self.worker = worker
        self._numbers: Iterator[int] = itertools.count(1)

    def save(self, version: str) -> None:
        self.project.write("handlers/task.py", version_of(version))

    def version(self, *options: str) -> str:
        """The version that handles a message sent now."""
        n = next(self._numbers)
        self.project.send("task", {"n": n}, *options)

        def handled() -> str:
            return next(
                (
                    e.event.removeprefix("version-")
                    for e in self.project.entries()
                    if e.n == n and "version-" in e.event
                ),
                "",
            )

        return wait_for(handled, f"message {n} is handled")

    def until_version(self, version: str) -> None:
        wait_for(lambda: self.version() == version, f"version {version} serves")


@pytest.fixture
def served(project: Project) -> Served:
    project.lay({"task": "task", "held": "task.held", "single": {"handler": "task.held", "concurrency": 1}})
    project.write("handlers/task.py", version_of("a"))
    return Served(project, project.worker())


def test_a_saved_file_serves_the_next_messages(served: Served) -> None:
    """After an edit messages are handled by the new code, in the same running command."""
    assert served.version() == "a"

    served.save("b")

    served.until_version("b")
    assert served.worker.process.poll() is None


def test_a_module_beside_the_handlers_is_watched_too(served: Served) -> None:
    """An edit of a project's own module that a handler imports reloads the handlers."""
    served.project.write("library.py", "WORD = 'x'\n")
    served.project.write(
        "handlers/task.py", "from library import WORD\n" + version_of("b").replace('"version-b"', 'f"version-{WORD}"')
    )
    served.until_version("x")

    served.project.write("library.py", "WORD = 'y'\n")

    served.until_version("y")


def test_a_broken_file_leaves_the_old_code_serving_and_is_shown(served: Served) -> None:
    """A syntax error is shown with its file and line while the old code serves on; the mended file takes over."""
    served.project.write("handlers/task.py", "from journal import note\n\ndef handler(message, callback:\n    pass\n")

    served.worker.until_says("handlers/task.py:3")

    [shown] = served.worker.events("not reloaded; the old code serves on")
    assert len(shown["problems"]) == 1
    assert served.version() == "a"
    served.save("c")
    served.until_version("c")


def test_a_file_that_fails_at_import_leaves_the_old_code_serving(served: Served) -> None:
    """An error that only importing shows is no reason to stop either."""
    served.project.write("handlers/task.py", "import no_such_module_anywhere\n" + version_of("b"))

    served.worker.until_says("no_such_module_anywhere")

    assert served.version() == "a"
    served.save("c")
    served.until_version("c")


def test_two_saves_within_a_second_never_leave_stale_code(served: Served) -> None:
    """Files of the same size and time stamp are told apart by what they hold, by the watcher and by the bytecode cache."""
    path = served.project.root / "handlers" / "task.py"
    stamp = path.stat().st_mtime_ns
    for version in "bcdef":
        new = path.with_name("new.tmp")
        new.write_text(version_of(version))
        os.utime(new, ns=(stamp, stamp))
        new.replace(path)

        served.until_version(version)


def test_a_touch_reloads_nothing(served: Served) -> None:
    """A file whose content stayed the same is no change, however it was written."""
    touched = served.project.root / "handlers" / "work.py"

    touched.touch()
    served.project.write("handlers/work.py", touched.read_text())
    served.save("b")

    served.until_version("b")
    wait_for(lambda: served.worker.events("reloaded"), "the word of it")
    assert [event["files"] for event in served.worker.events("reloaded")] == [["handlers/task.py"]]


def test_a_running_handler_runs_once_across_a_reload(served: Served) -> None:
    """A handler of ten minutes finishes in the old code, once, while the new code already serves."""
    served.project.send("held", {"n": 1000})
    served.project.until("held-by-a", 1000)

    served.save("b")
    served.until_version("b")

    assert served.project.counts("end")[1000] == 0
    served.project.open_gate()
    served.project.until("end", 1000)
    assert served.worker.stop() == 0
    assert served.project.counts("start")[1000] == 1
    assert served.project.counts("held-by-b")[1000] == 0


def test_concurrency_one_holds_across_a_reload(served: Served) -> None:
    """Old and new code count together: with `concurrency: 1` the second message waits for the first, run by the old code."""
    served.project.send("single", {"n": 1000})
    served.project.until("held-by-a", 1000)
    served.save("b")
    served.until_version("b")

    served.project.send("single", {"n": 1001})
    for _ in range(5):
        assert served.version() == "b"

    assert served.project.counts("start")[1001] == 0
    served.project.open_gate()
    served.project.until("end", 1000, 1001)
    assert served.project.counts("held-by-b")[1001] == 1
    first = [entry.at for entry in served.project.entries("end") if entry.n == 1000]
    second = [entry.at for entry in served.project.entries("start") if entry.n == 1001]
    assert first < second


def test_a_saved_queues_yaml_is_applied(served: Served) -> None:
    """A queue that is added serves without a restart, and the log says what changed."""
    served.project.configure({"task": {"handler": "task", "attempts": 5}, "added": "task"})

    served.worker.until_says("attempts 3 → 5")
    served.project.send("added", {"n": 500})

    served.project.until("version-a", 500)


def test_a_broken_queues_yaml_leaves_the_old_one_serving(served: Served) -> None:
    """Settings that are wrong are shown with their line; the old ones serve on until they are mended."""
    before = served.project.write("before.yaml", (served.project.root / "queues.yaml").read_text())
    served.project.write("queues.yaml", "queues:\n  task: {handler: task, attemps: 3}\n")

    served.worker.until_says("queues.yaml:2:")

    assert served.version("--config", str(before)) == "a"
    served.project.configure({"task": "task", "added": "task"})
    served.project.send("added", {"n": 500})
    served.project.until("version-a", 500)


def test_no_message_is_lost_or_repeated_while_files_are_saved(project: Project) -> None:
    """Under load, through several reloads, every confirmed message is handled exactly once."""
    project.lay({"task": "task"})
    body = _BRIEF
    project.write("handlers/task.py", body + "VERSION = 0\n")
    worker = project.worker()
    sender = project.sender("task", range(1500), pace=0.002)

    for version in range(1, 5):
        project.write("handlers/task.py", body + f"VERSION = {version}\n")
        wait_for(partial(_has_reloaded, worker, version), "it reloaded")

    confirmed = sender.finish()
    assert len(confirmed) == 1500
    project.until("end", *confirmed)
    assert worker.stop() == 0
    assert set(project.counts("start").values()) == {1}


def _has_reloaded(worker: Running, times: int) -> bool:
    return len(worker.events("reloaded")) >= times
