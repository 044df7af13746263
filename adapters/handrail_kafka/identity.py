"""Who we are to the servers and whom we trust: certificates and tokens, read anew when they change. It connects to nobody."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from handrail.logger import get_logger
from handrail_kafka.faults import SetupError

log = get_logger("handrail.kafka")

#: What PEM text begins with, where it is given itself instead of the path of a file.
PEM = "-----BEGIN "
#: Seconds that the command for a token may take.
PATIENCE = 30.0
#: Seconds for which a token is used again that does not say when it ends: one start opens a dozen connections.
UNDATED = 10.0


class Trust:
    """The TLS context of one broker. Raises :class:`SetupError` when certificates cannot be used at all."""

    def __init__(
        self, ca: str | None, cert: str | None, key: str | None, password: str | None, *, check_hostname: bool
    ) -> None:
        self._ca = ca
        self._cert = cert
        self._key = key
        self._password = password
        self._check_hostname = check_hostname
        self._context: ssl.SSLContext | None = None
        self._stamp: object = None

    def context(self) -> ssl.SSLContext:
        """The context for a new connection: certificates that were replaced on the disk meanwhile are used."""
        stamp = [_stamp(path) for path in (self._ca, self._cert, self._key)]
        if self._context is None or stamp != self._stamp:
            try:
                self._context = self._make()
            except SetupError as error:
                if self._context is None:
                    raise
                # half of a renewal, perhaps: the certificate is new and its key not yet
                log.warning("the new certificates cannot be used; going on with those from before", reason=error.text)
            self._stamp = stamp
        return self._context

    def _make(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context()
            if self._ca is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                if self._ca.startswith(PEM):
                    context.load_verify_locations(cadata=self._ca)
                else:
                    context.load_verify_locations(cafile=self._ca)
        except (OSError, ValueError) as error:
            raise SetupError(f"ca: no certificates in {_shown(self._ca)} ({_reason(error)})") from error
        context.check_hostname = self._check_hostname
        if self._cert is not None:
            self._load_chain(context, self._cert)
        return context

    def _load_chain(self, context: ssl.SSLContext, cert: str) -> None:
        given = self._password

        def password() -> str:
            # never asked of a person: OpenSSL would do that on the terminal
            if given is None:
                raise SetupError(
                    f"key: {_shown(self._key or cert)} is encrypted; give its passphrase with key_password"
                )
            return given

        with _file(cert) as cert_path, _file(self._key or cert) as key_path:
            try:
                context.load_cert_chain(cert_path, key_path, password)
            except ssl.SSLError as error:
                if given is not None and (error.reason is None or "DECRYPT" in error.reason):
                    raise SetupError(f"key_password: does not open {_shown(self._key or cert)}") from error
                if error.reason == "KEY_VALUES_MISMATCH":
                    raise SetupError(f"key: {_shown(self._key)} is not the key of {_shown(cert)}") from error
                where = f"cert: {_shown(cert)}" + (f" with key: {_shown(self._key)}" if self._key else "")
                mend = "" if self._key else "; give the private key with key="
                raise SetupError(f"{where} cannot be used ({_reason(error)}){mend}") from error
            except OSError as error:
                raise SetupError(f"cert: {_shown(cert)} cannot be read ({_reason(error)})") from error


def _stamp(path: str | None) -> object:
    if path is None or path.startswith(PEM):
        return None
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116
        return found.st_mtime_ns, found.st_ino, found.st_size
    return None


def _shown(given: str | None) -> str:
    return "the PEM text" if given is None or given.startswith(PEM) else given


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "not the PEM that is wanted"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextlib.contextmanager
def _file(given: str) -> Iterator[str]:
    """A path for what OpenSSL takes from files alone; PEM text lies in one of our own for that moment, readable by us alone."""
    if not given.startswith(PEM):
        yield given
        return
    fd, path = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(given)
        yield path
    finally:
        Path(path).unlink(missing_ok=True)


class Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """The token for OAUTHBEARER: as given, or from a command, used again until shortly before it ends."""

    def __init__(self, given: str | None, command: str | None) -> None:
        self._given = given
        self._command = command
        self._last = ""
        self._until = 0.0
        self._asking: asyncio.Task[str] | None = None

    async def token(self) -> str:
        """A token that is good now. Raises :class:`SetupError`."""
        if self._command is None:
            assert self._given is not None
            return self._given
        if time.time() < self._until:
            return self._last
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._command))
        # one connection that is given up must not take the token from the others
        return await asyncio.shield(self._asking)

    async def _ask(self, command: str) -> str:
        now = time.time()
        try:
            done = await asyncio.to_thread(  # noqa: S604 - a command line is what the user wrote
                subprocess.run,
                command,
                shell=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SetupError(f"token_command gave no token within {PATIENCE:g}s; run it by hand to see why") from None
        token = done.stdout.strip()
        # what it printed is not repeated: it may hold secrets
        if done.returncode or not token or any(not " " < letter <= "~" for letter in token):
            fate = f"ended with exit code {done.returncode}" if done.returncode else "printed no token"
            raise SetupError(f"token_command {fate}; run it by hand to see why")
        ends = _end_of(token)
        # a fifth of its life is left for connections that are made with it; servers close them when it ends
        self._last, self._until = token, now + UNDATED if ends is None else ends - max(2.0, (ends - now) / 5)
        return token


def _end_of(token: str) -> float | None:
    """When a JSON web token ends, Unix time in seconds; None when it does not say. Nothing is verified: servers do that."""
    try:
        part = token.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None
