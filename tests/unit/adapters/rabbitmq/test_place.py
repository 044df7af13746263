"""What a RabbitMQ URL may say, and what is said about one that cannot work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail import config
from handrail.adapter import BrokerSettings, QueueSpec, load
from handrail.errors import BrokerError
from handrail_rabbitmq.place import Place, parse


def place(url: str, **options: Any) -> Place:
    return parse(BrokerSettings(name="default", url=url, root="/project", options=options))


def test_what_is_left_out_is_the_servers_default() -> None:
    """amqp://host is user guest on port 5672, virtual host /; amqps:// is port 5671."""
    plain, tls = place("amqp://host"), place("amqps://host/")

    assert (plain.host, plain.port, plain.vhost, plain.user, plain.password) == ("host", 5672, "/", "guest", "guest")
    assert (tls.port, tls.tls, tls.vhost) == (5671, True, "/")


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

    assert (found.user, found.password, found.vhost, found.host) == (user, password, vhost, "h")


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
        ("amqp://h", {"queue_type": "stream"}, "queue_type must be 'quorum' or 'classic'"),
        ("amqp://h", {"declare": "always"}, "declare must be"),
        ("amqp://h", {"heartbeat": "soon"}, "heartbeat must be a number"),
        ("amqp://h?ca=x.pem", {}, "write amqps://"),
        ("amqps://h?key=x.pem", {}, "key without cert"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(url: str, options: dict[str, Any], text: str) -> None:
    """A wrong option is refused without any connection, in one line that names it."""
    with pytest.raises(BrokerError, match=text) as caught:
        place(url, **options)

    assert "\n" not in str(caught.value)


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


def test_a_certificate_that_cannot_be_read_is_named() -> None:
    """The error names the file."""
    with pytest.raises(BrokerError, match=r"tls/ca\.pem"):
        place("amqps://h?ca=tls/ca.pem").parameters()


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
