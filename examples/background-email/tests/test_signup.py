"""The app and the handler together, without a server or a worker."""

import smtplib

import mailer
import pytest
from app import app
from fastapi.testclient import TestClient


@pytest.fixture
def outbox(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outbox"


def test_a_signup_sends_a_welcome(project, outbox):
    with TestClient(app) as client:
        answer = client.post("/signup", json={"name": "Ada", "address": "ada@example.org"})

    assert answer.status_code == 202
    assert not outbox.exists()  # the answer did not wait for it

    project.run_until_idle()

    [file] = outbox.iterdir()
    assert "To: ada@example.org" in file.read_text()
    assert len(project.completed) == 1


def test_a_mail_server_that_is_away_is_tried_again(project, monkeypatch):
    answers = iter([ConnectionRefusedError("away"), ConnectionRefusedError("still away"), "mail.example.org"])

    def deliver(_message, _key):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(mailer, "deliver", deliver)
    project.send("welcome-email", {"name": "Ada", "address": "ada@example.org"})

    project.run_until_idle()

    [job] = project.completed
    assert job.attempt == 3


def test_an_address_that_does_not_exist_is_given_up_at_once(project, monkeypatch):
    def deliver(_message, _key):
        raise smtplib.SMTPRecipientsRefused({"nobody@example.org": (550, b"no such user")})

    monkeypatch.setattr(mailer, "deliver", deliver)
    project.send("welcome-email", {"name": "Nobody", "address": "nobody@example.org"})

    project.run_until_idle()

    [dead] = project.dead
    assert "no such user" in dead.reason
