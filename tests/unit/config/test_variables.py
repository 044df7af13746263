"""``${NAME}``, ``${NAME:-default}`` and ``${file:path}``, and that what they hold is never shown."""

from __future__ import annotations

import pytest

from handrail import config
from handrail.config import describe_changes
from handrail.errors import ConfigError

SECRET = "hunter2-geheim"


def test_variables_defaults_and_files_are_filled_in(project, monkeypatch):
    """All three forms work, alone and within a text."""
    monkeypatch.setenv("FOLDER", "data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET_VARIABLE", raising=False)
    (project.root / "secret").write_text("p4ss\n")
    found = project.load(
        """
broker: {url: "sqlite:${FOLDER}/q.db", password: "${file:secret}", other: "${UNSET_VARIABLE:-x}${EMPTY:-y}"}
prefix: ${UNSET_VARIABLE:-${FOLDER}.}
queues: {a: taskHandler}
"""
    )

    assert found.brokers["default"].url == "sqlite:data/q.db"
    assert found.brokers["default"].options == {"password": "p4ss", "other": "xy"}
    assert found.prefix == "data."


def test_a_variable_may_stand_for_a_number_a_duration_or_a_truth(project, monkeypatch):
    """What came wholly from a variable is a number where a number is meant, in quotes or not."""
    for name, value in {"N": "5", "D": "1h", "S": "30", "F": "false", "J": "0.5", "NONE": "none", "O": "lifo"}.items():
        monkeypatch.setenv(name, value)
    found = project.load(
        """
queues:
  a:
    handler: taskHandler
    attempts: ${N}
    concurrency: "${N}"
    expires: ${D}
    timeout: ${S}
    dead_letter: ${F}
    max_starts: ${NONE}
    order: ${O}
    backoff: {jitter: "${J}"}
"""
    ).queues["a"]

    assert (found.attempts, found.concurrency, found.expires, found.timeout) == (5, 5, 3600.0, 30.0)
    assert (found.dead_letter, found.max_starts, found.order, found.backoff.jitter) == (None, None, "lifo", 0.5)


def test_in_a_broker_s_own_keys_only_a_bare_variable_is_a_number_and_a_password_never(project, monkeypatch):
    """A password of digits stays a text."""
    monkeypatch.setenv("N", "0123")
    found = project.load(
        'broker:\n  url: sqlite:q.db\n  heartbeat: ${N}\n  tag: "${N}"\n  password: ${N}\nqueues: {a: taskHandler}\n'
    )

    assert found.brokers["default"].options == {"heartbeat": 123, "tag": "0123", "password": "0123"}


def test_a_doubled_dollar_is_one(project):
    """``$${`` is the way to write ``${`` itself; a lone ``$`` is only a dollar."""
    found = project.load("broker: {url: 'sqlite:q.db', a: '$${X}', b: $5}\nqueues: {a: taskHandler}\n")

    assert found.brokers["default"].options == {"a": "${X}", "b": "$5"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "${UNSET_VARIABLE}",
            "the variable UNSET_VARIABLE is not set; set it, or give it a default: ${UNSET_VARIABLE:-…}",
        ),
        (
            "${A:-${UNSET_VARIABLE}}",
            "the variable UNSET_VARIABLE is not set; set it, or give it a default: ${UNSET_VARIABLE:-…}",
        ),
        ("${file:none}", "there is no file 'none'; a path in ${file:…} counts from the folder of this file"),
        ("${file:handlers}", "the file 'handlers' is a folder; name a file in it"),
        ("${file:}", "${file:…} must name a file"),
        ("${file:binary}", "the file 'binary' is not UTF-8 text"),
        ("${file:large}", "the file 'large' is larger than 65,536 bytes, too large for a setting"),
        ("${1X}", "'${1X}' is not understood; write ${NAME}, ${NAME:-default} or ${file:path}"),
        ("${X-y}", "'${X-y}' is not understood; write ${NAME}, ${NAME:-default} or ${file:path}"),
        ("${}", "'${}' is not understood; write ${NAME}, ${NAME:-default} or ${file:path}"),
        ("${X", "a '${' is never closed; add '}', or write $${ for the two characters themselves"),
    ],
)
def test_what_cannot_be_filled_in_is_told_at_its_place(project, monkeypatch, written, said):
    """A variable that cannot be filled in is one line, and nothing follows from it."""
    monkeypatch.delenv("UNSET_VARIABLE", raising=False)
    monkeypatch.delenv("A", raising=False)
    (project.root / "binary").write_bytes(b"\xff\xfe")
    (project.root / "large").write_bytes(b"x" * 70_000)

    assert project.problems(f"queues:\n  a: {{handler: taskHandler, attempts: '{written}'}}\n") == [
        f"queues.yaml:2:39: {said}"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "broker: ${SECRET}",
        "broker: redis://user:${SECRET}@h",
        f"broker: redis://user:{SECRET}@h/0",
        f"broker: user:{SECRET}@h",
        f"broker: redis://h?password={SECRET}",
        f"broker: ${{UNSET_VARIABLE:-redis://u:{SECRET}@h}}",
        "broker: [ '${SECRET}' ]",
        "brokers: {a: '${SECRET}'}",
        "brokers: '${SECRET}'",
        "defaults: '${SECRET}'",
        "defaults: {attempts: '${SECRET}', timeout: '${SECRET}', priority: 'x${SECRET}', broker: '${SECRET}'}",
        "defaults: {order: '${SECRET}', dead_letter: '${SECRET} ', errors: [{when: '1${SECRET}'}], middleware: ['${SECRET}']}",
        "defaults: {backoff: {jitter: '${SECRET}', factor: '${SECRET}', delay: '${SECRET}'}, concurrency: '${file:secret}'}",
        "defaults: {middleware: '${SECRET}', errors: '${SECRET}', options: '${SECRET}', queue_type: '${SECRET}'}",
        "drain_timeout: ${SECRET}",
        "send_buffer: ${DIGITS}",
        "ledger: ${SECRET}",
        "prefix: '${SECRET}!'",
        "passwort: ${SECRET}",
        "x-a: !tag '${SECRET}'",
    ],
)
def test_no_error_shows_what_a_variable_or_a_url_holds(project, monkeypatch, line):
    """Passwords stay out of every line, wherever they were put by mistake."""
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("DIGITS", "99911199911")
    monkeypatch.delenv("UNSET_VARIABLE", raising=False)
    (project.root / "secret").write_text(SECRET)
    said = "\n".join(project.problems(f"{line}\nqueues: {{a: taskHandler}}\n"))

    assert SECRET not in said
    assert "99911199911" not in said


@pytest.mark.parametrize(
    "key", ["handler: '${SECRET}'", "handler: 'mail.${SECRET}'", "handler: '/${SECRET}'", "handler: '${SECRET}:x()'"]
)
def test_a_handler_that_came_from_a_variable_is_not_shown(project, monkeypatch, key):
    """Not even a handler's name is shown when a variable made it."""
    monkeypatch.setenv("SECRET", SECRET)

    assert SECRET not in "\n".join(project.problems(f"queues: {{a: {{{key}}}}}\n"))


def test_a_traceback_of_the_error_holds_no_values(project, monkeypatch):
    """Even with its causes shown, a problem does not carry what was filled in."""
    monkeypatch.setenv("SECRET", SECRET)
    project.write("queues: {a: {handler: taskHandler, attempts: '${SECRET}'}}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(project.path)

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_changes_show_no_password(project):
    """What a reload says of a broker is masked."""
    old = project.load("broker: {url: 'sqlite://u:one@h', token: one}\nqueues: {a: taskHandler}\n")
    new = project.load("broker: {url: 'sqlite://u:two@h', token: two}\nqueues: {a: taskHandler}\n")

    assert describe_changes(old, new) == ["broker default: password changed", "broker default: token changed"]
