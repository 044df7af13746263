"""Certificates and tokens: what is used, when it is read anew, and what is said when it does not do."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import sys
import time
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from handrail_kafka.faults import SetupError
from handrail_kafka.identity import Token, Trust

PASSPHRASE = "open-se5ame"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def files(authority: trustme.CA, folder: Path, passphrase: str = "") -> tuple[str, str, str]:
    """A CA file, a client's certificate and its key, encrypted where there is a passphrase."""
    issued = authority.issue_cert("client@example.org")
    ca, cert, key = (folder / name for name in ("ca.pem", "client.crt", "client.key"))
    authority.cert_pem.write_to_path(ca)
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    private = issued.private_key_pem.bytes()
    if passphrase:
        private = load_pem_private_key(private, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode())
        )
    key.write_bytes(private)
    return str(ca), str(cert), str(key)


def trust(ca: str | None, cert: str | None = None, key: str | None = None, password: str | None = None) -> Trust:
    return Trust(ca, cert, key, password, check_hostname=True)


def test_an_authority_of_ones_own_is_the_only_one(authority: trustme.CA, tmp_path: Path) -> None:
    """With `ca` nothing else is trusted, and servers must prove their name."""
    ca, _cert, _key = files(authority, tmp_path)

    context = trust(ca).context()

    assert len(context.get_ca_certs()) == 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_pem_text_does_as_well_as_a_path_and_leaves_no_file(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ca`, `cert` and `key` may be the text itself, as secrets in variables are; nothing of it stays on the disk."""
    texts = [Path(name).read_text() for name in files(authority, tmp_path, PASSPHRASE)]
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(empty))

    context = trust(*texts, PASSPHRASE).context()

    assert len(context.get_ca_certs()) == 1
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("password", "words"), [(None, "is encrypted; give its passphrase"), ("wr0ng-one", "does not open")]
)
def test_a_passphrase_is_never_asked_for_nor_shown(
    authority: trustme.CA, tmp_path: Path, password: str | None, words: str
) -> None:
    """An encrypted key without its passphrase, or with another, is one line; OpenSSL does not ask at the terminal."""
    with pytest.raises(SetupError, match=words) as refused:
        trust(*files(authority, tmp_path, PASSPHRASE), password).context()
    assert "wr0ng-one" not in str(refused.value)


def test_what_is_no_certificate_is_named(authority: trustme.CA, tmp_path: Path) -> None:
    """Each file that cannot be used is told by its option and its path."""
    ca, cert, key = files(authority, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _ca, _cert, another = files(authority, other)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")

    for given, words in (
        ((str(nonsense),), "ca: no certificates in"),
        ((ca, str(nonsense), key), "cert: .*nonsense.pem.* cannot be used"),
        ((ca, cert), "give the private key with key="),
        ((ca, cert, another), "is not the key of"),
    ):
        with pytest.raises(SetupError, match=words):
            trust(*given).context()


def test_certificates_that_were_renewed_are_read_anew(authority: trustme.CA, tmp_path: Path) -> None:
    """New files on the disk count for the next connection; half of a renewal keeps the ones from before."""
    ca, cert, key = files(authority, tmp_path)
    made = trust(ca, cert, key)
    first = made.context()
    assert made.context() is first

    whole = Path(cert).read_bytes()
    Path(cert).write_bytes(b"half")
    assert made.context() is first
    Path(cert).write_bytes(whole)
    os.utime(cert, (1, 1))

    assert made.context() is not first


def jwt(life: float) -> str:
    def part(what: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(what).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part({'exp': time.time() + life})}."


@pytest.mark.parametrize(("life", "runs"), [(3600.0, 1), (0.5, 3)])
def test_a_token_is_used_again_until_shortly_before_its_end(tmp_path: Path, life: float, runs: int) -> None:
    """The command runs once for many connections while its token lasts, and again for one that is about to end."""
    (tmp_path / "token").write_text(jwt(life))
    token = Token(None, f"echo run >> {tmp_path}/runs; cat {tmp_path}/token")

    async def ask() -> None:
        for _ in range(3):
            assert set(await asyncio.gather(token.token(), token.token())) == {jwt_text}

    jwt_text = (tmp_path / "token").read_text()
    asyncio.run(ask())

    assert len((tmp_path / "runs").read_text().splitlines()) == runs


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo s3cret >&2; exit 7", "exit code 7"),
        ("true", "printed no token"),
        ("echo 's3cret and more'", "printed no token"),
        (f"{sys.executable} -c 'import sys; sys.exit(3)'", "exit code 3"),
    ],
)
def test_a_command_that_gives_no_token_is_told_without_what_it_printed(command: str, words: str) -> None:
    """One line says how it ended; what it printed may be a secret and is not repeated."""
    with pytest.raises(SetupError, match=words) as refused:
        asyncio.run(Token(None, command).token())
    assert "s3cret" not in str(refused.value)
