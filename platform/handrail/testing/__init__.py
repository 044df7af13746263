"""For tests of projects that use handrail: runs their handlers in the test's own process. It needs no broker, no command.

::

    def test_a_welcome_is_sent(handrail_project):  # the fixture of the pytest plugin
        handrail_project.send("welcome-email", {"name": "Ada", "address": "ada@example.org"})
        handrail_project.run_until_idle()
        assert handrail_project.results == [{"sent_to": "ada@example.org"}]

Without pytest, ``with handrail.testing.project() as project:`` gives the same.
"""

from __future__ import annotations

from pathlib import Path

from handrail.testing.embedded import Handled, Outbox, Project, SentMessage

__all__ = ["Handled", "Outbox", "Project", "SentMessage", "project"]


def project(path: str | Path | None = None) -> Project:
    """The project at *path*, its handlers loaded into this process and its queues empty and in memory.

    *path* is a queues.yaml or a folder in or below a project; without one ``HANDRAIL_CONFIG`` says, or the working
    directory. Use it in a ``with`` statement, or call ``close()``.

    Raises :class:`handrail.errors.NoProjectError`, :class:`handrail.errors.ConfigError`, and
    :class:`handrail.errors.StartError` for handlers that do not load.
    """
    return Project(path)
