"""Other people's Kafka clients: they write into our queues and read what we sent, and nothing of theirs is lost on the way."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import uuid
from collections import Counter
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from harness import Project, wait_for
from server import install

from real_servers import Kafka, UnavailableError, unavailable

#: Keeps what arrives; the first run of what says so fails.
HANDLERS = """
import json, os
from handrail import context

def keep(message, callback):
    job = context.job
    text = message.hex() if isinstance(message, bytes) else message
    if isinstance(message, dict) and "pad" in message:
        text = {**message, "pad": len(message["pad"])}
    line = {"message": text, "id": job.id, "attempt": job.attempt, "headers": {k: str(v) for k, v in job.headers.items()}}
    with open(os.environ["TEST_JOURNAL"] + "-kept", "a") as kept:
        kept.write(json.dumps(line) + "\\n")
    if isinstance(message, dict) and job.attempt <= message.get("fail", 0):
        raise ValueError("as told")
    callback()
"""


def create_topic(server: str, name: str, **config: str) -> None:
    """A topic as its operator made it."""

    async def create() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=server)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, 1, 1, topic_configs=config)])
        finally:
            await admin.close()

    asyncio.run(create())


class Foreign:
    """A project on the shared server, and the clients of others beside it."""

    def __init__(self, project: Project, url: str) -> None:
        self.project = project
        self.server = url.removeprefix("kafka://")
        self.prefix = f"f{uuid.uuid4().hex[:8]}-"
        project.write("handlers/foreign.py", HANDLERS)
        self.url = url

    def serve(self, **queues: Any) -> None:
        given = {name: {"handler": "foreign.keep", "backoff": "50ms", **queue} for name, queue in queues.items()}
        # what is finished stays in the topics, however long a test takes: others look at it there
        broker = {"url": self.url, "partitions": 2, "reclaim": False}
        self.project.configure({**given, "outbox": {}}, broker=broker, prefix=self.prefix)
        self.worker = self.project.worker("work")

    def kept(self) -> list[dict[str, Any]]:
        """What the handler got."""
        path = self.project.journal.with_name(f"{self.project.journal.name}-kept")
        # the last line may be half written
        lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def depths(self, queue: str) -> dict[str, int]:
        return self.project.depths(queue)

    def java(self, *arguments: str, stdin: str | None = None) -> str:
        """A tool from the server's own jars; what it prints."""
        tool, *rest = arguments
        command = Kafka().java(f"org.apache.kafka.tools.{tool}", "--bootstrap-server", self.server, *rest)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kcat(self, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["kcat", "-b", self.server, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def records(self, queue: str) -> list[tuple[str, Counter[str], str]]:
        """Key, the headers that are not ours, and value (``NULL`` for none) of all that kcat finds in a queue's topic."""
        text = self.kcat(
            "-C", "-t", self.prefix + queue, "-o", "beginning", "-e", "-q", "-f", "%k\\x1f%h\\x1f%S\\x1f%s\\x1e"
        )
        found = []
        for record in filter(None, text.split("\x1e")):
            key, headers, size, value = record.split("\x1f")
            # a traceback of ours has commas too
            theirs = [one for one in headers.split(",") if re.fullmatch(r"[a-z]=\w*", one)]
            found.append((key, Counter(theirs), "NULL" if size == "-1" else value))
        return found


@pytest.fixture
def foreign(project: Project, kafka: str) -> Foreign:
    try:
        Kafka().obtain()
    except UnavailableError as reason:
        unavailable("kafka", reason)
    return Foreign(project, kafka)


@pytest.fixture(scope="session")
def kcat() -> None:
    """kcat, installed where that may be done."""
    try:
        install("kcat", lambda: shutil.which("kcat"))
    except UnavailableError as reason:
        unavailable("kcat", reason)


def test_kafkas_own_console_clients_write_and_read(foreign: Foreign) -> None:
    """Plain JSON from the console producer is handled, what is none is a dead letter; the console consumer reads our sends."""
    foreign.serve(orders={})
    foreign.java(
        "ConsoleProducer", "--topic", f"{foreign.prefix}orders", "--reader-property", "parse.key=true",
        "--reader-property", "parse.headers=true", stdin='a:1,b:zwei\tk\t{"n": 1}\na:2\tk\tnot json\n',
    )  # fmt: skip
    wait_for(foreign.kept, "the JSON is handled")
    wait_for(lambda: foreign.depths("orders")["dead"] == 1, "the other is dead")

    [kept] = foreign.kept()
    assert kept["message"] == {"n": 1}
    assert kept["headers"] == {"a": "1", "b": "zwei"}
    assert kept["attempt"] == 1
    assert kept["id"].startswith(f"{foreign.prefix}orders/")
    [dead] = json.loads(foreign.project.platform("dead", "list", "orders", "--json").stdout)
    assert "JSON" in dead["reason"]

    sent = {"n": 2, "text": "zwei Wörter,\t und mehr"}
    foreign.project.send("outbox", sent, "--key", "customer-7", "--header", "trace=abc")
    printed = foreign.java(
        "consumer.ConsoleConsumer", "--topic", f"{foreign.prefix}outbox", "--from-beginning", "--max-messages", "1",
        "--formatter-property", "print.key=true", "--formatter-property", "print.headers=true",
    )  # fmt: skip
    headers, key, body = printed.rstrip("\n").split("\t", 2)
    assert (key, json.loads(body)) == ("customer-7", sent)
    assert "trace:abc" in headers.split(",")

    assert foreign.worker.stop() == 0
    lags = foreign.java("consumer.group.ConsumerGroupCommand", "--describe", "--group", f"{foreign.prefix}orders")
    rows = [line.split() for line in lags.splitlines() if f"{foreign.prefix}orders" in line]
    assert {row[2]: row[5] for row in rows} == {"0": "0", "1": "0"}, lags


def test_kcat_finds_its_records_as_they_were_after_retry_death_and_replay(foreign: Foreign, kcat: None) -> None:
    """Key, headers that come twice, and the very bytes of the body come through a delayed retry, the dead letters and back."""
    foreign.serve(orders={"attempts": 2, "backoff": "50ms"})
    body = '{ "n":1,\n"fail": 2 }'
    headers = Counter(["a=1", "a=2", "b=" + "x" * 100])
    marked = ["-H", "a=1", "-H", "a=2", "-H", "b=" + "x" * 100]
    foreign.kcat("-P", "-t", f"{foreign.prefix}orders", "-k", "k1", *marked, "-D", "\x1e", stdin=body)

    wait_for(lambda: foreign.depths("orders")["dead"] == 1, "it is dead")
    assert [kept["attempt"] for kept in foreign.kept()] == [1, 2]
    assert foreign.records("orders.dead") == [("k1", headers, body)]
    assert foreign.project.platform("dead", "replay", "orders", "--all").returncode == 0
    wait_for(lambda: len(foreign.kept()) == 4, "it is handled again")
    wait_for(lambda: foreign.depths("orders")["dead"] == 1, "it is dead again")

    # as kcat wrote it, replayed, and what retries made of both
    again = foreign.records("orders")
    assert len(again) >= 2
    assert all(record == ("k1", headers, body) for record in again)
    assert {kept["id"] for kept in foreign.kept()} == {foreign.kept()[0]["id"]}


def test_bodies_that_are_no_json_follow_the_queues_content(foreign: Foreign, kcat: None) -> None:
    """`content: text` and `bytes` take what `json` makes a dead letter of; a tombstone is an empty body and stays one."""
    foreign.serve(orders={}, texts={"content": "text"}, raws={"content": "bytes"})
    for queue in ("orders", "texts", "raws"):
        foreign.kcat("-P", "-t", foreign.prefix + queue, "-k", "k", stdin="grün\n")
        foreign.kcat("-P", "-t", foreign.prefix + queue, "-K", ":", "-Z", "-H", "h=1", stdin="gone:\n")

    wait_for(lambda: foreign.depths("orders")["dead"] == 2, "both are dead where JSON is wanted")
    wait_for(lambda: len(foreign.kept()) == 4, "the others are handled")
    assert sorted(kept["message"] for kept in foreign.kept()) == ["", "", "grün".encode().hex(), "grün"]
    assert sorted(foreign.records("orders.dead")) == [
        ("gone", Counter(["h=1"]), "NULL"),
        ("k", Counter(), "grün"),
    ]
    dead = json.loads(foreign.project.platform("dead", "list", "orders", "--json").stdout)
    assert all("JSON" in one["reason"] for one in dead)


def test_a_record_larger_than_we_send_can_be_retried_and_dead_lettered(foreign: Foreign, kcat: None) -> None:
    """Where the operator's topic takes 5 MB, a stranger's 3 MB come through a delayed retry and into the dead letters."""
    create_topic(foreign.server, f"{foreign.prefix}orders", **{"max.message.bytes": "5000000", "retention.ms": "-1"})
    body = json.dumps({"fail": 2, "pad": "x" * 3_000_000})
    foreign.kcat(
        "-P", "-t", f"{foreign.prefix}orders", "-X", "message.max.bytes=5000000", "-D", "\x1e", stdin=body
    )  # fmt: skip
    foreign.serve(orders={"attempts": 3, "backoff": ["50ms", "2500ms"]})

    wait_for(lambda: len(foreign.kept()) == 3, "it is tried three times")
    assert foreign.kept()[2]["message"] == {"fail": 2, "pad": 3_000_000}
    foreign.kcat(
        "-P", "-t", f"{foreign.prefix}orders", "-X", "message.max.bytes=5000000", "-D", "\x1e",
        stdin=json.dumps({"fail": 9, "pad": "x" * 3_000_000}),
    )  # fmt: skip
    wait_for(lambda: foreign.depths("orders")["dead"] == 1, "the second is dead", timeout=60)
    assert foreign.worker.stop() == 0


@pytest.mark.parametrize(
    ("settings", "size", "code", "words"),
    [
        ({}, 10_000_000, 2, "more than max_message_bytes (1,000,000)"),
        ({"max_message_bytes": 50_000_000}, 10_000_000, 3, "a record on Kafka may take 2,097,152"),
        ({}, 5_000, 3, "raise max.message.bytes of the topic"),
    ],
    ids=["more than the project allows", "more than we send to Kafka", "more than the topic takes"],
)
def test_a_message_that_is_too_large_is_one_line(
    foreign: Foreign, settings: dict[str, Any], size: int, code: int, words: str
) -> None:
    """Whoever refuses it, `platform send` says so in one line, and the next one is sent."""
    create_topic(foreign.server, f"{foreign.prefix}outbox", **{"max.message.bytes": "2000", "retention.ms": "-1"})
    broker = {"url": foreign.url, "partitions": 1}
    foreign.project.configure({"outbox": {}}, broker=broker, prefix=foreign.prefix, **settings)

    done = foreign.project.platform("send", "outbox", "-", stdin=json.dumps("x" * size))

    [line] = done.stderr.splitlines()
    assert done.returncode == code
    assert words in line
    assert "xxx" not in line
    foreign.project.send("outbox", {"n": 1})
