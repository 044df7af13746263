"""`platform version` and `capabilities`."""

from __future__ import annotations

import handrail
from handrail.adapter import Capability
from handrail.cli.about import markdown_table


def test_version_names_handrail_python_and_adapters(project) -> None:
    """It needs no project."""
    assert project.ok("version").startswith(f"handrail {handrail.__version__}\nPython ")
    assert "sqlite" in project.json("version")["adapters"]


def test_capabilities_have_a_row_each_and_a_column_for_each_adapter(project) -> None:
    """The table of the README is this command's output."""
    lines = project.ok("capabilities", "--markdown").splitlines()

    assert "sqlite" in lines[0]
    assert len(lines) == 2 + len(Capability)
    (first, *_) = project.json("capabilities")
    assert set(first["capabilities"]) == {each.value for each in Capability}


def test_a_limit_stands_in_its_cell() -> None:
    """True is yes, absence is no, a sentence stands as it is and cannot break the table."""
    text = markdown_table({"x": {Capability.DELAY: True, Capability.PRIORITY: "1 | 2"}})

    assert "| delays and retries in the broker | yes |" in text
    assert "| ten priorities | 1 \\| 2 |" in text
    assert "| purge | no |" in text
