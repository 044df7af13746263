"""Where the cluster is and how to speak to it: the URL and the broker's mapping, checked. It speaks to nobody."""

from __future__ import annotations

import asyncio
import difflib
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from aiokafka.abc import AbstractTokenProvider

from handrail.adapter import BrokerSettings, masked
from handrail.errors import BrokerError

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


class Options(msgspec.Struct, frozen=True, kw_only=True):
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
    #: Paths to PEM files.
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
        """Arguments that every client of aiokafka takes."""
        found: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT"),
            "metadata_max_age_ms": 60_000,
        }
        if found["security_protocol"] == "SASL_PLAINTEXT" or found["security_protocol"] == "PLAINTEXT":
            pass
        else:
            found["ssl_context"] = self._context()
        if self.mechanism:
            found["sasl_mechanism"] = self.mechanism
            if self.mechanism == "OAUTHBEARER":
                found["sasl_oauth_token_provider"] = _Token(self)
            else:
                found["sasl_plain_username"] = self.user
                found["sasl_plain_password"] = self.password
        return found

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = self.check_hostname
        if self.cert:
            context.load_cert_chain(self.cert, self.key, self.key_password)
        return context


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    def __init__(self, options: Options) -> None:
        self._options = options

    async def token(self) -> str:
        if self._options.token is not None:
            return self._options.token
        command = self._options.token_command
        assert command is not None
        done = await asyncio.to_thread(  # noqa: S604 - a command line is what the user wrote
            subprocess.run, command, shell=True, capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode or not done.stdout.strip():
            raise ValueError(f"token_command gave no token (exit code {done.returncode})")
        return done.stdout.strip()


_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NAMES = {"sasl": "mechanism", "password": "password", "username": "user"}
_KNOWN = {
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


def parse(settings: BrokerSettings) -> Options:
    """The options of *settings*; raises :class:`BrokerError` for what cannot work."""

    def wrong(text: str) -> BrokerError:
        return BrokerError(f"broker {settings.name!r}: {text}")

    shown = masked(settings.url)
    # several hosts, and ports of each: nothing that urlsplit takes for one authority
    _scheme, _, rest = settings.url.partition("://")
    if not rest:
        raise wrong(f"{shown!r} names no server; write kafka://host:9092 or kafka://a:9092,b:9092")
    authority, _, query = rest.partition("?")
    authority = authority.rstrip("/")
    credentials, at, hosts = authority.rpartition("@")
    if "/" in hosts:
        raise wrong(f"{shown!r} has a path, which means nothing to Kafka; leave it away, or use prefix: for names")
    values: dict[str, Any] = {}
    if at:
        user, colon, password = credentials.partition(":")
        values["user"] = unquote(user)
        if colon:
            values["password"] = unquote(password)
    given: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True)) | dict(settings.options)
    for name, value in given.items():
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(_KNOWN))}"
            raise wrong(f"a Kafka broker has no option {name!r}; {hint}")
        values[_NAMES.get(name, name)] = value
    servers = []
    for host in filter(None, (part.strip() for part in hosts.split(","))):
        split = urlsplit(f"//{host}")
        try:
            port = split.port or 9092
        except ValueError:
            raise wrong(f"{host!r} is no server; write host:port") from None
        if not split.hostname:
            raise wrong(f"{host!r} is no server; write host:port")
        name = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
        servers.append(f"{name}:{port}")
    if not servers:
        raise wrong(f"{shown!r} names no server; write kafka://host:9092 or kafka://a:9092,b:9092")
    values["servers"] = tuple(servers)
    _check(values, settings, wrong)
    return Options(**values)


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
    if "mechanism" in values:
        name = str(values["mechanism"]).lower()
        if name not in _MECHANISMS:
            raise wrong(f"sasl: {values['mechanism']!r} is none of {', '.join(_MECHANISMS)}")
        values["mechanism"] = _MECHANISMS[name]
    elif values.get("token") or values.get("token_command"):
        values["mechanism"] = "OAUTHBEARER"
    elif values.get("user"):
        values["mechanism"] = "PLAIN"
    if values.get("mechanism") == "OAUTHBEARER":
        if not (values.get("token") or values.get("token_command")):
            raise wrong("sasl: oauthbearer needs token: or token_command:")
    elif values.get("mechanism") and not (values.get("user") and "password" in values):
        raise wrong("sasl needs a user and a password: kafka://user:password@host:9092, or username: and password:")
    for name in ("ca", "cert", "key"):
        if values.get(name):
            values.setdefault("tls", True)
            path = Path(settings.root, str(values[name])).expanduser()
            if not path.is_file():
                raise wrong(f"{name}: there is no file {path}")
            values[name] = str(path)
    if values.get("cert") and values.get("tls"):
        values.setdefault("key", None)


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
