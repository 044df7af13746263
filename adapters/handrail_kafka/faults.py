"""What went wrong, in one line for people, and whether waiting may mend it. It does nothing about it."""

from __future__ import annotations

import socket
import ssl

from aiokafka import errors

from handrail.errors import BrokerError


class SetupError(errors.KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """What we were given to prove who we are, or to know the servers by, does not do: a certificate, a key, a token."""

    @property
    def text(self) -> str:
        return str(self.args[0])


class UnfitError(errors.KafkaConnectionError):  # type: ignore[misc]
    """The server takes the connection and ends it at once: it starts or stops, or its listener wants something else."""

    @property
    def text(self) -> str:
        return str(self.args[0])


#: Waiting does not mend these.
FATAL: tuple[type[BaseException], ...] = (
    SetupError,
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.UnsupportedVersionError,
    ssl.SSLCertVerificationError,
    socket.gaierror,
)

#: A record's own fault: sent alone it fails again, and its neighbours pass without it.
REFUSED: tuple[type[BaseException], ...] = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
    errors.PolicyViolationError,
    errors.CorruptRecordException,
    errors.InvalidTopicError,
    errors.UnsupportedForMessageFormatError,
)


def is_fatal(error: BaseException) -> bool:
    """Whether waiting does not mend *error*."""
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN  # no name server answers: one may in a moment
    return isinstance(error, FATAL)


def is_refusal(error: BaseException) -> bool:
    # 87 (INVALID_RECORD) has no class in aiokafka: it comes as an unknown error that no retry mends
    return isinstance(error, REFUSED) or type(error) is errors.UnknownError


def explain(error: BaseException, place: str) -> str:
    """One line: what, where, what to do. *place* is the masked URL."""
    detail = str(error).replace("\n", " ").strip().removeprefix(f"{type(error).__name__}: ")
    match error:
        case BrokerError():
            return str(error)
        case SetupError() | UnfitError():
            return f"{place}: {error.text}"
        case errors.AuthenticationFailedError() | errors.SaslAuthenticationFailed():
            return f"{place}: the server refuses the user or the password; check both, and the mechanism (sasl=…)"
        case errors.UnsupportedSaslMechanismError() | errors.AuthenticationMethodNotSupported():
            return f"{place}: the server does not offer this SASL mechanism here; choose another with sasl=…"
        case errors.IllegalSaslStateError():
            return f"{place}: the server's listener wants no SASL here; use its other port, or leave user and password away"
        case errors.TopicAuthorizationFailedError():
            return (
                f"{place}: no access to topic {_names(error)}; grant this user Read, Write, Describe and Create on it"
            )
        case errors.GroupAuthorizationFailedError():
            return f"{place}: no access to consumer group {_names(error)}; grant this user Read on it"
        case errors.ClusterAuthorizationFailedError():
            return f"{place}: this user may write to no topic; grant Write (and IdempotentWrite on servers before Kafka 2.8)"
        case socket.gaierror():
            return f"{place}: the host's name is not known here ({detail}); check the URL and the DNS"
        case ssl.SSLCertVerificationError():
            return f"{place}: {_mistrust(error)}"
        case ssl.SSLError():
            return f"{place}: no TLS with this port ({_reason(error)}); check tls= and the port"
        case ConnectionRefusedError():
            return f"{place}: nobody listens there; is the server up?"
        case TimeoutError() | errors.RequestTimedOutError() | errors.KafkaTimeoutError():
            return f"{place}: the server does not answer"
        case errors.NodeNotReadyError() | errors.KafkaConnectionError() | OSError():
            return f"{place}: no connection ({detail or type(error).__name__})"
        case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
            return f"{place}: the server refuses a record of this size; raise max.message.bytes of the topic"
        case _:
            return f"{place}: {type(error).__name__}: {detail}" if detail else f"{place}: {type(error).__name__}"


#: OpenSSL's numbers for certificates that bear another name, or are not valid at this time.
_OTHER_NAME, _NOT_NOW = (62, 63, 64), (9, 10)


def _mistrust(error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message.rstrip(".")
    if error.verify_code in _OTHER_NAME:
        return (
            f"the server's certificate is for another name ({said}); use a name that it bears, or check_hostname=false"
        )
    if error.verify_code in _NOT_NOW:
        return f"the server's certificate is not valid now ({said}); renew it, and check the clock here"
    return f"the server's certificate is not trusted ({said}); give its authority with ca="


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or type(error).__name__).lower().replace("_", " ")


def refused_identity(error: BaseException) -> str:
    """What the server's TLS said of our certificate, in its own words, or nothing: it says so with an alert, if at all."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or "") and not _is_version(cause):
            return _reason(cause)
        cause = cause.__cause__ or cause.__context__
    return ""


def _is_version(error: ssl.SSLError) -> bool:
    return "PROTOCOL_VERSION" in (error.reason or "")


def _names(error: errors.KafkaError) -> str:
    names: list[str] = []
    for one in error.args:
        if isinstance(one, (set, frozenset, list, tuple)):
            names += [str(name) for name in one]
        else:
            names.append(str(one))
    return ", ".join(repr(name) for name in names) or "(unnamed)"
