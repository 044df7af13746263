"""The rendering, in memory; the timeout that kills is tried with the real worker, in this repository's own tests."""

import pytest


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tiles"


def test_a_tile_is_rendered(project, tiles):
    project.send("render", {"name": "one", "x": -2, "y": -1, "width": 2.0, "pixels": 16, "depth": 50})

    project.run_until_idle()

    image = (tiles / "one.pgm").read_bytes()
    assert image.startswith(b"P5 16 16 255\n")
    assert len(image) == len(b"P5 16 16 255\n") + 16 * 16
    [job] = project.completed
    assert job.result == {"file": "tiles/one.pgm"}


def test_a_tile_without_a_name_is_a_dead_letter(project, tiles):
    project.send("render", {"x": 0, "y": 0, "width": 1})

    project.run_until_idle()

    [dead] = project.dead
    assert "name" in dead.reason
    assert not tiles.exists()
