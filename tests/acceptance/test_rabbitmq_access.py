"""The command and a real RabbitMQ: TLS and odd credentials work, a refusal is one line and exit code 3, no secret is shown."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import uuid
from pathlib import Path

import pytest
from harness import Project, wait_for

from certificates import NAMES, TLSRabbitMQ
from real_servers import RabbitMQ

#: Every part of it shall be looked for: nothing that stands in a URL may make it come out in pieces.
HALVES = ("geheim1", "geheim2")
SECRET = "geheim1%40@/:#? ä geheim2"
ODD = "u%s@r/:#? ö"


def account(server: RabbitMQ) -> str:
    """A virtual host and a user, both of the name :data:`ODD`, with the password :data:`SECRET`."""
    listed = server.ctl("-q", "list_users")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    if ODD not in listed.stdout:
        for words in (("add_vhost", ODD), ("add_user", ODD, SECRET), ("set_permissions", "-p", ODD, ODD, *[".*"] * 3)):
            done = server.ctl(*words)
            assert done.returncode == 0, done.stdout + done.stderr
    return ODD


def shown(text: str) -> list[str]:
    """Parts of the secret that stand in *text*."""
    return [half for half in HALVES if half in text]


def test_a_project_runs_over_tls_and_nothing_shows_the_password(project: Project, tls_rabbitmq: TLSRabbitMQ) -> None:
    """With certificates in the project and the password in a file: run, send, look, fail and reload without a trace of it."""
    account(tls_rabbitmq)
    for name in ("ca.pem", "client.pem", "client.key"):
        (project.root / "tls").mkdir(exist_ok=True)
        shutil.copy(tls_rabbitmq.file(name), project.root / "tls" / name)
    (project.root.parent / "secret").write_text(f"{SECRET}\n")
    broker = {
        "url": f"amqps://127.0.0.1:{tls_rabbitmq.state['tls']}",
        "username": ODD,
        "password": "${file:../secret}",
        "vhost": ODD,
        "ca": "tls/ca.pem",
        "cert": "tls/client.pem",
        "key": "tls/client.key",
        "server_name": NAMES[1],
    }
    project.lay({"quick": "work.quick", "wrong": {"handler": "wrong", "attempts": 1}}, broker=broker)
    project.write("handlers/wrong.py", "def handler(message):\n    raise ValueError('wrong')\n")

    worker = project.worker("run", "--log-level", "debug")
    project.send("quick", {"n": 1}, "--id", "one")
    project.send("wrong", {"n": 2})
    project.until("end", 1)
    wait_for(lambda: project.depths("wrong")["dead"] == 1, "the other is dead")
    said = "".join(
        (done := project.platform(*words, "--debug")).stdout + done.stderr
        for words in (
            ["check"],
            ["plan"],
            ["queues"],
            ["peek", "quick"],
            ["dead", "list", "wrong"],
            ["job", "quick", "one"],
        )
    )
    command_lines = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in worker.tree() if Path("/proc").exists())
    project.configure({"quick": "work.quick"}, broker={**broker, "password": f"{SECRET}, another"})
    worker.until_says("broker default changed; until this worker is restarted")

    assert worker.stop() == 0
    assert "completed" in said
    files = [path for path in (project.root / ".platform").rglob("*") if path.is_file()]
    assert files
    for text in (said, command_lines, worker.output(), *(path.read_bytes().decode("latin-1") for path in files)):
        assert shown(text) == []


@pytest.mark.parametrize(
    ("wrong", "way"),
    [
        ("password", "in the URL"),
        ("password", "beside the URL"),
        ("virtual host", "in the URL"),
        ("right", "beside the URL"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_3(project: Project, own_rabbitmq: RabbitMQ, wrong: str, way: str) -> None:
    """Whatever the server refuses, commands say it in one line without the secret, which no traceback of `--debug` shows."""
    own_rabbitmq.up()
    account(own_rabbitmq)
    name, password, vhost = ODD, SECRET, ODD
    if wrong == "password":
        password += " wrong"
        text = f"the server refused user {ODD!r} or its password"
    elif wrong == "virtual host":
        vhost = f"{ODD}nowhere"
        text = f"there is no virtual host {vhost!r} on the server"
    else:
        name = f"u{uuid.uuid4().hex[:8]}"
        own_rabbitmq.ctl("add_user", name, SECRET)
        text = f"user {name!r} may not use the virtual host {ODD!r}"
    plain = own_rabbitmq.url.replace("guest:guest@", "")
    if way == "beside the URL":
        broker: object = {"url": plain, "username": name, "password": password, "vhost": vhost}
    else:
        user, secret, path = (urllib.parse.quote(one, safe="") for one in (name, password, vhost))
        broker = plain.replace("//", f"//{user}:{secret}@") + path
    project.lay({"quick": "work.quick"}, broker=broker)

    for words in (["work"], ["send", "quick", "{}"]):
        done = project.platform(*words)

        assert done.returncode == 3, done.stdout + done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert shown(done.stdout + done.stderr) == []
    debugged = project.platform("queues", "--debug")

    assert debugged.returncode == 3
    assert "Traceback" in debugged.stderr
    assert text in debugged.stderr.splitlines()[-1]
    assert shown(debugged.stdout + debugged.stderr) == []


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1:1", "nothing listens on 127.0.0.1:1; start the server, or correct host and port"),
        ("rabbit.invalid", "cannot connect to rabbit.invalid:5672"),
    ],
    ids=["refused port", "unknown host"],
)
def test_a_server_that_is_not_there_is_awaited_by_workers_alone(project: Project, host: str, text: str) -> None:
    """A worker says once that it cannot connect and goes on trying; commands end within their time with exit code 3."""
    project.lay({"quick": "work.quick"}, broker={"url": f"amqp://{host}", "password": SECRET}, send_timeout="4s")
    worker = project.worker("work")

    for words in (["send", "quick", "{}"], ["queues"]):
        done = project.platform(*words)

        assert done.returncode == 3, done.stdout + done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert shown(done.stdout + done.stderr) == []
    warned = [json.dumps(line) for line in worker.events("broker not reachable; trying again")]

    assert len(warned) == 1
    assert text in warned[0]
    assert worker.stop() == 0
    assert shown(worker.output()) == []
