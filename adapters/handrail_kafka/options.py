"""Where the cluster is and how to speak to it: the URL and the broker's mapping, checked. It speaks to nobody."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from handrail.adapter import BrokerSettings, masked
from handrail.errors import BrokerError
from handrail_kafka.identity import PEM, Token, Trust

LostPosition = Literal["stop", "earliest", "latest"]

_MECHANISMS = {
    "plain": "PLAIN",
    "scram-sha-256": "SCRAM-SHA-256",
    "scram-sha-512": "SCRAM-SHA-512",
    "oauthbearer": "OAUTHBEARER",
}
_LOST = ("stop", "earliest", "latest")
#: Keys of a queue's mapping in queues.yaml that are Kafka's.
QUEUE_KEYS = ("partitions", "replication", "on_lost_position")


class Options(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """How to speak to a cluster. Durations are seconds."""

    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    #: None: no authentication.
    mechanism: str | None = None
    #: For OAUTHBEARER: the token itself, or a command that prints a fresh one.
    token: str | None = None
    token_command: str | None = None
    tls: bool = False
    #: Paths of PEM files, or PEM text itself.
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: str | None = None
    #: Whether the server's certificate must bear the name it was reached by.
    check_hostname: bool = True
    #: Partitions of topics that are created for queues: as many workers can share a queue.
    partitions: int = 4
    #: Copies of topics that are created; None is 3, or as many as there are servers.
    replication: int | None = None
    compression: str | None = None
    #: Seconds without a sign of life after which a worker's messages go to others.
    session_timeout: float = 10.0
    #: Seconds that handlers get to finish when partitions move to another worker.
    revoke_wait: float = 30.0
    #: What to do when the group's position in a topic is gone.
    on_lost_position: LostPosition = "stop"
    #: Whether space of finished messages is given back, in topics that handrail made and no other group reads.
    reclaim: bool = True

    def client(self) -> dict[str, Any]:
        """Arguments that every client of aiokafka takes. Raises :class:`SetupError` when certificates cannot be used."""
        found: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT"),
            "metadata_max_age_ms": 60_000,
        }
        if self.tls:
            found["ssl_context"] = self._trust.context()
        if self.mechanism:
            found["sasl_mechanism"] = self.mechanism
            if self.mechanism == "OAUTHBEARER":
                found["sasl_oauth_token_provider"] = self._token
            else:
                found["sasl_plain_username"] = self.user
                found["sasl_plain_password"] = self.password
        return found

    @functools.cached_property
    def _trust(self) -> Trust:
        return Trust(self.ca, self.cert, self.key, self.key_password, check_hostname=self.check_hostname)

    @functools.cached_property
    def _token(self) -> Token:
        return Token(self.token, self.token_command)

    def __repr__(self) -> str:
        return f"Options({', '.join(self.servers)})"  # no secret may stand in a traceback


_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NAMES = {"sasl": "mechanism", "username": "user"}
_KNOWN = {
    "servers",
    "sasl",
    "username",
    "password",
    "token",
    "token_command",
    "tls",
    "ca",
    "cert",
    "key",
    "key_password",
    "check_hostname",
    "partitions",
    "replication",
    "compression",
    "session_timeout",
    "revoke_wait",
    "on_lost_position",
    "reclaim",
}
#: Options that are texts, secrets most of them: what YAML takes for a number is the text that was written.
_TEXTS = ("user", "password", "token", "token_command", "ca", "cert", "key", "key_password")
#: What other clients call our options.
_ELSEWHERE = {
    "bootstrap_servers": "servers",
    "brokers": "servers",
    "mechanism": "sasl",
    "sasl_mechanism": "sasl",
    "passphrase": "key_password",
    "ssl": "tls",
    "user": "username",
}
_FORM = "write kafka://host:9092 or kafka://a:9092,b:9092"


def parse(settings: BrokerSettings) -> Options:
    """The options of *settings*; raises :class:`BrokerError` for what cannot work."""

    def wrong(text: str) -> BrokerError:
        return BrokerError(f"broker {settings.name!r}: {text}")

    values, hosts, query = _split(settings, wrong)
    # + stands for itself: it is frequent in secrets
    given: dict[str, Any] = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)) | dict(settings.options)
    for name, value in given.items():
        if name not in _KNOWN:
            near = _ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, _KNOWN, 1)), None)
            hint = f"did you mean {near!r}?" if near else f"use one of {', '.join(sorted(_KNOWN))}"
            raise wrong(f"a Kafka broker has no option {name!r}; {hint}")
        values[_NAMES.get(name, name)] = value
    more = values.get("servers") or []
    if isinstance(more, str):
        more = more.split(",")
    if not isinstance(more, list) or not all(isinstance(host, str) for host in more):
        raise wrong("servers: must be a list like [a:9092, b:9092]")
    servers = [_server(host.strip(), wrong) for host in (*hosts.split(","), *more) if host.strip()]
    if not servers:
        raise wrong(f"{masked(settings.url)!r} names no server; {_FORM}")
    values["servers"] = tuple(dict.fromkeys(servers))
    _check(values, settings, wrong)
    return Options(**values)


def _split(settings: BrokerSettings, wrong: Any) -> tuple[dict[str, Any], str, str]:
    """Credentials, hosts and query of the URL. With several hosts and ports it is none that urlsplit takes apart."""
    shown = masked(settings.url)
    _scheme, _, rest = settings.url.partition("://")
    authority, _, query = rest.partition("?")
    if "@" in query and "@" not in authority and ":" in authority and not authority.rpartition(":")[2].isdecimal():
        # what follows is shown to nobody: it may be the rest of a password
        raise wrong("a user or password with ?, @, / or : in it must be percent-encoded in the URL, ? as %3F")
    credentials, at, hosts = authority.rstrip("/").rpartition("@")
    if "/" in hosts:
        raise wrong(f"{shown!r} has a path, which means nothing to Kafka; leave it away, or use prefix: for names")
    values: dict[str, Any] = {}
    if at:
        user, colon, password = credentials.partition(":")
        values["user"] = unquote(user)
        if colon:
            values["password"] = unquote(password)
    return values, hosts, query


def _server(host: str, wrong: Any) -> str:
    try:
        split = urlsplit(f"//{host}")
        port = split.port or 9092
        name = split.hostname or ""
        name.encode("idna")
    except ValueError:  # UnicodeError among them, for what can be no name
        name = ""
    if not name or len(host.split()) > 1:
        raise wrong(f"{host!r} is no server; write host:port")
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _check(values: dict[str, Any], settings: BrokerSettings, wrong: Any) -> None:
    for name in ("tls", "check_hostname", "reclaim"):
        if name in values and not isinstance(values[name], bool):
            flag = _FLAGS.get(str(values[name]).lower())
            if flag is None:
                raise wrong(f"{name}: {values[name]!r} is neither true nor false")
            values[name] = flag
    for name, low, high in (("partitions", 1, 10_000), ("replication", 1, 100)):
        if name in values:
            values[name] = _whole(values[name], name, low, high, wrong)
    for name in ("session_timeout", "revoke_wait"):
        if name in values:
            values[name] = _seconds(values[name], name, wrong)
    if not 6.0 <= values.get("session_timeout", 10.0) <= 300.0:
        raise wrong("session_timeout must lie between 6s and 5m, the bounds that servers have by default")
    if values.get("on_lost_position", "stop") not in _LOST:
        raise wrong(f"on_lost_position: {values['on_lost_position']!r} is none of {', '.join(_LOST)}")
    if values.get("compression") not in (None, "gzip"):
        raise wrong(f"compression: {values['compression']!r} is not to be had; use gzip, or none")
    for name in _TEXTS:
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise wrong(f"{_shown_name(name)}: must be text")  # without the value, which may be a secret
        if value is not None:
            values[name] = str(value)
    _check_user(values, wrong)
    _check_certificates(values, settings, wrong)


def _check_user(values: dict[str, Any], wrong: Any) -> None:
    if values.get("mechanism") is not None:
        name = str(values["mechanism"]).lower()
        if name not in _MECHANISMS:
            raise wrong(f"sasl: {values['mechanism']!r} is none of {', '.join(_MECHANISMS)}")
        values["mechanism"] = _MECHANISMS[name]
    elif values.get("token") or values.get("token_command"):
        values["mechanism"] = "OAUTHBEARER"
    elif values.get("user"):
        values["mechanism"] = "PLAIN"
    if values.get("mechanism") == "OAUTHBEARER":
        token = values.get("token")
        if not (token or values.get("token_command")):
            raise wrong("sasl: oauthbearer needs token: or token_command:")
        if token and values.get("token_command"):
            raise wrong("token and token_command exclude each other; remove one of them")
        if token and any(not " " < letter <= "~" for letter in token.strip()):
            raise wrong("token: holds what no token can, a blank or a line's end perhaps")
        values["token"] = token.strip() if token else None
    elif values.get("mechanism") and not (values.get("user") and values.get("password") is not None):
        raise wrong("sasl needs a user and a password: kafka://user:password@host:9092, or username: and password:")


def _check_certificates(values: dict[str, Any], settings: BrokerSettings, wrong: Any) -> None:
    for name in ("ca", "cert", "key"):
        given = values.get(name)
        if not given:
            values[name] = None
            continue
        if not values.setdefault("tls", True):
            raise wrong(f"{name}: is for TLS; remove it, or tls: false")
        text = given.strip().replace("\\n", "\n")  # a line's end is often written so in variables
        if text.startswith(PEM):
            values[name] = text + "\n"
            continue
        path = Path(settings.root, Path(given).expanduser())
        if not path.is_file():
            raise wrong(f"{name}: there is no file {path}")
        values[name] = str(path)
    if values["key"] and not values["cert"]:
        raise wrong("key without cert; give the client certificate too")


def _shown_name(name: str) -> str:
    return next((shown for shown, field in _NAMES.items() if field == name), name)


def _whole(value: Any, name: str, low: int, high: int, wrong: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise wrong(f"{name}: {value!r} is no whole number from {low} to {high}")
    return number


def _seconds(value: Any, name: str, wrong: Any) -> float:
    from handrail.duration import seconds  # noqa: PLC0415 - only where a duration is given

    try:
        return float(seconds(value))
    except (TypeError, ValueError) as error:
        raise wrong(f"{name}: {error}") from None


class TopicOptions(msgspec.Struct, frozen=True):
    """What one queue's topics shall be."""

    partitions: int
    replication: int | None
    on_lost_position: LostPosition


def of_queue(options: Options, queue: str, given: Mapping[str, Any]) -> TopicOptions:
    """The options of one queue; raises :class:`BrokerError` for one that Kafka does not have."""

    def wrong(text: str) -> BrokerError:
        return BrokerError(f"queue {queue!r}: {text}")

    for name in given:
        if name not in QUEUE_KEYS:
            raise wrong(f"a queue on Kafka has no option {name!r}; use one of {', '.join(QUEUE_KEYS)}")
    lost = given.get("on_lost_position", options.on_lost_position)
    if lost not in _LOST:
        raise wrong(f"on_lost_position: {lost!r} is none of {', '.join(_LOST)}")
    replication = given.get("replication", options.replication)
    return TopicOptions(
        _whole(given.get("partitions", options.partitions), "partitions", 1, 10_000, wrong),
        None if replication is None else _whole(replication, "replication", 1, 100, wrong),
        lost,
    )
