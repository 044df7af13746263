"""What changed between two loadings of queues.yaml, in words. It shows no URL unmasked and no broker's options."""

from __future__ import annotations

from typing import Any

from handrail import duration
from handrail.adapter import BrokerSettings, masked
from handrail.config.model import ErrorRule, HandlerRef, QueueSettings, Settings
from handrail.outcome import Backoff

_DURATIONS = frozenset({"timeout", "expires", "drain_timeout", "send_timeout", "delay", "max"})
_NONE = {"handler": "none", "concurrency": "auto", "ledger": "off", "dead_letter": "dropped"}


def describe(old: Settings, new: Settings) -> list[str]:
    """One line a change: the project's settings, then its brokers, then each queue in the new file's order."""
    lines = [
        f"{name} {_text(name, getattr(old, name))} → {_text(name, getattr(new, name))}"
        for name in ("prefix", "drain_timeout", "send_timeout", "send_buffer", "max_message_bytes", "ledger")
        if getattr(old, name) != getattr(new, name)
    ]
    for name in {**old.brokers, **new.brokers}:
        lines += _broker(name, old.brokers.get(name), new.brokers.get(name))
    for name in {**new.queues, **old.queues}:
        lines += _queue(name, old.queues.get(name), new.queues.get(name))
    return lines


def _broker(name: str, old: BrokerSettings | None, new: BrokerSettings | None) -> list[str]:
    if old is None or new is None:
        return [f"broker {name} {'added' if old is None else 'removed'}"]
    lines = []
    if old.url != new.url:
        before, after = masked(old.url), masked(new.url)
        lines.append(f"broker {name}: {before} → {after}" if before != after else f"broker {name}: password changed")
    if changed := sorted(key for key in {*old.options, *new.options} if old.options.get(key) != new.options.get(key)):
        # an option may be a secret
        lines.append(f"broker {name}: {', '.join(changed)} changed")
    return lines


def _queue(name: str, old: QueueSettings | None, new: QueueSettings | None) -> list[str]:
    if old is None or new is None:
        return [f"queue {name} {'added' if old is None else 'removed'}"]
    lines = []
    for field in QueueSettings.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        if field == "options":
            lines += [
                f"{name}: {key} {_text(key, before.get(key))} → {_text(key, after.get(key))}"
                for key in sorted({*before, *after})
                if before.get(key) != after.get(key)
            ]
        else:
            shown = masked(_text(field, before)), masked(_text(field, after))
            lines.append(
                f"{name}: {field} {shown[0]} → {shown[1]}" if shown[0] != shown[1] else f"{name}: {field} changed"
            )
    return lines


def _text(field: str, value: Any) -> str:
    match value:
        case None:
            return _NONE.get(field, "none")
        case "":
            return "none"
        case int() | float() if field in _DURATIONS:
            return duration.text(value)
        case HandlerRef(text=text):
            return text
        case Backoff():
            return _backoff(value)
        case tuple():
            return f"[{', '.join(_text('', item) for item in value)}]"
        case ErrorRule(when=when, then=then, backoff=backoff):
            return f"{when}: {then}{'' if backoff is None else ' ' + _backoff(backoff)}"
        case _:
            return str(value)


def _backoff(backoff: Backoff) -> str:
    if backoff.type == "list":
        return f"[{', '.join(map(duration.text, backoff.delays))}]"
    parts = [backoff.type, duration.text(backoff.delay)]
    if backoff.type == "exponential":
        parts.append(f"× {backoff.factor:g}")
    if backoff.max is not None:
        parts.append(f"max {duration.text(backoff.max)}")
    if backoff.jitter:
        parts.append(f"jitter {backoff.jitter:g}")
    return " ".join(parts)
