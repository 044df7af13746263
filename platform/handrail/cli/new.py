"""``platform new``: a small project that runs. It writes into an empty folder or not at all."""

from __future__ import annotations

import json
import re
import shlex
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

import handrail
from handrail import config as configuration
from handrail.cli.common import UsageError, shown

#: Ends the name of every template, so that no linter, compiler or git takes it for a file of handrail's own.
_SUFFIX = ".template"


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("new")(new)


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or empty.")],
) -> None:
    """Make a small project that runs: queues.yaml, a handler, an app that sends, a test."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{shown(folder)} is not an empty folder; nothing was written")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-") or "demo"
    words = {"@NAME@": name, "@VERSION@": handrail.__version__}
    try:
        written = _copy(files("handrail.cli") / "templates", folder, words)
        schema = folder / "queues.schema.json"
        schema.write_text(json.dumps(configuration.schema(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from None
    from handrail.cli.report import command_path  # noqa: PLC0415

    for each in sorted([*written, schema]):
        print(f"  {shown(each)}")
    command = command_path()
    if "/" in command and not command.startswith("/"):
        command = shlex.quote(str(Path(command).absolute()))  # the next line leaves this folder
    print("\nnext:")
    print(f"  cd {shlex.quote(shown(folder))}")
    print(f"  {command} run")
    print("and in a second terminal, in the same folder:")
    print(f"""  {command} send taskQueue '{{"n": 1}}'""")


def _copy(source: Traversable, target: Path, words: dict[str, str]) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for each in source.iterdir():
        if each.name == "__pycache__":
            continue
        place = target / re.sub(r"^dot-", ".", each.name.removesuffix(_SUFFIX))
        if each.is_dir():
            written += _copy(each, place, words)
            continue
        text = each.read_text("utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        place.write_text(text, "utf-8")
        written.append(place)
    return written
