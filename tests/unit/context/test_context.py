"""What the package offers, and what exists inside handlers only."""

from __future__ import annotations

import subprocess
import sys

import pytest

import handrail
from handrail import context
from handrail.errors import HandrailError


def test_the_context_is_an_attribute_of_the_package():
    """``from handrail import context`` and ``handrail.context`` are the same object."""
    assert handrail.context is context
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        handrail.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        context.nonsense  # noqa: B018


def test_there_is_no_job_outside_a_handler():
    """context.job outside a handler says so."""
    with pytest.raises(HandrailError, match=r"there is no job here: context\.job exists only inside a handler"):
        context.job  # noqa: B018


def test_the_import_is_light():
    """Importing the package, and then the context, brings in neither YAML, pydantic, structlog nor a broker's client."""
    code = (
        "import sys, handrail; light = set(sys.modules); from handrail import context;"
        "heavy = {'yaml', 'pydantic', 'structlog', 'apsw', 'rich', 'typer', 'watchdog'} & set(sys.modules);"
        "assert not heavy, heavy; assert 'asyncio' not in light, 'asyncio'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
