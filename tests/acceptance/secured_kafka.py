"""A Kafka that wants to know who speaks to it: SASL, TLS, client certificates, and rights. No test stands here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trustme
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from real_servers import Kafka

#: Passphrase of the client's key, and what stands in every wrong password here: neither may ever be shown.
PASSPHRASE, WRONG = "open-se5ame", "wr0ng-one"

_OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_PROPERTIES = """
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},MTLS://127.0.0.1:{mtls},\
SASL_TLS://127.0.0.1:{sasl_tls},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl},TLS://localhost:{tls},MTLS://localhost:{mtls},\
SASL_TLS://localhost:{sasl_tls}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,TLS:SSL,MTLS:SSL,SASL_TLS:SASL_SSL,\
CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl_plaintext.oauthbearer.sasl.jaas.config={oauth} required unsecuredLoginStringClaim_sub="server";
listener.name.sasl_plaintext.oauthbearer.connections.max.reauth.ms=3600000
listener.name.sasl_tls.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_tls.plain.sasl.jaas.config={plain} required user_handrail="on-loopback-only";
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.mtls.ssl.client.auth=required
listener.name.mtls.ssl.principal.mapping.rules=RULE:^.*CN=([^,]+).*$/$1/
super.users=User:ANONYMOUS;User:handrail;User:certified;User:all-rights
"""

TOPIC, GROUP = 2, 3
READ, WRITE, CREATE, DESCRIBE = 3, 4, 5, 8


class SecuredKafka(Kafka):
    """Its certificate is for ``localhost`` alone. Whoever has a token may come in and has no right but those of :meth:`grant`."""

    ports = (*Kafka.ports, "tls", "mtls", "sasl_tls")

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        if fresh:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(self.folder / "ca.pem")
            trustme.CA().cert_pem.write_to_path(self.folder / "other-ca.pem")
            _write(authority.issue_cert("localhost"), self.folder / "server.pem", self.folder / "server.pem")
            client = authority.issue_cert("certified@example.org", common_name="certified")
            _write(client, self.folder / "client.crt", self.folder / "client.key", PASSPHRASE)
        self.properties = _PROPERTIES.format(folder=self.folder, oauth=_OAUTH, plain=_PLAIN, **state)
        super().prepare(state, fresh=fresh)

    def at(self, listener: str, credentials: str = "", host: str = "") -> str:
        """The URL of a listener: a name of :attr:`ports`."""
        host = host or ("localhost" if "tls" in listener else "127.0.0.1")
        return f"kafka://{credentials}{'@' if credentials else ''}{host}:{self.state[listener]}"

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def topics(self, *names: str) -> None:
        """Create topics of one partition."""
        asyncio.run(self._admin(lambda admin: admin.create_topics([NewTopic(name, 1, 1) for name in names])))

    def grant(self, user: str, rights: Sequence[tuple[int, str, int]]) -> None:
        """Give *user* rights: each a kind of resource, its name (or its beginning and ``*``), and an operation."""

        async def give(admin: Any) -> None:
            for kind, name, operation in rights:
                pattern = 4 if name.endswith("*") else 3
                request = CreateAclsRequest(kind, name.removesuffix("*"), pattern, f"User:{user}", "*", operation, 3)
                answer = await admin._send_request(request)
                assert [code for code, _text in answer.creation_responses] == [0], answer

        asyncio.run(self._admin(give))

    async def _admin(self, work: Any) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.state['port']}")
        await admin.start()
        try:
            await work(admin)
        finally:
            await admin.close()


def _write(issued: trustme.LeafCert, cert: Path, key: Path, passphrase: str = "") -> None:
    # Java reads PKCS 8 alone
    secret = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    private = load_pem_private_key(issued.private_key_pem.bytes(), None)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
    if cert == key:
        cert.write_bytes(text + chain)
    else:
        cert.write_bytes(chain)
        key.write_bytes(text)
