"""``platform check`` and ``schema``: is queues.yaml right. They serve nothing and touch no broker's messages."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from handrail import config as configuration
from handrail import errors
from handrail.cli.common import Config, Json, console, print_json, settings_of, shown
from handrail.cli.exit_codes import ExitCode


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("check")(check)
    app.command("schema")(schema)


def check(config: Config = None, as_json: Json = False) -> None:
    """Check queues.yaml and import every handler. Exits with 0, or with 2 after naming every problem."""
    from handrail.cli import report  # noqa: PLC0415
    from handrail.worker import check_handlers  # noqa: PLC0415 - the worker is needed by few commands

    started = time.monotonic()
    try:
        settings = settings_of(config, check_handlers=True)
        found, problems = asyncio.run(check_handlers(settings))
    except errors.ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": error.problems})
        raise typer.Exit(ExitCode.USAGE) from None
    if as_json:
        print_json({"ok": not problems, "problems": problems, "queues": report.bound(settings, found)})
    elif problems:
        raise errors.ConfigError(problems)
    else:
        out = console()
        out.print(report.bound_table(settings, found, out.width))
        unbound = [queue.name for queue in settings.queues.values() if queue.handler is None]
        if unbound:
            print(f"only sent to: {', '.join(unbound)}")
        print(f"{shown(settings.path)} and {len(found)} handlers are right ({time.monotonic() - started:.1f}s)")
    if problems:
        raise typer.Exit(ExitCode.USAGE)


def schema(
    output: Annotated[
        typer.FileTextWrite | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")
    ] = None,
) -> None:
    """Print the JSON Schema of queues.yaml, for editors."""
    import json  # noqa: PLC0415

    text = json.dumps(configuration.schema(), indent=2) + "\n"
    if output is None:
        print(text, end="")
    else:
        output.write(text)
