"""``platform plan``: what a start would make on the brokers, and what stands there already. It makes nothing itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any

import msgspec
import typer

from handrail import adapter as port
from handrail.adapter import Planned
from handrail.cli.common import Config, Json, brokers, console, fail, print_json, settings_of, table
from handrail.cli.exit_codes import ExitCode
from handrail.config.model import Settings

_COLOURS = {"missing": "yellow", "differs": "red", "there": "green", "later": "dim"}
_Plan = dict[str, list[Planned]]


def register(app: typer.Typer) -> None:
    """Add the command of this module to *app*."""
    app.command("plan")(plan)


def plan(
    config: Config = None,
    as_json: Json = False,
    all_: Annotated[
        bool, typer.Option("--all", help="Show also what is made only when a message first needs it.")
    ] = False,
) -> None:
    """Show what a start would make on the brokers, and what stands there already. Makes nothing.

    Exits with 3 when a start would be refused: something stands there with other settings.
    """
    settings = settings_of(config)
    found = asyncio.run(_look(settings))
    places = {name: port.load(settings.brokers[name]).place for name in found}
    if as_json:
        print_json([{"broker": places[name], **_as_json(one)} for name, each in found.items() for one in each])
    else:
        for name, each in found.items():
            _show(places[name], each, later=all_)
    if differs := [one for each in found.values() for one in each if one.state == "differs"]:
        first = differs[0]
        more = f", and {len(differs) - 1} more" if len(differs) > 1 else ""
        fail(f"a start would be refused: {first.kind} {first.name} {first.detail}{more}", ExitCode.BROKER)


async def _look(settings: Settings) -> _Plan:
    found: _Plan = {}
    async with brokers(settings) as opened:
        for name in dict.fromkeys(queue.broker for queue in settings.queues.values()):
            made = port.load(settings.brokers[name])
            specs = [queue.spec for queue in settings.queues.values() if queue.broker == name]
            found[name] = await opened.answer(made, made.plan(specs))
    return found


def _as_json(one: Planned) -> dict[str, Any]:
    return msgspec.structs.asdict(one)


def _show(place: str, found: list[Planned], *, later: bool) -> None:
    shown = table("what", "name", "state", "settings", "")
    for one in found:
        if one.state == "later" and not later:
            continue
        # how it is made is of interest where it will be, or is not
        settings = "" if one.state == "there" else ", ".join(f"{name}={value}" for name, value in one.settings.items())
        shown.add_row(one.kind, one.name, f"[{_COLOURS[one.state]}]{one.state}[/]", settings, one.detail)
    out = console()
    out.print(place, markup=False)
    if shown.row_count:
        out.print(shown)
    count = Counter(one.state for one in found)
    parts = [
        f"{count['there']} there" if count["there"] else "",
        f"{count['missing']} missing" if count["missing"] else "",
        f"{count['differs']} with other settings" if count["differs"] else "",
        f"{count['later']} that a message may need later{'' if later else ' (--all)'}" if count["later"] else "",
    ]
    print(", ".join(part for part in parts if part) or "nothing is needed")
