"""Kafka behind users, certificates and rights: who may comes in by every way, who may not is told why in one line."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import unsigned_token
from harness import PATIENCE, Project
from secured_kafka import CREATE, DESCRIBE, GROUP, PASSPHRASE, READ, TOPIC, WRITE, WRONG, SecuredKafka
from unsigned_token import token

import real_servers
from handrail.adapter import BrokerSettings, Delivery, QueueSpec, Settlement, Verb, load
from handrail.errors import BrokerError
from handrail.message import Message, new_id

#: One server for all of these, wherever several processes share the tests; the first waits for its start.
pytestmark = [pytest.mark.xdist_group("secured_kafka"), pytest.mark.timeout(300)]

PASSWORD = "on-loopback-only"
Given = Callable[[SecuredKafka], dict[str, Any]]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    server = SecuredKafka(tmp_path_factory.mktemp("secured-kafka"))
    try:
        server.up()
    except real_servers.UnavailableError as reason:
        real_servers.unavailable("kafka", reason)
    try:
        yield server
    finally:
        server.down()


def minted(user: str, life: float = 3600.0) -> str:
    return f"{sys.executable} {unsigned_token.__file__} {user} {life}"


def text_of(secured: SecuredKafka, name: str) -> str:
    return Path(secured.file(name)).read_text()


WAYS: dict[str, Given] = {
    "PLAIN": lambda secured: {"url": secured.at("sasl", f"handrail:{PASSWORD}")},
    "SCRAM-SHA-256": lambda secured: {"url": secured.at("sasl", f"handrail:{PASSWORD}") + "?sasl=scram-sha-256"},
    "SCRAM-SHA-512, by the mapping": lambda secured: {
        "url": "kafka://",
        "servers": [secured.at("sasl").removeprefix("kafka://")],
        "sasl": "scram-sha-512",
        "username": "handrail",
        "password": PASSWORD,
    },
    "a token": lambda secured: {"url": secured.at("sasl"), "token": token("all-rights")},
    "a command for tokens": lambda secured: {"url": secured.at("sasl"), "token_command": minted("all-rights")},
    "TLS": lambda secured: {"url": secured.at("tls"), "ca": secured.file("ca.pem")},
    "a client certificate": lambda secured: {
        "url": f"{secured.at('mtls')}?cert={secured.file('client.crt')}&key={secured.file('client.key')}",
        "ca": secured.file("ca.pem"),
        "key_password": PASSPHRASE,
    },
    "a client certificate, as text": lambda secured: {
        "url": secured.at("mtls"),
        **{
            name: text_of(secured, file)
            for name, file in (("ca", "ca.pem"), ("cert", "client.crt"), ("key", "client.key"))
        },
        "key_password": PASSPHRASE,
    },
    "PLAIN over TLS": lambda secured: {
        "url": f"{secured.at('sasl_tls', f'handrail:{PASSWORD}')}?ca={secured.file('ca.pem')}"
    },
}


def adapter_of(given: dict[str, Any]) -> Any:
    options = {name: value for name, value in given.items() if name != "url"} | {"partitions": 1}
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    return load(BrokerSettings(name="default", url=given["url"], root="/", prefix=prefix, options=options))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_message_goes_there_and_back(secured: SecuredKafka, way: Given) -> None:
    """By each mechanism, with TLS and without, a message is sent, delivered and acknowledged."""
    given = way(secured)
    adapter = adapter_of(given)
    queue = QueueSpec(name="work", dead_letter="work.dead")
    got: list[Delivery] = []
    await adapter.open("worker")
    try:
        await adapter.declare([queue])
        assert await adapter.publish([Message(queue="work", id=new_id(), body=b"1")], 20.0) == {}
        await adapter.subscribe(queue, 10, got.extend, lambda _lost: None)
        async with asyncio.timeout(30):
            while not got:
                await asyncio.sleep(0.01)
        assert got[0].message.body == b"1"
        assert await adapter.settle([Settlement(got[0], Verb.ACK)]) == []
        assert adapter.health().up
        for secret in (PASSWORD, PASSPHRASE, str(given.get("token"))):
            assert secret not in adapter.place + adapter.health().detail + repr(adapter._options)
    finally:
        await adapter.close()


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[Given, str]] = {
    "a wrong password": (
        lambda secured: {"url": secured.at("sasl", f"handrail:{WRONG}")},
        "the server refuses the user or the password",
    ),
    "a wrong password, SCRAM": (
        lambda secured: {"url": secured.at("sasl", f"handrail:{WRONG}") + "?sasl=scram-sha-512"},
        "the server refuses the user or the password",
    ),
    "a mechanism that is not offered": (
        lambda secured: {
            "url": secured.at("sasl_tls", f"handrail:{WRONG}"),
            "sasl": "scram-sha-256",
            "ca": secured.file("ca.pem"),
        },
        "does not offer this SASL mechanism",
    ),
    "a password where none is wanted": (
        lambda secured: {"url": secured.at("port", f"handrail:{WRONG}")},
        "wants no SASL here",
    ),
    "a token that has ended": (
        lambda secured: {"url": secured.at("sasl"), "token": token(WRONG, -60)},
        "the server refuses the token",
    ),
    "a command that gives no token": (
        lambda secured: {"url": secured.at("sasl"), "token_command": f"echo {WRONG} >&2; exit 4"},
        "token_command ended with exit code 4",
    ),
    "an unknown host": (
        lambda _kafka: {"url": f"kafka://handrail:{WRONG}@nowhere.invalid:9092"},
        "the host's name is not known here",
    ),
    "an authority that is not trusted": (
        lambda secured: {"url": secured.at("tls"), "ca": secured.file("other-ca.pem")},
        "certificate is not trusted",
    ),
    "a certificate for another name": (
        lambda secured: {"url": secured.at("tls", host="127.0.0.1"), "ca": secured.file("ca.pem")},
        "certificate is for another name",
    ),
    "no client certificate": (
        lambda secured: {"url": secured.at("mtls"), "ca": secured.file("ca.pem")},
        "the server demands a client certificate",
    ),
    "a wrong passphrase": (
        lambda secured: {
            "url": secured.at("mtls"),
            "ca": secured.file("ca.pem"),
            "cert": secured.file("client.crt"),
            "key": secured.file("client.key"),
            "key_password": WRONG,
        },
        "key_password: does not open",
    ),
}


@pytest.mark.parametrize(("way", "words"), REFUSALS.values(), ids=REFUSALS)
async def test_what_waiting_does_not_mend_is_said_in_one_line(
    secured: SecuredKafka, monkeypatch: pytest.MonkeyPatch, way: Given, words: str
) -> None:
    """Opening the broker fails at once and says why; no secret is in it."""
    monkeypatch.setattr("handrail_kafka.adapter.OPEN_PATIENCE", 60.0)
    monkeypatch.setattr("handrail_kafka.cluster.GREETING", 50.0)
    with pytest.raises(BrokerError, match=words) as refused:
        await adapter_of(way(secured)).open("worker")

    assert "\n" not in str(refused.value)
    assert WRONG not in str(refused.value)


LISTENERS: dict[str, tuple[Given, str]] = {
    "nobody listens": (lambda _kafka: {"url": f"kafka://handrail:{WRONG}@127.0.0.1:1"}, "nobody listens there"),
    "TLS is wanted": (lambda secured: {"url": secured.at("tls")}, "does this port want TLS"),
    "TLS is not wanted": (lambda secured: {"url": secured.at("port"), "tls": True}, "does this port speak TLS"),
    "a user is wanted": (lambda secured: {"url": secured.at("sasl")}, "does this port want a user and a password"),
}


@pytest.mark.parametrize(("way", "words"), LISTENERS.values(), ids=LISTENERS)
async def test_what_waiting_may_mend_is_said_and_waited_for(secured: SecuredKafka, way: Given, words: str) -> None:
    """A server that is not there, or ends connections, may be starting: opening succeeds and health says what it looks like."""
    adapter = adapter_of(way(secured))
    await adapter.open("worker")
    try:
        async with asyncio.timeout(PATIENCE):
            # on a busy machine opening is over before the first attempt to connect is
            while words not in adapter.health().detail:
                await asyncio.sleep(0.05)

        assert not adapter.health().up
    finally:
        await adapter.close()


async def test_a_password_that_is_refused_later_is_told_as_well(secured: SecuredKafka) -> None:
    """When a server that took the password does not take it any more, sends say so, and nothing of connections."""
    adapter = adapter_of({"url": secured.at("sasl", f"handrail:{PASSWORD}")})
    await adapter.open("client")
    try:
        adapter._core.cluster.options = adapter_of({"url": secured.at("sasl", f"handrail:{WRONG}")})._options
        errors = await adapter.publish([Message(queue="work", id=new_id(), body=b"1")], 20.0)
    finally:
        await adapter.close()

    assert "the server refuses the user or the password" in str(errors[0])


# --- the same by the command, as users see it -------------------------------------------------------------------------


def configured(project: Project, broker: dict[str, Any], **settings: Any) -> None:
    # far more than a refusal takes: on a busy machine a command needs seconds to connect
    settings.setdefault("send_timeout", "40s")
    project.lay({"quick": "work.quick"}, broker={**broker, "partitions": 1}, **settings)


@pytest.mark.parametrize(
    "name",
    ["a wrong password", "an unknown host", "an authority that is not trusted", "a certificate for another name"],
)
def test_a_refusal_ends_the_command_with_one_line(secured: SecuredKafka, project: Project, name: str) -> None:
    """`platform send` and `platform work` end with exit code 3 and that one line."""
    way, words = REFUSALS[name]
    configured(project, way(secured))
    worker = project.start("work")

    sent = project.platform("send", "quick", '{"n": 1}')

    for code, said in ((sent.returncode, sent.stdout + sent.stderr), (worker.process.wait(PATIENCE), worker.output())):
        [line] = said.splitlines()
        assert code == 3
        assert line.startswith("platform: ")
        assert words in line
        assert WRONG not in said


def test_a_refused_port_fails_the_send_and_not_the_worker(project: Project) -> None:
    """A send gives up after `send_timeout` with exit code 3; a worker says it once, waits, and ends when it is told to."""
    configured(project, {"url": f"kafka://handrail:{WRONG}@127.0.0.1:1"}, send_timeout="8s")
    worker = project.start("work")

    sent = project.platform("send", "quick", '{"n": 1}')

    last = sent.stderr.splitlines()[-1]
    assert sent.returncode == 3
    assert last.startswith("platform: ")
    assert "nobody listens there" in last
    worker.until_says("nobody listens there")
    assert worker.stop() == 0
    assert worker.output().count("nobody listens there") == 1
    assert WRONG not in sent.stdout + sent.stderr + worker.output()


# --- rights -----------------------------------------------------------------------------------------------------------

ALL_TOPICS = [(TOPIC, "*", READ), (TOPIC, "*", WRITE), (TOPIC, "*", DESCRIBE)]


def named(rights: list[tuple[int, str, int]], prefix: str) -> list[tuple[int, str, int]]:
    return [(kind, prefix + name, operation) for kind, name, operation in rights]


@pytest.mark.parametrize(
    ("rights", "command", "words"),
    [
        ([], "send", "no access to topic '{}quick'"),
        ([(TOPIC, "*", READ), (GROUP, "*", READ)], "send", "may write to no topic"),
        ([(TOPIC, "other", WRITE), (TOPIC, "*", DESCRIBE)], "send", "no access to topic '{}quick'"),
        ([(TOPIC, "*", WRITE), (GROUP, "*", READ)], "work", "no access to topic '{}quick'"),
        (ALL_TOPICS, "work", "no access to consumer group '{}quick'"),
    ],
    ids=["none", "no Write at all", "no Write on it", "no Read", "no group"],
)
def test_a_missing_right_is_named(
    secured: SecuredKafka, project: Project, rights: list[tuple[int, str, int]], command: str, words: str
) -> None:
    """Exit code 3, and a last line that says which topic or group is out of reach."""
    prefix, user = laid_out(secured, rights)
    configured(project, {"url": secured.at("sasl"), "token": token(user)}, prefix=prefix)

    done = project.platform(*({"send": ["send", "quick", '{"n": 1}'], "work": ["work"]}[command]))

    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (3, "")
    assert last.startswith("platform: ")
    assert words.format(prefix) in last
    assert "Traceback" not in done.stderr
    if command == "send":
        assert done.stderr.count("\n") == 1


def laid_out(secured: SecuredKafka, rights: list[tuple[int, str, int]]) -> tuple[str, str]:
    """The prefix of topics that exist, and a user who has *rights* there."""
    prefix, user = f"r{uuid.uuid4().hex[:8]}-", f"user-{uuid.uuid4().hex[:8]}"
    secured.topics(*(f"{prefix}{name}" for name in ("quick", "quick.dead", "handrail.delay.2s")))
    secured.grant(user, named(rights, prefix))
    return prefix, user


def test_who_only_sends_needs_one_right(secured: SecuredKafka, project: Project) -> None:
    """Write on the queue's topic is enough to send to it."""
    prefix, user = laid_out(secured, [(TOPIC, "quick", WRITE)])
    configured(project, {"url": secured.at("sasl"), "token": token(user)}, prefix=prefix)

    project.send("quick", {"n": 1})


def test_topics_that_may_not_be_created_are_named(secured: SecuredKafka, project: Project) -> None:
    """Without Create a worker whose topics are missing ends at the start and names one."""
    prefix, user = f"r{uuid.uuid4().hex[:8]}-", f"user-{uuid.uuid4().hex[:8]}"
    secured.grant(user, named([*ALL_TOPICS, (GROUP, "*", READ)], prefix))
    configured(project, {"url": secured.at("sasl"), "token": token(user)}, prefix=prefix)

    done = project.platform("work")

    [line] = done.stderr.splitlines()
    assert done.returncode == 3
    assert f"no access to topic '{prefix}" in line
    assert "Create" in line
    secured.grant(user, named([(TOPIC, "*", CREATE)], prefix))
    worker = project.worker("work")
    project.send("quick", {"n": 1})
    project.until("end", 1)
    assert worker.stop() == 0


def test_a_token_that_ends_while_messages_flow_is_replaced(secured: SecuredKafka, project: Project) -> None:
    """The server ends connections with their tokens; with new ones all goes on: nothing is lost, and nothing repeated."""
    command = f"echo m >> {project.logs}/minted; {minted('all-rights', 10.0)}"
    broker = {"url": secured.at("sasl"), "token_command": command, "session_timeout": "30s"}
    configured(project, broker, prefix=f"o{uuid.uuid4().hex[:8]}-")
    worker = project.worker("work")

    # longer than one of them lives
    confirmed = project.sender("quick", range(50), pace=0.25).finish()

    project.until("end", *range(50))
    assert confirmed == set(range(50))
    assert set(project.counts("start").values()) == {1}
    assert (project.logs / "minted").read_text().count("m") > 2  # the worker's first, the sender's first, and more
    assert worker.stop() == 0


def test_no_command_shows_a_secret(secured: SecuredKafka, project: Project) -> None:
    """A worker that tells all it can, and the commands that look: no password and no passphrase is printed."""
    looks = {"SCRAM-SHA-512, by the mapping": ("queues", "check"), "a client certificate": ("queues",)}
    for way, commands in looks.items():
        configured(project, WAYS[way](secured), prefix=f"s{uuid.uuid4().hex[:8]}-")
        worker = project.start("work", "--log-level", "debug").until_ready()
        project.send("quick", {"n": 1})
        said = [project.platform(command) for command in commands]
        assert worker.stop() == 0

        assert {one.returncode for one in said} == {0}
        everything = worker.output() + "".join(one.stdout + one.stderr for one in said)
        assert "kafka://" in everything
        assert PASSWORD not in everything
        assert PASSPHRASE not in everything
