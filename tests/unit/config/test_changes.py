"""What a reload says of a changed queues.yaml."""

from __future__ import annotations

import pytest

from handrail.config import describe_changes

OLD = "queues:\n  welcome-email: {handler: mail.send_welcome, attempts: 3}\n  old: taskHandler\n"


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (OLD, []),
        (OLD.replace("attempts: 3", "attempts: 5"), ["welcome-email: attempts 3 → 5"]),
        (OLD.replace("attempts: 3", "timeout: 90s"), ["welcome-email: timeout 15m → 1m30s"]),
        (OLD.replace("attempts: 3", "timeout: none"), ["welcome-email: timeout 15m → none"]),
        (OLD.replace("attempts: 3", "concurrency: 5"), ["welcome-email: concurrency auto → 5"]),
        (OLD.replace("attempts: 3", "dead_letter: false"), ["welcome-email: dead_letter welcome-email.dead → dropped"]),
        (
            OLD.replace("attempts: 3", "backoff: [1s, 5m]"),
            ["welcome-email: backoff exponential 1s × 2 max 5m jitter 0.2 → [1s, 5m]"],
        ),
        (
            OLD.replace("attempts: 3", "errors: [{when: A}, {when: B, backoff: 5s}]"),
            ["welcome-email: errors [] → [A: retry, B: retry fixed 5s]"],
        ),
        (OLD.replace("attempts: 3", "middleware: [mail.session]"), ["welcome-email: middleware [] → [mail.session]"]),
        (OLD.replace("attempts: 3", "options: {x: 1}"), ["welcome-email: x none → 1"]),
        (OLD.replace("send_welcome", "send_bye"), ["welcome-email: handler mail.send_welcome → mail.send_bye"]),
        (OLD.replace("  old: taskHandler\n", ""), ["queue old removed"]),
        (OLD + "  new: taskHandler\n", ["queue new added"]),
        ("drain_timeout: 1m\nprefix: a.\nledger: off\n" + OLD, [
            "prefix none → a.",
            "drain_timeout 30s → 1m",
            "ledger sqlite:.platform/ledger.db → off",
        ]),
        ("broker: sqlite:other.db\n" + OLD, ["broker default: sqlite:.platform/queues.db → sqlite:other.db"]),
        ("brokers: {more: 'sqlite:x'}\n" + OLD, ["broker more added"]),
    ],
)  # fmt: skip
def test_each_change_is_one_line_with_what_was_and_what_is(project, new, expected):
    """Whatever changed is told by queue and key, old and new, in the units people write."""
    assert describe_changes(project.load(OLD), project.load(new)) == expected
