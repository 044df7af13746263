"""queues.yaml: where it is, what it says, what is wrong with it. Importing it is cheap: parsers wait until they are needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handrail.errors import NoProjectError

if TYPE_CHECKING:
    from handrail.config.model import Settings

__all__ = ["FILE", "describe_changes", "find", "load", "schema"]

#: The name of the file that makes a folder a project.
FILE = "queues.yaml"


def find(start: Path | None = None) -> Path:
    """The absolute path of the project's queues.yaml.

    It is what ``HANDRAIL_CONFIG`` names (the file, or its folder), else the nearest upward from *start*, by default the
    working directory. Raises :class:`NoProjectError`. It does not look into the file.
    """
    if named := os.environ.get("HANDRAIL_CONFIG"):
        path = Path(named).expanduser().absolute()
        if path.is_dir():
            path /= FILE
        if not path.exists():
            raise NoProjectError(f"HANDRAIL_CONFIG names {path}, and there is no such file; mend or unset it")
        return path
    try:
        here = Path.cwd() if start is None else start.absolute()
    except FileNotFoundError:
        raise NoProjectError("the working directory was deleted; go to your project's folder") from None
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder / FILE
        other = folder / "queues.yml"
        if other.is_file():
            raise NoProjectError(f"{other} must be called {FILE}; rename it")
    raise NoProjectError(
        f"there is no {FILE} in {here} or above it; "
        "go to your project's folder, set HANDRAIL_CONFIG, or make a project: platform new DIR"
    )


def load(path: Path, *, check_handlers: bool = True) -> Settings:
    """The settings that the queues.yaml at *path* describes, with variables and defaults filled in.

    Raises :class:`handrail.errors.ConfigError` with every problem found. With *check_handlers* the handler files are
    looked at, without importing them; without, an application that only sends needs none.
    """
    from handrail.config.build import build  # noqa: PLC0415 - pydantic and yaml cost more than all the rest of handrail

    return build(path, check_handlers=check_handlers)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of queues.yaml, for editors."""
    from handrail.config.jsonschema import make  # noqa: PLC0415 - as load

    return make()


def describe_changes(old: Settings, new: Settings) -> list[str]:
    """What a reload changed, one line each: ``welcome-email: attempts 3 → 5``. No secrets are in it."""
    from handrail.config.changes import describe  # noqa: PLC0415 - as load

    return describe(old, new)
