"""``platform version`` and ``capabilities``: what is installed here and what it can do. They need no project."""

from __future__ import annotations

import platform
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer

import handrail
from handrail.adapter import GROUP, Capability
from handrail.cli.common import Json, console, print_json, table


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("version")(version)
    app.command("capabilities")(capabilities)


def _adapters() -> list[tuple[EntryPoint, Any]]:
    """The installed adapters by scheme, each with its class, or with the error that keeps it from loading."""
    found: list[tuple[EntryPoint, Any]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            found.append((entry, entry.load()))
        except (ImportError, AttributeError) as error:  # a missing extra, or a distribution that promised too much
            found.append((entry, error))
    return found


def version(as_json: Json = False) -> None:
    """Print the versions of handrail, Python and the installed adapters."""
    adapters = {}
    for entry, made in _adapters():
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
        adapters[entry.name] = f"unusable, {made}" if isinstance(made, Exception) else distribution
    if as_json:
        print_json({"handrail": handrail.__version__, "python": platform.python_version(), "adapters": adapters})
        return
    print(f"handrail {handrail.__version__}")
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, text in adapters.items():
        print(f"{name}: {text}")


def capabilities(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table that stands in the README.")] = False,
    as_json: Json = False,
) -> None:
    """Print what each installed adapter can do, and the limits where it cannot."""
    found: dict[str, Any] = {}
    for _entry, made in _adapters():
        if not isinstance(made, Exception):
            found[made.name] = made.capabilities  # several schemes may share an adapter
    if as_json:
        print_json(
            [
                {"adapter": name, "capabilities": {row.value: able.get(row, False) for row in Capability}}
                for name, able in found.items()
            ]
        )
    elif markdown:
        print(markdown_table(found))
    else:
        shown = table("", *found)
        for row in Capability:
            shown.add_row(row.value.replace("`", ""), *(_cell(able.get(row, False)) for able in found.values()))
        console().print(shown)


def markdown_table(found: dict[str, Any]) -> str:
    """The capabilities of adapters by name, as a table in Markdown."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    lines += [
        f"| {row.value} | {' | '.join(_cell(able.get(row, False)) for able in found.values())} |" for row in Capability
    ]
    return "\n".join(lines)


def _cell(value: bool | str) -> str:
    return "yes" if value is True else "no" if value is False else value.replace("|", "\\|")
