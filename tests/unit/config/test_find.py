"""Where queues.yaml is looked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from handrail import config
from handrail.errors import NoProjectError


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("HANDRAIL_CONFIG", raising=False)


def test_it_is_found_from_the_working_directory_upward(project, monkeypatch):
    """Any folder of a project is in the project."""
    project.write("")
    monkeypatch.chdir(project.root / "handlers" / "billing")

    assert config.find() == project.path


def test_it_is_found_from_where_the_search_is_started(project, monkeypatch):
    """The search may start elsewhere than in the working directory."""
    project.write("")
    monkeypatch.chdir("/")

    assert config.find(project.root / "handlers") == project.path


@pytest.mark.parametrize("named", ["queues.yaml", ".", "other.yaml"])
def test_the_variable_names_the_file_or_its_folder(project, monkeypatch, named):
    """``HANDRAIL_CONFIG`` goes before any search."""
    project.write("")
    (project.root / "other.yaml").write_text("")
    monkeypatch.setenv("HANDRAIL_CONFIG", named)

    assert config.find(Path("/")) == project.root / ("other.yaml" if named == "other.yaml" else "queues.yaml")


def test_a_variable_that_names_nothing_is_an_error(project, monkeypatch):
    """A stale ``HANDRAIL_CONFIG`` is not passed over."""
    monkeypatch.setenv("HANDRAIL_CONFIG", "gone.yaml")
    said = f"HANDRAIL_CONFIG names {project.root / 'gone.yaml'}, and there is no such file; mend or unset it"

    with pytest.raises(NoProjectError, match=re.escape(said)):
        config.find()


def test_no_project_is_an_error_that_says_what_to_do(tmp_path):
    """Outside a project the line says where it was looked for."""
    said = (
        f"there is no queues.yaml in {tmp_path} or above it; go to your project's folder, set HANDRAIL_CONFIG, or make"
    )

    with pytest.raises(NoProjectError, match=re.escape(said)):
        config.find(tmp_path)


def test_queues_yml_is_told_to_be_renamed(tmp_path):
    """A file by the other ending is not overlooked."""
    (tmp_path / "queues.yml").write_text("")

    with pytest.raises(
        NoProjectError, match=re.escape(f"{tmp_path / 'queues.yml'} must be called queues.yaml; rename it")
    ):
        config.find(tmp_path)
