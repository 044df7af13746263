"""A project in a folder of its own, for the tests of its queues.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from handrail import config
from handrail.config.model import Settings
from handrail.errors import ConfigError

HANDLERS = {
    "taskHandler.py": "def handler(message, callback):\n    callback()\n",
    "mail.py": (
        "import functools\n"
        "def send_welcome(message): ...\n"
        "async def send_bye(message, callback): ...\n"
        "async def session(job, call_next): ...\n"
        "later = functools.partial(send_welcome)\n"
    ),
    "billing/invoices.py": "def create(message): ...\ndef handler(message): ...\n",
}


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "queues.yaml"
        for name, text in HANDLERS.items():
            self.handler(name, text)

    def write(self, text: str | bytes) -> Path:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.path

    def handler(self, name: str, text: str) -> None:
        path = self.root / "handlers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def load(self, text: str | bytes, *, check_handlers: bool = True) -> Settings:
        return config.load(self.write(text), check_handlers=check_handlers)

    def problems(self, text: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load(text)
        return caught.value.problems


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a few handlers, and the working directory."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)
