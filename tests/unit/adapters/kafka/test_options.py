"""The URL and the broker's mapping: what they mean, and what is refused in words."""

from __future__ import annotations

import pytest

from handrail.adapter import BrokerSettings
from handrail.errors import BrokerError
from handrail_kafka import KafkaAdapter
from handrail_kafka.options import of_queue, parse


def settings(url: str, **options: object) -> BrokerSettings:
    return BrokerSettings(name="default", url=url, root="/nowhere", options=options)


def test_several_servers_and_default_ports() -> None:
    """Servers are separated by commas; 9092 goes without saying."""
    assert parse(settings("kafka://a,b:9093,[::1]:7")).servers == ("a:9092", "b:9093", "[::1]:7")


def test_a_user_means_sasl_and_the_password_is_never_shown() -> None:
    """`user:password@` is PLAIN unless the mechanism is given; `place` masks the password."""
    adapter = KafkaAdapter(settings("kafka://me:s%40crt@a:9092?sasl=scram-sha-512"))

    assert adapter._options.password == "s@crt"
    assert adapter._options.mechanism == "SCRAM-SHA-512"
    assert "crt" not in adapter.place
    assert parse(settings("kafka://me:x@a")).mechanism == "PLAIN"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("kafka://", {}, "names no server"),
        ("kafka://a/path", {}, "path"),
        ("kafka://a:port", {}, "host:port"),
        ("kafka://a", {"partitons": 3}, "partitions"),
        ("kafka://a", {"partitions": 0}, "partitions"),
        ("kafka://a", {"session_timeout": "1s"}, "session_timeout"),
        ("kafka://a", {"on_lost_position": "guess"}, "on_lost_position"),
        ("kafka://a?sasl=magic", {}, "sasl"),
        ("kafka://a?sasl=plain", {}, "user and a password"),
        ("kafka://a?sasl=oauthbearer", {}, "token"),
        ("kafka://a", {"ca": "missing.pem"}, "missing.pem"),
        ("kafka://a?tls=false", {"ca": "-----BEGIN CERTIFICATE-----"}, "ca: is for TLS"),
        ("kafka://a", {"key": "-----BEGIN PRIVATE KEY-----"}, "key without cert"),
        ("kafka://a", {"passphrase": "s3cret"}, "did you mean 'key_password'"),
        ("kafka://a", {"brokers": ["a"]}, "did you mean 'servers'"),
        ("kafka://", {"servers": {"a": 1}}, "servers: must be a list"),
        ("kafka://a", {"username": "me", "password": ["s3cret"]}, "password: must be text"),
        ("kafka://a", {"token": "s3cret\nand more"}, "token: holds what no token can"),
        ("kafka://a", {"token": "s3cret", "token_command": "cat it"}, "exclude each other"),
        ("kafka://me:s3cret?more@a", {}, "percent-encoded"),
        ("kafka://me:s3cret/more:s3cret?s3cret@a:1", {}, "percent-encoded"),
        ("kafka://a..b", {}, "host:port"),
        ("kafka://a?tls=maybe", {}, "tls"),
    ],
)
def test_what_cannot_work_is_refused_in_words(url: str, options: dict[str, object], words: str) -> None:
    """A wrong option is refused before anything is connected, in one line that names it."""
    with pytest.raises(BrokerError, match=words) as refused:
        parse(settings(url, **options))
    assert "\n" not in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_the_mapping_takes_all_that_the_url_does() -> None:
    """Servers, user and certificates may stand beside the URL; `place` names the servers, and no secret."""
    options = {
        "servers": ["a:9093", "b"],
        "sasl": "scram-sha-256",
        "username": "me",
        "password": 12345,  # what YAML makes of digits
        "ca": "-----BEGIN CERTIFICATE-----\\nabc\\n-----END CERTIFICATE-----",
    }
    adapter = KafkaAdapter(settings("kafka://", **options))
    found = adapter._options

    assert found.servers == ("a:9093", "b:9092")
    assert (found.user, found.password, found.mechanism, found.tls) == ("me", "12345", "SCRAM-SHA-256", True)
    assert found.ca == "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"
    assert adapter.place == "kafka://a:9093,b:9092"
    assert "12345" not in repr(found)


def test_secrets_in_the_url_are_taken_as_they_are_written() -> None:
    """A plus is a plus, a percent escape what it stands for, and all of it is masked."""
    adapter = KafkaAdapter(settings("kafka://m%40e:a+b%3Fc@a?key_password=p+q%26r"))

    assert (adapter._options.user, adapter._options.password) == ("m@e", "a+b?c")
    assert adapter._options.key_password == "p+q&r"
    assert adapter.place == "kafka://m%40e:***@a?key_password=***"


def test_a_queue_may_have_partitions_of_its_own() -> None:
    """`partitions:` of a queue goes before the broker's; a key that Kafka does not have is refused."""
    options = parse(settings("kafka://a", partitions=3))

    assert of_queue(options, "q", {"partitions": 12}).partitions == 12
    assert of_queue(options, "q", {}).partitions == 3
    with pytest.raises(BrokerError, match="queue_type"):
        of_queue(options, "q", {"queue_type": "quorum"})
