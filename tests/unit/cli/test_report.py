"""What a worker says of itself."""

from __future__ import annotations

from handrail.cli.report import at_the_source, lines_around


def test_the_lines_around_a_place_are_shown_with_the_place_marked(tmp_path) -> None:
    """Two lines before and after, numbered."""
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "a.py").write_text("".join(f"line {n}\n" for n in range(1, 13)))

    shown = lines_around(str(tmp_path), "handlers/a.py:9:3: invalid syntax")

    assert shown.splitlines() == [
        "     7 │ line 7",
        "     8 │ line 8",
        "  >  9 │ line 9",
        "    10 │ line 10",
        "    11 │ line 11",
    ]


def test_a_traceback_names_its_place_as_well(tmp_path) -> None:
    """The first frame that lies in the project counts."""
    (tmp_path / "a.py").write_text("x\n")

    assert "> 1 │ x" in lines_around(str(tmp_path), f'File "/usr/lib/x.py", line 3\n  File "{tmp_path}/a.py", line 1')


def test_no_file_outside_the_project_is_shown(tmp_path) -> None:
    """A place elsewhere, beyond the end or not there shows nothing."""
    (tmp_path / "a.py").write_text("x\n")
    inner = tmp_path / "inner"
    inner.mkdir()

    assert lines_around(str(inner), "../a.py:1: x") == ""
    assert lines_around(str(tmp_path), "a.py:7: x") == ""
    assert lines_around(str(tmp_path), "b.py:1: x") == ""
    assert lines_around(str(tmp_path), "something else") == ""


def test_a_broken_file_is_named_once_by_its_own_place() -> None:
    """Not by every line of queues.yaml that refers to it; what is wrong in queues.yaml stays as it is."""
    assert at_the_source(
        [
            "queues.yaml:3:13: handlers/a.py, line 7: '(' was never closed; mend the file",
            "queues.yaml:4:13: handlers/a.py, line 7: '(' was never closed; mend the file",
            "queues.yaml:5:3: unknown setting 'x'",
        ]
    ) == ["handlers/a.py:7: '(' was never closed; mend the file", "queues.yaml:5:3: unknown setting 'x'"]
