"""What went wrong, in one line for people, and whether waiting may mend it. It does nothing about it."""

from __future__ import annotations

import socket
import ssl

from aiokafka import errors

#: Waiting does not mend these.
FATAL: tuple[type[BaseException], ...] = (
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


def is_refusal(error: BaseException) -> bool:
    # 87 (INVALID_RECORD) has no class in aiokafka: it comes as an unknown error that no retry mends
    return isinstance(error, REFUSED) or type(error) is errors.UnknownError


def explain(error: BaseException, place: str) -> str:
    """One line: what, where, what to do. *place* is the masked URL."""
    detail = str(error).replace("\n", " ").strip()
    match error:
        case errors.AuthenticationFailedError() | errors.SaslAuthenticationFailed():
            return f"{place}: the server refuses the user or the password; check both, and the mechanism (sasl=…)"
        case errors.UnsupportedSaslMechanismError() | errors.AuthenticationMethodNotSupported():
            return f"{place}: the server does not know this SASL mechanism; {detail or 'choose another with sasl=…'}"
        case errors.IllegalSaslStateError():
            return f"{place}: the server's listener wants no SASL here; use its other port, or leave user and password away"
        case errors.TopicAuthorizationFailedError():
            return (
                f"{place}: no access to topic {_names(error)}; grant this user Read, Write, Describe and Create on it"
            )
        case errors.GroupAuthorizationFailedError():
            return f"{place}: no access to consumer group {_names(error)}; grant this user Read on it"
        case errors.ClusterAuthorizationFailedError():
            return f"{place}: this user may not create topics; grant Create on them, or create them beforehand"
        case socket.gaierror():
            return f"{place}: the host's name is not known here ({detail}); check the URL and the DNS"
        case ssl.SSLCertVerificationError():
            return f"{place}: the server's certificate is not trusted ({error.verify_message}); give its authority with ca="
        case ssl.SSLError():
            return f"{place}: no TLS with this port ({error.reason}); check tls= and the port"
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


def _names(error: errors.KafkaError) -> str:
    names: list[str] = []
    for one in error.args:
        if isinstance(one, (set, frozenset, list, tuple)):
            names += [str(name) for name in one]
        else:
            names.append(str(one))
    return ", ".join(repr(name) for name in names) or "(unnamed)"
