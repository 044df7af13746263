"""What a RabbitMQ URL may say, and what is said about one that cannot work."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail import config
from handrail.adapter import BrokerSettings, QueueSpec, load
from handrail.errors import BrokerError
from handrail.message import Message, new_id
from handrail_rabbitmq.place import Place, parse


def place(url: str, **options: Any) -> Place:
    return parse(BrokerSettings(name="default", url=url, root="/project", options=options))


def test_what_is_left_out_is_the_servers_default() -> None:
    """amqp://host is user guest on port 5672, virtual host /; amqps:// is port 5671."""
    plain, tls = place("amqp://host"), place("amqps://host/")

    assert (plain.hosts, plain.vhost, plain.user, plain.password) == ((("host", 5672),), "/", "guest", "guest")
    assert (tls.hosts, tls.tls, tls.vhost) == ((("host", 5671),), True, "/")


@pytest.mark.parametrize(
    ("url", "user", "password", "vhost"),
    [
        ("amqp://us%40er:p%40%2Fss%3A@h/v%2Fh", "us@er", "p@/ss:", "v/h"),
        ("amqp://user:p@ss/w:rd@h:5673/shop", "user", "p@ss/w:rd", "shop"),
        ("amqp://user:@h", "user", "", "/"),
    ],
)
def test_credentials_may_hold_anything(url: str, user: str, password: str, vhost: str) -> None:
    """Special characters are percent-encoded; a password that nobody escaped still works."""
    found = place(url)

    assert (found.user, found.password, found.vhost, found.hosts[0][0]) == (user, password, vhost, "h")


def test_a_url_may_name_the_nodes_of_a_cluster() -> None:
    """Hosts stand between commas, each with a port of its own or the usual one; the rest is said once, and masked as ever."""
    found = place("amqp://user:p,ss@one,[::1]:5673,three:5674/shop")

    assert found.hosts == (("one", 5672), ("::1", 5673), ("three", 5674))
    assert (found.password, found.vhost, found.shown) == (
        "p,ss",
        "shop",
        "amqp://user:***@one,[::1]:5673,three:5674/shop",
    )


@pytest.mark.parametrize("text", ["p%40ss", "a@b/c:d#e?f g", "Grüße", "100%", "'\"{}$&\\"])
def test_beside_the_url_nothing_is_encoded(text: str) -> None:
    """`username:`, `password:` and `vhost:` of the mapping are taken as they are."""
    found = place("amqp://h:5673", username=text, password=text, vhost=text)

    assert (found.user, found.password, found.vhost) == (text, text, text)
    assert found.hosts == (("h", 5673),)


def test_what_stands_beside_the_url_completes_it() -> None:
    """The user may stand in the URL and the password beside it; what people see names both, the secret masked."""
    found = place("amqp://app@h/shop", password="s3cr@t")

    assert (found.user, found.password, found.vhost) == ("app", "s3cr@t", "shop")
    assert place("amqp://h", username="a@b", password="s3cret", vhost="v/h").shown == "amqp://a%40b:***@h/v%2Fh"


def test_secrets_come_from_files_and_variables_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${file:…}` gives a password without its last line break; one that looks like a number stays the text it is."""
    monkeypatch.setenv("RABBIT_USER", "0815")
    (tmp_path / "secret").write_text("p%40:/#? ä\n")
    (tmp_path / "queues.yaml").write_text(
        "broker:\n  url: amqp://h\n  username: ${RABBIT_USER}\n  password: ${file:secret}\n  vhost: ${RABBIT_USER}\n"
        "queues: {a: {}}\n"
    )

    found = parse(config.load(tmp_path / "queues.yaml").brokers["default"])

    assert (found.user, found.password, found.vhost) == ("0815", "p%40:/#? ä", "0815")


def test_no_representation_shows_a_secret() -> None:
    """What ends up in somebody's log or traceback by `repr` names neither the password nor what any option holds."""
    settings = BrokerSettings(
        name="default", url="amqp://app:geheim@h", root="/project", options={"key_password": "geheim"}
    )
    beside = BrokerSettings(name="default", url="amqp://h", root="/project", options={"password": "geheim"})

    shown = f"{settings!r} {beside!r} {parse(beside)!r} {parse(beside).parameters()!r}"

    assert "geheim" not in shown
    assert "amqp://app:***@h" in shown


@given(st.text(min_size=1, alphabet=st.characters(codec="utf-8", exclude_characters="*", exclude_categories=["Cs"])))
def test_no_password_is_shown(password: str) -> None:
    """Whatever the password holds, nothing of it stands in what people see."""
    secret = f"geheim{password}geheim"

    shown = place(f"amqp://user:{secret.replace('%', '%25')}@h/v").shown

    assert "geheim" not in shown


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("amqp://h?vhots=1", {}, "unknown option 'vhots'"),
        ("amqp://h:port/", {}, "'port' is no port"),
        ("amqp://h,i:port/", {}, "'port' is no port"),
        ("amqp://h,,i/", {}, "no host between two commas"),
        ("amqp://h,/", {}, "no host between two commas, or beside one"),
        ("amqp://h", {"queue_type": "stream"}, "queue_type must be 'quorum' or 'classic'"),
        ("amqp://h", {"declare": "always"}, "declare must be"),
        ("amqp://h", {"heartbeat": "soon"}, "heartbeat must be a number"),
        ("amqp://h?ca=x.pem", {}, "write amqps://"),
        ("amqps://h?key=x.pem", {}, "key without cert"),
        ("amqp://h", {"key_password": "geheim"}, "key_password is for TLS"),
        ("amqp://h?password=geheim", {}, "password is no option of the URL's query; use amqp://user:password@host"),
        ("amqp://u:geheim@h", {"password": "geheim"}, "password stands in the URL and beside it"),
        ("amqp://u@h", {"username": "u"}, "username stands in the URL and beside it"),
        ("amqp://h/shop", {"vhost": "shop"}, "vhost stands in the URL and beside it"),
        ("amqp://h", {"password": 815}, "password must be text; put it in quotes"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(url: str, options: dict[str, Any], text: str) -> None:
    """A wrong option is refused without any connection, in one line that names it."""
    with pytest.raises(BrokerError, match=text) as caught:
        place(url, **options)

    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_the_type_of_a_queue_comes_from_its_own_key_then_the_broker(tmp_path: Path) -> None:
    """`queue_type` of a queue reaches the adapter with that queue; the broker's is for the others."""
    (tmp_path / "queues.yaml").write_text(
        "broker: {url: 'amqp://h', queue_type: classic}\nqueues: {a: {attempts: 2}, b: {queue_type: quorum}}\n"
    )

    found = config.load(tmp_path / "queues.yaml")

    assert found.queues["b"].spec.options == {"queue_type": "quorum"}
    assert found.queues["a"].spec.options == {}
    assert parse(found.brokers["default"]).queue_type == "classic"


def test_certificates_lie_in_the_project() -> None:
    """Relative paths of certificates count from the project's folder."""
    found = place("amqps://h?ca=tls/ca.pem&cert=c.pem&key=k.pem&server_name=rabbit")

    assert (found.ca, found.cert, found.key) == (
        Path("/project/tls/ca.pem"),
        Path("/project/c.pem"),
        Path("/project/k.pem"),
    )
    assert found.server_name == "rabbit"


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The error names the option and the file, whether it is missing or no certificate."""
    (tmp_path / "ca.pem").write_text("no certificate")

    with pytest.raises(BrokerError, match=r"ca: there is no file /project/tls/ca\.pem"):
        place("amqps://h?ca=tls/ca.pem").parameters()
    with pytest.raises(BrokerError, match=r"cannot use the certificates .*/ca\.pem: "):
        place(f"amqps://h?ca={tmp_path}/ca.pem").parameters()


async def refusal(url: str) -> str:
    adapter = load(BrokerSettings(name="default", url=url, root="/project"))
    with pytest.raises(BrokerError) as caught:
        await adapter.open("client")
    await adapter.close()
    return str(caught.value)


async def test_a_wrong_password_and_an_unknown_vhost_are_said_at_once(server: Any) -> None:
    """What waiting does not mend is one line with the password masked, and no attempt goes on."""
    url = server.up()

    wrong = await refusal(url.replace("guest:guest", "guest:s3cret"))
    unknown = await refusal(url + "nowhere")

    assert "refused user 'guest' or its password" in wrong
    assert "s3cret" not in wrong
    assert "there is no virtual host 'nowhere'" in unknown


async def test_a_refused_port_is_tried_again_and_told(server: Any) -> None:
    """Nobody listens: opening goes on in the background, looking says why, sending fails within its time."""
    adapter = load(BrokerSettings(name="default", url="amqp://guest:s3cret@127.0.0.1:1", root="/project"))
    await adapter.open("client")
    try:
        assert not adapter.health().up
        assert "nothing listens on 127.0.0.1:1" in adapter.health().detail
        assert "s3cret" not in adapter.health().detail
        async with asyncio.timeout(20):
            with pytest.raises(BrokerError, match="nothing listens"):
                await adapter.depth("work")
    finally:
        await adapter.close()


async def test_another_node_is_asked_where_one_does_not_answer(server: Any) -> None:
    """With a node away the others serve, at the start as after a connection that broke, whichever was to be asked first."""
    url = server.up().replace("127.0.0.1", "127.0.0.1:1,127.0.0.1")
    adapter = load(BrokerSettings(name="default", url=url, root="/project", prefix=f"t{uuid.uuid4().hex[:8]}-"))
    await adapter.open("client")
    try:
        await adapter.declare([QueueSpec(name="work")])
        for round_ in range(3):
            message = Message(queue="work", id=new_id(), body=b"%d" % round_)
            assert await adapter.publish([message], 20.0) == {}
            epoch = adapter._publish_link.epoch  # type: ignore[attr-defined]
            await asyncio.to_thread(server.ctl, "close_all_connections", "test")
            async with asyncio.timeout(30):
                while adapter._publish_link.epoch == epoch:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.01)
        assert (await adapter.depth("work")).ready == 3
    finally:
        await adapter.close()


async def test_where_no_node_answers_all_are_named() -> None:
    """The reason of each is told, in one line."""
    url = "amqp://guest:s3cret@127.0.0.1:1,127.0.0.1:2"
    adapter = load(BrokerSettings(name="default", url=url, root="/project"))
    await adapter.open("client")
    try:
        detail = adapter.health().detail
        assert "nothing listens on 127.0.0.1:1;" in detail
        assert "nothing listens on 127.0.0.1:2;" in detail
        assert "s3cret" not in detail
    finally:
        await adapter.close()


async def test_a_queue_with_other_arguments_is_one_line_with_both_values(server: Any, bench: Any) -> None:
    """An existing queue of another kind is named with the argument, what it is and what was asked; nothing is changed."""
    await bench.open(spec=QueueSpec(name="work", options={"queue_type": "classic"}))
    try:
        with pytest.raises(BrokerError) as caught:
            await bench.open(spec=QueueSpec(name="work"))

        text = str(caught.value)
        assert "exists with x-queue-type 'classic', but handrail asks for 'quorum'" in text
        assert "\n" not in text
    finally:
        await bench.close()
