"""TLS on a real server that demands a certificate of its clients, and one clear line for each way in which it fails."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, messages, until

from certificates import PASSPHRASE, TLSRabbitMQ
from handrail.adapter import BrokerSettings, load
from handrail.errors import BrokerError


@pytest.mark.parametrize("way", ["beside the URL", "in the URL", "by a name of the certificate", "encrypted key"])
async def test_messages_go_both_ways(tls_rabbitmq: TLSRabbitMQ, tmp_path: Path, way: str) -> None:
    """With the authority, a client certificate and the server's name messages are sent and taken, on both connections."""
    url, options = tls_rabbitmq.tls_url, tls_rabbitmq.good
    if way == "in the URL":
        url += "?" + "&".join(f"{name}={value}" for name, value in options.items())
        options = {}
    elif way == "by a name of the certificate":
        url = url.replace("127.0.0.1", "localhost")
        del options["server_name"]
    elif way == "encrypted key":
        options |= {"key": tls_rabbitmq.file("encrypted.key"), "key_password": PASSPHRASE}
    bench = Bench(url, tmp_path)
    try:
        worker = await bench.open(**options)
        inbox = await Inbox(worker).begin(bench.queue, ack=True)

        assert await worker.publish(messages(3), 10.0) == {}

        await until(lambda: len(inbox.handled) == 3, "all")
        assert worker.health().up
    finally:
        await bench.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ca": "stranger-ca.pem"}, r"the server's certificate is not trusted: .*; give its authority by ca="),
        ({"ca": None}, r"the server's certificate is not trusted: .*; give its authority by ca="),
        ({"server_name": None}, r"the server's certificate is not for 127\.0\.0\.1:\d+: .*; give server_name="),
        ({"server_name": "other"}, r"the server's certificate is not for 127\.0\.0\.1:\d+: .*; give server_name="),
        ({"cert": None, "key": None}, r"refuses clients without a certificate; give one by cert= and key="),
        ({"cert": "stranger.pem", "key": "stranger.key"}, r"does not accept the client's certificate .*: unknown ca"),
        ({"key": "encrypted.key"}, r"the key .*encrypted\.key is encrypted; give key_password:"),
        ({"key": "encrypted.key", "key_password": "geheim"}, r"cannot use the certificates .*encrypted\.key: "),
        ({"key": "stranger.key"}, r"cannot use the certificates .*stranger\.key: key values mismatch"),
        ({"key": "absent.key"}, r"key: there is no file .*absent\.key"),
    ],
)
async def test_each_refusal_is_one_line_that_says_what_to_give(
    tls_rabbitmq: TLSRabbitMQ, change: dict[str, str | None], text: str
) -> None:
    """What the certificates do not allow ends the start at once, in one line with the option that mends it."""
    options: dict[str, Any] = dict(tls_rabbitmq.good)
    for name, value in change.items():
        file = name in ("ca", "cert", "key") and value is not None
        options[name] = tls_rabbitmq.file(str(value)) if file else value

    said = await refusal(tls_rabbitmq.tls_url, {name: value for name, value in options.items() if value is not None})

    assert_one_line(said, text)


async def test_tls_and_plain_ports_are_told_apart(tls_rabbitmq: TLSRabbitMQ) -> None:
    """amqp:// to a port for TLS, and amqps:// to one without, are refused with the scheme to write."""
    plain, tls = tls_rabbitmq.url, tls_rabbitmq.tls_url

    assert_one_line(await refusal(tls.replace("amqps:", "amqp:"), {}), r"does not speak AMQP .*amqps://\?")
    assert_one_line(await refusal(plain.replace("amqp:", "amqps:"), {}), r"does not speak TLS; .* write amqp://")


async def refusal(url: str, options: dict[str, Any]) -> str:
    adapter = load(BrokerSettings(name="default", url=url, root="/project", options=options))
    try:
        with pytest.raises(BrokerError) as caught:
            await adapter.open("client")
    finally:
        await adapter.close()
    return str(caught.value)


def assert_one_line(said: str, text: str) -> None:
    assert re.search(text, said), said
    assert "\n" not in said
    assert "guest:guest" not in said
    assert "geheim" not in said
