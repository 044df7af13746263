"""Another language and library on RabbitMQ, Node's amqplib: it sends to handrail's queues and reads what handrail sent."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from harness import Project, wait_for
from server import CACHE, locked

from real_servers import UnavailableError, unavailable

AMQPLIB = "2.3.1"
CLIENT = Path(__file__).with_name("amqp_client.js")

# notes each call as a JSON line, and fails while the message says so
_HANDLERS = """
import json, os
from handrail import context


def _note(message, **more):
    job = context.job
    shown = message.decode("latin-1") if isinstance(message, bytes) else message
    headers = {
        name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in job.headers.items()
    }
    line = {"message": shown, "id": job.id, "attempt": job.attempt, "headers": headers, **more}
    with open(os.environ["TEST_JOURNAL"], "a") as journal:
        journal.write(json.dumps(line) + "\\n")


def note(message, callback):
    _note(message)
    callback()


def fail(message, callback):
    _note(message)
    if not os.path.exists(os.path.join(os.environ["TEST_GATES"], "mended")):
        raise ValueError("not yet")
    callback()
"""


@pytest.fixture(scope="session")
def amqplib() -> Path:
    """The folder in which node finds amqplib: installed once, into the cache."""
    folder = CACHE / f"amqplib-{AMQPLIB}"
    if missing := [program for program in ("node", "npm") if shutil.which(program) is None]:
        unavailable("amqplib", UnavailableError(f"{missing[0]} is not installed"))
    with locked(CACHE / "amqplib.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            # npm asks again by itself
            done = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"amqplib@{AMQPLIB}"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["npm failed"])[-1]
                unavailable("amqplib", UnavailableError(f"npm could not install amqplib {AMQPLIB}: {last}"))
            (folder / "complete").touch()
    return folder / "node_modules"


class Node:
    """The other client, on the queues of one project."""

    def __init__(self, modules: Path, url: str, prefix: str) -> None:
        self._modules = modules
        self._url = url
        self._prefix = prefix

    def publish(self, queue: str, *messages: dict[str, Any]) -> None:
        """Send to *queue*, and wait until the server has them: ``body`` as bytes, and amqplib's options."""
        encoded = [{**message, "body": base64.b64encode(message["body"]).decode()} for message in messages]
        self._run("publish", queue, json.dumps(encoded))

    def take(self, queue: str, count: int = 1) -> list[dict[str, Any]]:
        """Up to *count* messages of *queue*, taken away: ``body`` as bytes, and amqplib's properties that are set."""
        return self._read("take", queue, count)

    def look(self, queue: str, count: int = 1) -> list[dict[str, Any]]:
        """As :meth:`take`, but they stay."""
        return self._read("look", queue, count)

    def _read(self, command: str, queue: str, count: int) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._run(command, queue, str(count)).splitlines()]
        for one in found:
            one["body"] = base64.b64decode(one["body"])
        return found

    def _run(self, command: str, queue: str, argument: str) -> str:
        done = subprocess.run(
            ["node", str(CLIENT), command, self._url, self._prefix + queue, argument],
            env={**os.environ, "NODE_PATH": str(self._modules)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


QUEUES = {
    "plain": "client.note",
    "text": {"handler": "client.note", "content": "text"},
    "bytes": {"handler": "client.note", "content": "bytes"},
    "failing": {"handler": "client.fail", "attempts": 3, "backoff": ["0s", "10ms"]},
    "outgoing": {},
}


@pytest.fixture
def node(project: Project, rabbitmq: str, amqplib: Path) -> Node:
    """The project on RabbitMQ, its queues made, and the other client."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    project.write("handlers/client.py", _HANDLERS)
    project.configure(QUEUES, broker=rabbitmq, prefix=prefix)
    return Node(amqplib, rabbitmq, prefix)


def calls(project: Project) -> list[dict[str, Any]]:
    """What the handlers noted so far."""
    return [json.loads(line) for line in project.journal.read_text().splitlines() if line.endswith("}")]


def called(project: Project, count: int) -> list[dict[str, Any]]:
    wait_for(lambda: project.journal.read_bytes().count(b"\n") >= count, f"{count} calls", 90)
    return calls(project)


def test_node_sends_plain_json(project: Project, node: Node) -> None:
    """Nothing but a body is needed; id, headers and priority are taken where they are given, and a strange id is kept."""
    worker = project.worker("work")

    node.publish("plain", {"body": b'{"n": 1, "text": "\xc3\xa4"}'})
    called(project, 1)
    headers = {"tenant": "acme", "count": 7, "ratio": 0.5, "vip": True, "bytes": base64.b64encode(b"\xff\x00").decode()}
    node.publish(
        "plain", {"body": b"[1, 2]", "messageId": "order:1", "headers": headers, "priority": 9, "persistent": True}
    )
    called(project, 2)
    node.publish("plain", {"body": b"3", "messageId": "not one of ours!", "contentType": "application/json"})
    bare, full, strange = called(project, 3)

    assert bare["message"] == {"n": 1, "text": "ä"}
    assert bare["headers"] == {}
    assert bare["attempt"] == 1
    assert bare["id"]
    assert full["message"] == [1, 2]
    assert full["id"] == "order:1"
    assert full["headers"] == {"tenant": "acme", "count": 7, "ratio": 0.5, "vip": True, "bytes": "\xff\x00"}
    assert strange["message"] == 3
    assert strange["id"] != "not one of ours!"
    assert strange["headers"] == {"amqp-message-id": "not one of ours!"}
    assert worker.stop() == 0


def test_node_reads_what_handrail_sends(project: Project, node: Node) -> None:
    """The body is the payload and nothing else; id, type of content, priority and headers stand where AMQP has them."""
    before = time.time()
    project.send("outgoing", {"n": 1, "text": "ä"}, "--id", "invoice/1", "-H", "tenant=acme")
    assert project.platform("send", "outgoing", "--raw", "no {json").returncode == 0
    project.send("outgoing", {"n": 3}, "--priority", "9")

    first, second = node.take("outgoing", 5)
    [urgent] = node.take("outgoing.p9", 5)

    assert json.loads(first["body"]) == {"n": 1, "text": "ä"}
    assert first["messageId"] == "invoice/1"
    assert first["contentType"] == "application/json"
    assert first["deliveryMode"] == 2
    assert first["priority"] == 4
    assert first["headers"]["tenant"] == "acme"
    assert before - 1 < float(first["headers"]["handrail-sent-at"]) < time.time() + 1
    assert [name for name in first["headers"] if not ours(name)] == ["tenant"]
    assert second["body"] == b"no {json"
    assert second["contentType"] == "application/octet-stream"
    assert urgent["priority"] == 9
    assert json.loads(urgent["body"]) == {"n": 3}


def test_what_is_no_json_follows_the_queue(project: Project, node: Node) -> None:
    """`content` decides: as text or bytes it is delivered, where JSON is awaited it is a dead letter that tells why."""
    worker = project.worker("work")
    node.publish("text", {"body": "häll, {not json".encode(), "contentType": "text/plain"})
    node.publish("bytes", {"body": b"\xff\xfe\x00", "contentType": "image/x"})
    node.publish(
        "plain", {"body": b"\xff{not json", "headers": {"tenant": "acme"}, "messageId": "bad-1", "type": "order"}
    )
    found = called(project, 2)
    wait_for(lambda: project.depths("plain")["dead"] == 1, "it is dead")

    assert sorted(call["message"] for call in found) == sorted(["häll, {not json", "\xff\xfe\x00"])
    assert len(calls(project)) == 2
    [dead] = node.look("plain.dead", 5)
    assert dead["body"] == b"\xff{not json"
    assert dead["messageId"] == "bad-1"
    assert dead["type"] == "order"
    assert dead["headers"]["tenant"] == "acme"
    assert dead["headers"]["handrail-dead-queue"] == "plain"
    assert "UTF-8" in dead["headers"]["handrail-reason"] or "JSON" in dead["headers"]["handrail-reason"]
    wait_for(lambda: project.depths("plain")["dead"] == 1, "it is back from the look")
    listed = json.loads(project.platform("dead", "list", "plain", "--json").stdout)
    assert [row["reason"] for row in listed] == [dead["headers"]["handrail-reason"]]
    assert worker.stop() == 0


#: What a foreign sender may set and handrail does not know: it shall come out as it went in, whatever happens to the message.
FOREIGN: dict[str, Any] = {
    "messageId": "strange-1",
    "contentType": "application/json",
    "correlationId": "c-1",
    "replyTo": "answers",
    "type": "order.created",
    "appId": "shop",
    "contentEncoding": "utf-8",
    "timestamp": 1_700_000_000,
    "headers": {
        "tenant": "acme",
        "count": 2**40,
        "ratio": 0.25,
        "vip": False,
        "table": {"a": 1, "b": ["x", {"c": True}]},
        "list": [1, "two", None],
        "nothing": None,
        # milliseconds, as JavaScript has them, where AMQP wants seconds: a year that no calendar has
        "when": {"!": "timestamp", "value": 1_700_000_000_000},
        "ä": "ö",
    },
}


def test_what_handrail_does_not_know_survives_all_its_ways(project: Project, node: Node) -> None:
    """Retries, the dead letters and a replay leave a foreign message's properties, headers and body as they were."""
    worker = project.worker("work")
    node.publish("failing", {"body": b' {"n" : 1} ', **FOREIGN})
    wait_for(lambda: project.depths("failing")["dead"] == 1, "it is dead")
    assert worker.stop() == 0

    [dead] = node.look("failing.dead", 5)
    assert foreign(dead) == {"body": b' {"n" : 1} ', **FOREIGN}
    assert [call["attempt"] for call in calls(project)] == [1, 2, 3]
    assert {call["id"] for call in calls(project)} == {"strange-1"}
    assert dead["headers"]["handrail-reason"] == "ValueError: not yet"

    wait_for(lambda: project.depths("failing")["dead"] == 1, "it is back from the look")
    assert project.platform("dead", "replay", "failing", "strange-1").returncode == 0
    assert node.look("failing.dead", 5) == []
    [again] = node.look("failing", 5)
    assert foreign(again) == {"body": b' {"n" : 1} ', **FOREIGN}
    assert "handrail-reason" not in again["headers"]

    project.open_gate("mended")
    worker = project.worker("work")
    assert called(project, 4)[3]["attempt"] == 1
    assert worker.stop() == 0


def foreign(message: dict[str, Any]) -> dict[str, Any]:
    """What of *message* is its sender's: all but our headers, and what AMQP adds."""
    headers = {name: value for name, value in message["headers"].items() if not ours(name)}
    kept = {name: value for name, value in message.items() if name in FOREIGN and value is not None}
    return {"body": message["body"], **kept, "headers": headers}


def ours(name: str) -> bool:
    return name.startswith(("handrail-", "x-")) or name == "CC"


def test_many_from_node_arrive_once_and_in_order(project: Project, node: Node) -> None:
    """A thousand messages that were sent in a row stand in that order, and each is handled once."""
    project.configure(
        {"plain": {"handler": "client.note", "concurrency": 1}},
        broker=node._url,
        prefix=node._prefix,
    )
    project.worker("work").stop()  # so that the queue is there

    node.publish("plain", *bodies(range(1000)))

    listed = project.platform("peek", "plain", "--limit", "1000", "--json")
    assert [one["message"] for one in json.loads(listed.stdout)] == list(range(1000))
    worker = project.worker("work")
    assert sorted(call["message"] for call in called(project, 1000)) == list(range(1000))
    assert worker.stop() == 0


def bodies(numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [{"body": str(n).encode()} for n in numbers]
