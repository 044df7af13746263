"""The handlers on a broker in memory: no server is needed to test them."""

import json

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "invoices"


def test_an_order_gets_its_invoice_now_and_its_reminder_later(project, folder):
    project.send("orders", {"id": "o-1", "customer": "ada@example.org", "total": 12.5})

    project.run_until_idle()

    written = json.loads((folder / "o-1.json").read_text())
    assert written["customer"] == "ada@example.org"
    assert {"order": "o-1", "customer": "ada@example.org", "total": 12.5} in project.sent["reminders"]


def test_an_order_that_does_not_fit_is_a_dead_letter(project, folder):
    project.send("orders", {"id": "o-2", "customer": "ada@example.org"})

    project.run_until_idle()

    [dead] = project.dead
    assert "total" in dead.reason
    assert not folder.exists()


def test_an_unknown_address_is_given_up_at_once(project):
    project.send("invoices", {"order": "o-3", "customer": "somebody", "total": 1.0})

    project.run_until_idle()

    [dead] = project.dead
    assert "no address for somebody" in dead.reason
