"""What to say of a key that does not exist: our name for another system's word, or the nearest of ours. It judges no values."""

from __future__ import annotations

import re
from collections.abc import Collection

from handrail.config.words import Filled, Path, listed, nearest, quoted, scope

# Words of other queue systems, without case, dashes and underscores, by the setting of ours that means the same.
_QUEUE = {
    "handler": "function func fn task callback worker processor consumer subscriber run target job actor entrypoint",
    "broker": "url brokerurl connection transport",
    "concurrency": "concurrencylimit maxconcurrency maximumconcurrency maxconcurrentcalls concurrentmessagelimit locallimit "
    "parallelism workers threads maxworkers maxruns prefetch prefetchcount prefetchmultiplier concurrencymode",
    "attempts": "maxattempts maximumattempts maxreceivecount maxdeliver maxdelivery deliverylimit tries maxtries",
    "backoff": "retrybackoff retrydelay backoffpolicy retrypolicy retrystrategy backoffdelay minbackoff maxbackoff intervals "
    "retrybackoffmax initialinterval delay retryinterval retrydelays",
    "timeout": "timelimit tasktimelimit softtimelimit executiontimeout jobtimeout tasktimeout runtimeout maxduration "
    "starttoclose handlertimeout deadline",
    "expires": "ttl maxage messagettl ttlinseconds scheduletostart scheduletimeout timetobereceived deliverwithin expire "
    "expiration expirytime expiresin expiry",
    "max_starts": "maxruns maxexecutions",
    "max_crashes": "maxcrash crashes maxfailures",
    "priority": "defaultpriority taskpriority",
    "order": "lifo fifo sort ordering orderby processingorder",
    "isolation": "process sandbox isolated fork usesubprocess",
    "dead_letter": "dlq dlqname deadletterqueue deadlettertopic deadlettersink deadletters deadletterexchange dlx poisonqueue "
    "errorqueue onfailure failurequeue deadqueue",
    "content": "contenttype serializer format encoding body",
    "errors": "exceptions onerror errorrules retryon retryif autoretryfor throws retryfor donotretry",
    "middleware": "middlewares wrap wrappers hooks interceptors",
}
_TOP = {
    "queues": "queue tasks jobs handlers routes bindings functions",
    "defaults": "common global base",
    "broker": "brokerurl url connection transport redis amqp",
    "brokers": "connections transports",
    "prefix": "queueprefix namespace nameprefix",
    "drain_timeout": "gracefultimeout shutdowntimeout workersoftshutdowntimeout softstoptimeout stoptimeout graceperiod "
    "terminationgraceperiodseconds drain",
    "send_timeout": "publishtimeout sendertimeout",
    "send_buffer": "buffer buffersize queuesize maxbuffer",
    "max_message_bytes": "maxmessagesize maxbytes messagesize maxsize maxmessagelength",
    "ledger": "resultbackend results database backend resultstore state",
}
_BACKOFF = {
    "type": "kind policy strategy mode backoffpolicy",
    "delay": "initial initialinterval duration backoffdelay min base interval minimuminterval mininterval minbackoff mintimeout "
    "delayseconds seconds mintimeoutinms initialdelay",
    "factor": "multiplier coefficient backoffcoefficient backofffactor exponent rate",
    "max": "maxinterval maximuminterval maxdelay maxbackoff cap limit maxtimeoutinms backoffmaxseconds maximum retrybackoffmax",
    "jitter": "randomize randomization retryjitter spread",
}
_RULE = {
    "when": "exception error on class if type name match",
    "then": "do action outcome",
    "backoff": "delay retrydelay",
}
_BROKER = {"url": "uri dsn address host connection broker"}

#: Words for a number of retries, which is one less than a number of attempts.
_RETRIES = frozenset(
    "retries maxretries maxretry retry retrylimit maxretrycount retrycount numretries maximumretryattempts".split()  # noqa: SIM905
)

_NEEDLESS = {
    "visibilitytimeout": "a running message is never given out twice, so no such time is needed; remove it",
    "autoack": "the handler's callback acknowledges; remove it",
    "noack": "the handler's callback acknowledges; remove it",
    "ackslate": "a message is always acknowledged after its handler; remove it",
    "durable": "every queue is durable; remove it",
}


def _table(words: dict[str, str]) -> dict[str, str]:
    return {word: ours for ours, theirs in words.items() for word in theirs.split()}


_TABLES = {
    "queue": _table(_QUEUE),
    "top": _table(_TOP),
    "backoff": _table(_BACKOFF),
    "rule": _table(_RULE),
}
_URLS = _table(_BROKER)


def unknown(path: Path, key: str, value: object, known: Collection[str]) -> str:
    """The error text for *key*, which the mapping at *path* cannot have; *known* are the keys that it can."""
    said = f"unknown setting {quoted(key)}{scope(path)}"
    folded = _folded(key)
    if _kind(path) == "queue":
        if folded in _RETRIES:
            return f"{said}; {_attempts(value)}"
        if folded in _NEEDLESS:
            return f"{said}; {_NEEDLESS[folded]}"
    if (ours := _same(path, key, known)) is not None:
        spelled = ours.replace("_", "") == folded
        return f"{said}; did you mean {quoted(ours)}?" if spelled else f"{said}; here it is called {quoted(ours)}"
    if not path and (key in _QUEUE or folded in _RETRIES or folded in _TABLES["queue"]):
        return f"{said}; what holds for all queues stands under 'defaults', what holds for one under its name"
    if _kind(path) == "queue" and key in _TOP:
        return f"{said}; it holds for the whole project and stands at the top of the file"
    if near := nearest(key, known):
        return f"{said}; did you mean {quoted(near)}?"
    return f"{said}; known are {listed(sorted(known), 'and')}"


def stands_for(path: Path, key: str, known: Collection[str]) -> str | None:
    """The one of *known* that *key* was most likely meant to be, or None."""
    return _same(path, key, known) or nearest(key, known)


def _same(path: Path, key: str, known: Collection[str]) -> str | None:
    folded = _folded(key)
    if spelled := next((name for name in known if name.replace("_", "") == folded), None):
        return spelled
    ours = _TABLES[_kind(path)].get(folded)
    return ours if ours in known else None


def meant(ours: str, keys: Collection[str]) -> str | None:
    """The one of *keys* by which somebody meant *ours*, in a broker's mapping, where any key is allowed."""
    return next((key for key in keys if _URLS.get(_folded(key)) == ours), None) or nearest(ours, keys)


def _folded(key: str) -> str:
    return re.sub(r"[-_. ]", "", key).casefold()


def _kind(path: Path) -> str:
    match path:
        case ():
            return "top"
        case ("queues", _):
            return "queue"
        case (*_, "backoff"):
            return "backoff"
        case (*_, "errors", int()):
            return "rule"
        case _:
            return "queue"


def _attempts(value: object) -> str:
    """``retries: 3`` are four attempts."""
    if isinstance(value, int) and not isinstance(value, Filled | bool) and 0 <= value < 1_000_000:
        return f"write 'attempts: {value + 1}', for attempts counts the first run too"
    return "write 'attempts', which counts the first run too, so it is one more"
