"""The examples do what their READMEs say: their own tests pass, and they run with the real command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import REPOSITORY, Project, wait_for
from server import free_ports

_BIN = Path(sys.executable).parent


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The examples, in a folder of this test's own, so that they leave nothing in the repository."""
    copied = tmp_path / "examples"
    shutil.copytree(
        REPOSITORY / "examples", copied, ignore=shutil.ignore_patterns(".platform", "__pycache__", ".*_cache")
    )
    return copied


@pytest.fixture
def opened() -> Iterator[list[Project]]:
    """The projects that a test made; whatever they started is ended."""
    made: list[Project] = []
    yield made
    for project in made:
        project.end_all()


@pytest.mark.parametrize(
    "name",
    [
        "two-servers/orders",
        "two-servers/shipping",
        "background-email",
        "cpu-work",
        "account-movements",
        "rabbitmq-invoices",
    ],
)
def test_its_own_tests_pass(examples: Path, name: str) -> None:
    """`pytest` in the example's folder, as its README says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    done = subprocess.run(
        [_BIN / "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(examples / name)],
        cwd=examples / name,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_every_example_is_listed_and_tested() -> None:
    """An example that nobody runs rots; each folder has a README, tests, and its line in the list."""
    listed = (REPOSITORY / "examples" / "README.md").read_text()
    for folder in sorted(path for path in (REPOSITORY / "examples").iterdir() if path.is_dir()):
        if any(folder.glob("**/queues.yaml")):
            assert f"]({folder.name}/)" in listed
            assert (folder / "README.md").exists()
            assert list(folder.glob("**/test_*.py"))


def test_two_servers_talk(examples: Path, opened: list[Project]) -> None:
    """An order goes to the shipping service and the news of it comes back, though neither was up when the other spoke."""
    orders, shipping = (Project(examples / "two-servers" / name) for name in ("orders", "shipping"))
    opened += [orders, shipping]
    orders.send("orders", {"id": "o-1", "items": ["lamp"], "city": "Oslo"})

    first = orders.worker("work")
    first.until_says("order o-1 accepted")
    second = shipping.worker("work")

    second.until_says("leaves for Oslo")
    first.until_says("order o-1 is on its way")
    assert first.stop() == 0
    assert second.stop() == 0


def test_a_web_app_answers_before_the_email_is_sent(examples: Path, opened: list[Project]) -> None:
    """The answer of POST /signup needs no worker; the e-mail leaves once there is one."""
    project = Project(examples / "background-email")
    opened.append(project)
    [port] = free_ports(1)
    log = (project.logs / "uvicorn").open("wb")
    with (
        log,
        subprocess.Popen(
            [_BIN / "uvicorn", "app:app", "--port", str(port)],
            cwd=project.root,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        try:
            wait_for(lambda: _listens(port), "the web app listens")
            body = json.dumps({"name": "Ada", "address": "ada@example.org"}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/signup", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 202
                said = json.load(answer)
        finally:
            server.terminate()
            server.wait(30)
    assert said["welcome"] == "Ada"
    assert project.depths("welcome-email")["ready"] == 1

    worker = project.worker("work")

    email = project.root / "outbox" / f"{said['email']}.eml"
    wait_for(email.exists, "the e-mail has left")
    assert worker.stop() == 0


def test_a_timeout_kills_what_keeps_a_cpu_busy(examples: Path, opened: list[Project]) -> None:
    """The tiles are rendered, the impossible one is killed at its timeout and ends among the dead letters."""
    project = Project(examples / "cpu-work")
    opened.append(project)
    settings = (project.root / "queues.yaml").read_text()
    project.write("queues.yaml", settings.replace("timeout: 10s", "timeout: 3s"))
    worker = project.worker("work")

    done = subprocess.run(
        [sys.executable, "order.py"], cwd=project.root, env=project.environment, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr.decode()
    tiles = project.root / "tiles"
    wait_for(lambda: len(list(tiles.glob("*.pgm"))) == 6, "six tiles are rendered", timeout=60)
    wait_for(lambda: project.depths("render")["dead"] == 1, "the impossible one is dead", timeout=60)
    listed = project.platform("dead", "list", "render", "--json")
    [dead] = json.loads(listed.stdout)
    assert "3s" in dead["reason"]
    assert worker.stop() == 0


def test_movements_of_an_account_keep_their_order(examples: Path, opened: list[Project], kafka: str) -> None:
    """On Kafka with two workers, a closed ledger and the death of one worker: each account has every movement, in order, once."""
    project = Project(examples / "account-movements")
    opened.append(project)
    settings = project.root / "queues.yaml"
    settings.write_text(settings.read_text() + f"prefix: x{uuid.uuid4().hex[:8]}-\n")
    ledger = project.root / "ledger"
    ledger.mkdir()
    (ledger / "closed").touch()
    environment = {**project.environment, "HANDRAIL_BROKER": kafka}
    workers = [project.start("work", environment=environment).until_ready() for _ in range(2)]

    done = subprocess.run(
        [sys.executable, "teller.py", "40"], cwd=project.root, env=environment, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr.decode()
    workers[0].until_says("the ledger is closed")
    assert list(ledger.glob("*.csv")) == []
    (ledger / "closed").unlink()
    wait_for(lambda: list(ledger.glob("*.csv")), "the first is booked")
    workers[0].kill_all()
    accounts = [ledger / f"{name}.csv" for name in ("ada", "bob", "eve")]

    def booked(account: Path) -> list[int]:
        return [int(line.split(",")[0]) for line in account.read_text().splitlines()] if account.exists() else []

    wait_for(lambda: all(len(booked(account)) >= 40 for account in accounts), "all is booked", timeout=60)
    assert [booked(account) for account in accounts] == [list(range(1, 41))] * 3
    assert workers[1].stop() == 0


def test_a_shop_that_knows_rabbitmq_alone_gets_its_invoices(
    examples: Path, opened: list[Project], rabbitmq: str
) -> None:
    """Orders that pika puts into the queue become invoices and waiting reminders; one that does not fit is a dead letter."""
    project = Project(examples / "rabbitmq-invoices")
    opened.append(project)
    settings = (project.root / "queues.yaml").read_text()
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    # the server is not that of its compose.yaml, and is shared
    project.write("queues.yaml", f"prefix: {prefix}\n{settings}")
    url = urllib.parse.urlsplit(rabbitmq)
    project.more = {
        "RABBITMQ_URL": f"amqp://{url.hostname}:{url.port}",
        "RABBITMQ_USER": urllib.parse.unquote(url.username or "guest"),
        "RABBITMQ_PASSWORD": urllib.parse.unquote(url.password or "guest"),
        "RABBITMQ_VHOST": urllib.parse.unquote(url.path[1:]) or "/",
    }
    worker = project.worker("work")
    for order in (
        {"id": "o-1", "customer": "ada@example.org", "total": 12.5, "express": True},
        {"id": "o-2", "customer": "ada@example.org"},
    ):
        sent = subprocess.run(
            [sys.executable, "shop.py", f"{prefix}orders", json.dumps(order)],
            cwd=project.root,
            env=project.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr

    wait_for((project.root / "invoices" / "o-1.json").exists, "the invoice is written")
    wait_for(lambda: project.depths("reminders")["delayed"] == 1, "the reminder waits")
    wait_for(lambda: project.depths("orders")["dead"] == 1, "the other order is dead")
    [dead] = json.loads(project.platform("dead", "list", "orders", "--json").stdout)
    assert dead["id"] == "o-2"
    assert "total" in dead["reason"]
    assert worker.stop() == 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
