"""Booking in order, on a broker in memory."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ledger").mkdir()
    return Path("ledger")


def send(project, account, number, amount):
    project.send("movements", {"account": account, "number": number, "amount": amount}, key=account)


def test_movements_are_booked_in_their_order(project, ledger):
    for number in range(1, 11):
        send(project, "ada", number, 5)
        send(project, "bob", number, 7)

    project.run_until_idle()

    assert (ledger / "ada.csv").read_text() == "".join(f"{n},{5 * n}\n" for n in range(1, 11))
    assert (ledger / "bob.csv").read_text() == "".join(f"{n},{7 * n}\n" for n in range(1, 11))


def test_a_repeated_movement_is_booked_once(project, ledger):
    for number in (1, 2, 2, 3):
        send(project, "ada", number, 1)

    project.run_until_idle()

    assert (ledger / "ada.csv").read_text() == "1,1\n2,2\n3,3\n"


def test_who_would_overdraw_does_not_keep_the_others(project, ledger):
    for number, amount in ((1, 10), (2, -50), (3, -10)):
        send(project, "eve", number, amount)

    project.run_until_idle()

    assert (ledger / "eve.csv").read_text() == "1,10\n3,0\n"
    [dead] = project.dead
    assert dead.reason == "movement 2 would overdraw eve"
