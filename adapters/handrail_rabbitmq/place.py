"""Where a RabbitMQ server is and how to reach it, from URL and options. It does no I/O but reading certificates."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote

import msgspec
import pika

from handrail import duration
from handrail.adapter import BrokerSettings, masked
from handrail.errors import BrokerError

FORM = "use amqp://user:password@host:5672/vhost, with special characters percent-encoded"

#: What may stand in the URL's query, or beside ``url:`` in queues.yaml.
OPTIONS = (
    "ca",
    "cert",
    "key",
    "key_password",
    "server_name",
    "heartbeat",
    "queue_type",
    "declare",
    "connect_timeout",
    "consumer_timeout",
)
#: What may stand beside ``url:`` alone, as it is: the URL has a place of its own for each, percent-encoded.
LITERAL = ("username", "password", "vhost")
_TLS = ("ca", "cert", "key", "key_password", "server_name")
_TEXTS = (*LITERAL, "key_password", "server_name")

#: Seconds: a server's consumer timeout, unless somebody set another.
CONSUMER_TIMEOUT = 1800.0

Declare = Literal["missing", "never"]


class Place(msgspec.Struct, frozen=True):
    """A parsed broker URL."""

    #: As people may see it.
    shown: str
    #: Names and ports of the nodes, at least one.
    hosts: tuple[tuple[str, int], ...]
    vhost: str
    user: str
    password: str
    tls: bool
    ca: Path | None
    cert: Path | None
    key: Path | None
    key_password: str | None
    server_name: str | None
    #: Seconds between heartbeats, as we ask for them.
    heartbeat: int
    #: Seconds for one try to connect.
    connect_timeout: float
    #: For queues that do not say: ``quorum`` or ``classic``.
    queue_type: str
    declare: Declare
    #: Seconds after which the server takes back what was not acknowledged; None: never. AMQP has no way to ask.
    consumer_timeout: float | None

    def __repr__(self) -> str:
        return f"<Place {self.shown}>"

    def parameters(self) -> list[pika.ConnectionParameters]:
        """What pika wants, for each of the hosts. Raises :class:`BrokerError` when a certificate cannot be read."""
        context = self._context() if self.tls else None
        return [self._parameters(host, port, context) for host, port in self.hosts]

    def _parameters(self, host: str, port: int, context: ssl.SSLContext | None) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=self.vhost,
            credentials=pika.PlainCredentials(self.user, self.password),
            ssl_options=pika.SSLOptions(context, self.server_name or host) if context else None,
            heartbeat=self.heartbeat,
            # a block ends when the alarm does; what waits meanwhile has timeouts of its own
            blocked_connection_timeout=None,
            connection_attempts=1,
            socket_timeout=self.connect_timeout,
            stack_timeout=self.connect_timeout,
            client_properties={"product": "handrail", "connection_name": "handrail"},
        )

    def _context(self) -> ssl.SSLContext:
        for name in ("ca", "cert", "key"):
            file: Path | None = getattr(self, name)
            if file is not None and not file.is_file():
                raise BrokerError(f"{self.shown}: {name}: there is no file {file}")
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.cert is not None:
                # without a function OpenSSL would ask for it on the terminal
                context.load_cert_chain(str(self.cert), str(self.key) if self.key else None, self._passphrase)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(file) for file in (self.ca, self.cert, self.key) if file)
            reason = getattr(error, "reason", None) or error.strerror or error
            why = str(reason).replace("_", " ").lower()
            raise BrokerError(f"{self.shown}: cannot use the certificates {files}: {why}") from error
        return context

    def _passphrase(self) -> str:
        if self.key_password is None:
            raise BrokerError(f"{self.shown}: the key {self.key or self.cert} is encrypted; give key_password:")
        return self.key_password


def parse(settings: BrokerSettings) -> Place:
    """The place that *settings* names. Raises :class:`BrokerError` for what cannot work; no I/O."""
    shown = masked(settings.url).partition("?")[0]
    where = f"broker {settings.name!r}: {shown}"
    scheme, _, rest = settings.url.partition("://")
    if scheme.lower() not in ("amqp", "amqps"):
        raise BrokerError(f"{where} is no URL of a RabbitMQ server; {FORM}")
    tls = scheme.lower() == "amqps"
    # the last @ ends the credentials, so that a password that nobody escaped still works
    credentials, at, location = rest.rpartition("@")
    location, _, query = location.partition("?")
    address, _, path = location.partition("/")
    hosts = tuple(_address(one, where, tls=tls) for one in address.split(","))
    if len(hosts) > 1 and "" in address.split(","):
        raise BrokerError(
            f"{where}: there is no host between two commas, or beside one; use amqp://…@one,two:5673/vhost"
        )
    user, colon, password = credentials.partition(":")
    options = _options(dict(parse_qsl(query, keep_blank_values=True)), settings.options, where)
    declare = options.get("declare", "missing")
    if declare not in ("missing", "never"):
        raise BrokerError(f"{where}: declare must be 'missing' or 'never', not {declare!r}")
    queue_type = options.get("queue_type", "quorum")
    if queue_type not in ("quorum", "classic"):
        raise BrokerError(f"{where}: queue_type must be 'quorum' or 'classic', not {queue_type!r}")
    if not tls and (wrong := [name for name in _TLS if name in options]):
        raise BrokerError(f"{where}: {wrong[0]} is for TLS; write amqps:// or remove it")
    if "key" in options and "cert" not in options:
        raise BrokerError(f"{where}: key without cert; give the client certificate too")
    for name, twice in (("username", at and user), ("password", colon), ("vhost", path)):
        if twice and name in options:
            raise BrokerError(f"{where}: {name} stands in the URL and beside it; remove one of them")
    user = options.get("username") or (unquote(user) if at and user else "guest")
    vhost = options.get("vhost") or unquote(path) or "/"
    if "username" in options or "vhost" in options:
        secret = ":***" if colon or "password" in options else ""
        shown = f"{scheme}://{quote(user, safe='')}{secret}@{address}/{quote(vhost, safe='') if vhost != '/' else ''}"
    return Place(
        shown=shown,
        hosts=hosts,
        vhost=vhost,
        user=user,
        password=options.get("password", unquote(password) if colon else "guest"),
        tls=tls,
        ca=_file(options, "ca", settings),
        cert=_file(options, "cert", settings),
        key=_file(options, "key", settings),
        key_password=options.get("key_password"),
        server_name=options.get("server_name") or None,
        heartbeat=int(_number(options, "heartbeat", 30, where)),
        connect_timeout=_number(options, "connect_timeout", 10, where),
        queue_type=queue_type,
        declare=declare,
        consumer_timeout=_consumer_timeout(options, where),
    )


def _options(query: dict[str, str], beside: dict[str, Any], where: str) -> dict[str, Any]:
    """The options of the URL's query and those beside it, which win. No value is shown: any may be a secret."""
    for name in query:
        if name in LITERAL:
            raise BrokerError(f"{where}: {name} is no option of the URL's query; {FORM}, or write {name}: beside url:")
    for name in (*query, *beside):
        if name not in OPTIONS and name not in LITERAL:
            raise BrokerError(f"{where}: unknown option {name!r}; there are {', '.join((*OPTIONS, *LITERAL))}")
    options = {**query, **{name: value for name, value in beside.items() if value is not None}}
    for name in _TEXTS:
        # YAML makes numbers of 0815 and 1e3, and nobody's password is true
        if name in options and not isinstance(options[name], str):
            raise BrokerError(f"{where}: {name} must be text; put it in quotes")
    return options


def _address(text: str, where: str, *, tls: bool) -> tuple[str, int]:
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        colon, port = port[:1], port[1:]
    elif ":" in text:
        host, colon, port = text.rpartition(":")
    if not colon:
        port = "5671" if tls else "5672"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BrokerError(f"{where}: {port!r} is no port; {FORM}")
    return unquote(host) or "localhost", int(port)


def _file(options: dict[str, Any], name: str, settings: BrokerSettings) -> Path | None:
    value = options.get(name)
    return Path(settings.root, str(value)) if value else None


def _number(options: dict[str, Any], name: str, default: float, where: str) -> float:
    value = options.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 1 <= number <= 3600:
        raise BrokerError(f"{where}: {name} must be a number of seconds from 1 to 3600, not {value!r}")
    return number


def _consumer_timeout(options: dict[str, Any], where: str) -> float | None:
    value = options.get("consumer_timeout", CONSUMER_TIMEOUT)
    if value in ("none", False):
        return None
    try:
        seconds = duration.seconds(float(value) if str(value).isdigit() else value)
    except ValueError as error:
        raise BrokerError(f"{where}: consumer_timeout: {error}, or none") from None
    if seconds < 1:
        raise BrokerError(
            f"{where}: consumer_timeout must be at least 1s, as the server has it, or none; not {value!r}"
        )
    return seconds
