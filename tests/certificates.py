"""Servers that speak TLS, with authorities and certificates made for the test run alone."""

from __future__ import annotations

from pathlib import Path

from real_servers import RabbitMQ, Server

#: What the server's certificate is for. Neither is the address 127.0.0.1.
NAMES = ("localhost", "rabbit.example.org")
#: What protects the key of ``encrypted.key``.
PASSPHRASE = "p%40:ss phräse"

_CONFIG = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {tls}/ca.pem
ssl_options.certfile = {tls}/server.pem
ssl_options.keyfile = {tls}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


class TLSRabbitMQ(RabbitMQ):
    """A node that also listens for TLS, there for clients alone that show a certificate of its authority."""

    ports = (*RabbitMQ.ports, "tls")

    def answers(self, port: int) -> bool:
        # it opens the port for TLS last
        return super().answers(port) and Server.answers(self, self.state["tls"])

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        if fresh:
            make(self.folder / "tls")
        self.config = _CONFIG.format(port=state["tls"], tls=self.folder / "tls")
        super().prepare(state, fresh=fresh)

    @property
    def tls_url(self) -> str:
        return f"amqps://guest:guest@127.0.0.1:{self.state['tls']}/"

    def file(self, name: str) -> str:
        """``ca.pem``, ``client.pem``, ``client.key``, ``encrypted.key``; the same of a stranger: ``stranger-ca.pem`` …"""
        return str(self.folder / "tls" / name)

    @property
    def good(self) -> dict[str, str]:
        """Options with which a client is let in."""
        return {
            "ca": self.file("ca.pem"),
            "cert": self.file("client.pem"),
            "key": self.file("client.key"),
            "server_name": NAMES[1],
        }


def make(folder: Path) -> None:
    """An authority with a server's and a client's certificate, and a stranger with a client's."""
    import trustme  # not above: every test imports this module, and this is slow

    folder.mkdir(parents=True, exist_ok=True)
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    stranger.cert_pem.write_to_path(str(folder / "stranger-ca.pem"))
    for name, issuer, names in (
        ("server", authority, NAMES),
        ("client", authority, ("client",)),
        ("stranger", stranger, ("client",)),
    ):
        issued = issuer.issue_cert(*names)
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        if name == "client":
            (folder / "encrypted.key").write_bytes(_encrypted(issued.private_key_pem.bytes()))


def _encrypted(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSPHRASE.encode()),
    )
