"""What is said of a bad queues.yaml: every problem at once, each one line with its place and its mend."""

from __future__ import annotations

import os
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handrail import config
from handrail.config import nodes
from handrail.errors import ConfigError

Q = "queues: {a: taskHandler}\n"
EXAMPLE = "write `queues:` and under it `  taskQueue: taskHandler`"


def _queue(keys: str) -> str:
    return f"queues:\n  a:\n    handler: taskHandler\n    {keys}\n"


FILES = {
    # the file itself
    "empty": ("", f"1:1: the file is empty; {EXAMPLE}"),
    "comments only": ("# nothing\n", f"1:1: the file is empty; {EXAMPLE}"),
    "a list": ("- a\n", f"1:1: this must be a mapping with 'queues', not a list; {EXAMPLE}"),
    "a text": ("hello", f"1:1: this must be a mapping with 'queues', not the text 'hello'; {EXAMPLE}"),
    "no queues": ("prefix: a\n", f"1:1: there is no 'queues' in this file; {EXAMPLE}"),
    "queues of another name": ("tasks: {a: b}\n", "1:1: unknown setting 'tasks'; here it is called 'queues'"),
    "queues empty": ("queues: {}\n", f"1:9: 'queues' is empty; {EXAMPLE}"),
    "queues blank": ("queues:\n", f"1:8: 'queues' is empty; {EXAMPLE}"),
    "queues a list": (
        "queues:\n- a: b\n",
        "2:1: 'queues' must be a mapping such as `taskQueue: taskHandler`, not a list",
    ),
    "no space": (
        "queues:\n  a:taskHandler\n",
        (
            "2:3: 'queues' must be a mapping such as `taskQueue: taskHandler`, not the text 'a:taskHandler'; "
            "put a space after the ':'"
        ),
    ),
    "not UTF-8": (b"queues:\n  \xc3\xa9\xff: a\n", "2:4: the file is not UTF-8 here; save it as UTF-8"),
    # bad YAML
    "tab": ("queues:\n\ta: b\n", "2:1: a tab cannot indent YAML; use spaces"),
    "open list": ("queues: [a\n", "2:1: the '[' of line 1 is not closed here, or a comma is missing"),
    "closed twice": ("queues: [a]]\n", "1:12: there is a ']' too many here; remove it, or put the text in quotes"),
    "open quote": ("queues:\n  a: 'b\n  c: d\n", "2:6: this quote is never closed; add the closing one"),
    "two colons": (
        "queues: a: b\n",
        "1:10: a second ':' in one line; put the text in quotes, or the rest on lines of its own",
    ),
    "no colon": (
        "queues:\n  a:b\n  c: d\n",
        "2:3: this line has no ': '; write `key: value`, with a space after the ':'",
    ),
    "too deep a line": (
        "queues:\n  a: b\n    c: d\n",
        "3:6: this line is indented deeper than the one above, which has a value already; line them up",
    ),
    "out of line": (
        "queues:\n  a: b\n c: d\n",
        "3:2: this does not line up with line 1; indent it like its neighbours",
    ),
    "escape": (
        'queues: {a: "\\q"}\n',
        "1:15: in \"double quotes\" a backslash starts an escape; write \\\\, or use 'single quotes'",
    ),
    "at sign": ("queues: {a: b}\nprefix: @x\n", "2:9: a text cannot start with '@'; put it in quotes"),
    "no anchor": (
        "queues: *x\n",
        "1:9: no anchor &x stands above this alias; define it, or put a text that starts with '*' in quotes",
    ),
    "two documents": (
        Q + "---\n" + Q,
        "2:1: a second document starts here; queues.yaml is one document, so remove the '---'",
    ),
    "control character": ("queues:\n  a: b\x07\n", "2:7: the character U+0007 may not stand in YAML; remove it"),
    "variable in braces": (
        "queues: {a: ${X}}\n",
        '1:14: inside { } and [ ] a variable needs quotes; write "${NAME}"',
    ),
    "nested for ever": (
        "- " * 30_000,
        "1:101: more than 50 mappings or lists inside one another; queues.yaml needs no such depth",
    ),
    "alias in itself": (
        "queues: &a {b: *a}\n",
        "1:9: this alias stands inside its own anchor; it has no end",
    ),
    "merge of a text": (
        "queues:\n  <<: 5\n  a: taskHandler\n",
        "2:3: '<<' takes a mapping, as in `<<: *name`, or a list of them",
    ),
    "key that is a list": (
        "queues:\n  ? [1]\n  : x\n",
        '2:5: a key must be a text, not a list or a mapping; if this was ${NAME}, write "${NAME}" in quotes',
    ),
    # tags
    "python tag": (
        "queues: {a: !!python/object/apply:os.system [id]}\n",
        "1:13: tag '!!python/object/apply:os.system' is not taken: it could run code, and no tag is followed here; remove it",
    ),
    "env tag": ("queues: {a: !ENV X}\n", "1:13: tag '!ENV' is not taken: write ${NAME} instead"),
    "include tag": ("queues: !include x.yaml\n", "1:9: tag '!include' is not taken: write ${file:path} instead"),
    "set": ("queues: !!set {a}\n", "1:9: tag '!!set' is not taken: queues.yaml takes plain values only; remove it"),
    "not an int": (_queue("attempts: !!int x"), "4:15: 'x' is not a number; remove the tag"),
    # keys
    "unknown key": (_queue("attemps: 3"), "4:5: unknown setting 'attemps' for queue 'a'; did you mean 'attempts'?"),
    "unknown key at the top": ("prefx: a\n" + Q, "1:1: unknown setting 'prefx'; did you mean 'prefix'?"),
    "unknown key in defaults": (
        "defaults: {Timeout: 3}\n" + Q,
        "1:12: unknown setting 'Timeout' in defaults; did you mean 'timeout'?",
    ),
    "unknown key in a backoff": (
        _queue("backoff: {type: fixed, delya: 3s}"),
        "4:28: unknown setting 'delya' in 'backoff' of queue 'a'; did you mean 'delay'?",
    ),
    "unknown key in a rule": (
        _queue("errors: [{when: A, backof: 3s}]"),
        "4:24: unknown setting 'backof' in 'errors' of queue 'a'; did you mean 'backoff'?",
    ),
    "nothing like it": (
        "zzz: 1\n" + Q,
        (
            "1:1: unknown setting 'zzz'; known are broker, brokers, defaults, drain_timeout, ledger, max_message_bytes, "
            "prefix, queues, send_buffer and send_timeout"
        ),
    ),
    "queue's key at the top": (
        "attempts: 3\n" + Q,
        (
            "1:1: unknown setting 'attempts'; what holds for all queues stands under 'defaults', "
            "what holds for one under its name"
        ),
    ),
    "top's key in a queue": (
        _queue("drain_timeout: 3s"),
        "4:5: unknown setting 'drain_timeout' for queue 'a'; it holds for the whole project and stands at the top of the file",
    ),
    "unknown key of a queue called backoff": (
        "queues:\n  backoff: {attemps: 3}\n",
        "2:13: unknown setting 'attemps' for queue 'backoff'; did you mean 'attempts'?",
    ),
    "queue called like a part of a union": (
        "queues:\n  <single>: taskHandler\n",
        "2:3: queue '<single>': a name cannot hold '<' and '>'; it is 1 to 128 letters, digits, '-', '_' and '.'",
    ),
    "key twice": (
        _queue("attempts: 3\n    attempts: 4"),
        "5:5: 'attempts' is here twice, first in line 4; remove one of them",
    ),
    "queue twice": (
        "queues:\n  a: taskHandler\n  'a': taskHandler\n",
        "3:3: 'a' is here twice, first in line 2; remove one of them",
    ),
    # other systems' words
    "retries": (
        _queue("retries: 3"),
        "4:5: unknown setting 'retries' for queue 'a'; write 'attempts: 4', for attempts counts the first run too",
    ),
    "max_retries": (
        _queue("max_retries: 0"),
        "4:5: unknown setting 'max_retries' for queue 'a'; write 'attempts: 1', for attempts counts the first run too",
    ),
    "maxRetries of no number": (
        _queue("maxRetries: many"),
        "4:5: unknown setting 'maxRetries' for queue 'a'; write 'attempts', which counts the first run too, so it is one more",
    ),
    "concurrencyLimit": (
        _queue("concurrencyLimit: 3"),
        "4:5: unknown setting 'concurrencyLimit' for queue 'a'; here it is called 'concurrency'",
    ),
    "max_attempts": (
        _queue("max_attempts: 3"),
        "4:5: unknown setting 'max_attempts' for queue 'a'; here it is called 'attempts'",
    ),
    "time_limit": (
        _queue("time_limit: 3"),
        "4:5: unknown setting 'time_limit' for queue 'a'; here it is called 'timeout'",
    ),
    "ttl": (_queue("ttl: 3"), "4:5: unknown setting 'ttl' for queue 'a'; here it is called 'expires'"),
    "dlq": (_queue("dlq: x"), "4:5: unknown setting 'dlq' for queue 'a'; here it is called 'dead_letter'"),
    "deadLetter": (
        _queue("deadLetter: x"),
        "4:5: unknown setting 'deadLetter' for queue 'a'; did you mean 'dead_letter'?",
    ),
    "kind": (
        _queue("backoff: {kind: fixed}"),
        "4:15: unknown setting 'kind' in 'backoff' of queue 'a'; here it is called 'type'",
    ),
    "graceful_timeout": (
        "graceful_timeout: 3s\n" + Q,
        "1:1: unknown setting 'graceful_timeout'; here it is called 'drain_timeout'",
    ),
    "visibility_timeout": (
        _queue("visibility_timeout: 30s"),
        (
            "4:5: unknown setting 'visibility_timeout' for queue 'a'; a running message is never given out twice, "
            "so no such time is needed; remove it"
        ),
    ),
    # values
    "not a number": (
        _queue("attempts: many"),
        "4:15: 'attempts' of queue 'a' must be a whole number from 1 to 1,000,000, not the text 'many'",
    ),
    "number in quotes": (
        _queue("attempts: '3'"),
        "4:15: 'attempts' of queue 'a' must be a whole number from 1 to 1,000,000, not the text '3'; write 3 without quotes",
    ),
    "underscores": (
        "send_buffer: 1_000\n" + Q,
        "1:14: 'send_buffer' must be a whole number from 1 to 100,000,000, not the text '1_000'; write 1000",
    ),
    "zero attempts": (
        _queue("attempts: 0"),
        (
            "4:15: 'attempts' of queue 'a' must be a whole number from 1 to 1,000,000, not the number 0; "
            "it counts the first run, so write 1 for no retry"
        ),
    ),
    "half a crash": (
        _queue("max_crashes: 1.5"),
        "4:18: 'max_crashes' of queue 'a' must be a whole number from 1 to 1,000, not the number 1.5",
    ),
    "true attempts": (
        _queue("attempts: true"),
        "4:15: 'attempts' of queue 'a' must be a whole number from 1 to 1,000,000, not true",
    ),
    "priority": (
        _queue("priority: 10"),
        "4:15: 'priority' of queue 'a' must be a whole number from 0 to 9, not the number 10",
    ),
    "no value": (_queue("attempts:"), "4:14: 'attempts' of queue 'a' has no value; write one, or remove the line"),
    "no handler": (
        "queues:\n  a:\n",
        "2:5: queue 'a' has no handler; write one after the ':', or {} for a queue that is only sent to",
    ),
    "handler a list": (
        "queues: {a: [x]}\n",
        "1:13: queue 'a' must be a handler such as 'mail' (handlers/mail.py) or 'mail.send', not a list",
    ),
    "duration": (
        _queue("timeout: soon"),
        "4:14: 'timeout' of queue 'a' must be a duration such as 30s or 1h30m, or none, not the text 'soon'",
    ),
    "duration without unit": (
        _queue("timeout: '30'"),
        (
            "4:14: 'timeout' of queue 'a' must be a duration such as 30s or 1h30m, or none, not the text '30'; "
            "write 30s for seconds, or m, h, d for longer units"
        ),
    ),
    "sexagesimal": (
        _queue("timeout: 1:30"),
        (
            "4:14: 'timeout' of queue 'a' must be a duration such as 30s or 1h30m, or none, not the text '1:30'; "
            "write 1m30s or 1h30m"
        ),
    ),
    "duration in prose": (
        _queue("expires: 5 minutes"),
        "4:14: 'expires' of queue 'a' must be a duration such as 30s or 1h30m, or none, not the text '5 minutes'; write 5m",
    ),
    "never": (
        _queue("timeout: never"),
        (
            "4:14: 'timeout' of queue 'a' must be a duration such as 30s or 1h30m, or none, not the text 'never'; "
            "write none for no limit"
        ),
    ),
    "zero timeout": (
        _queue("timeout: 0"),
        "4:14: 'timeout' of queue 'a' must be longer than 0; write none for no limit",
    ),
    "negative": (
        "drain_timeout: -5\n" + Q,
        "1:16: 'drain_timeout' must be a duration such as 30s or 1h30m, not the number -5",
    ),
    "a century": (
        _queue("expires: 99999999999"),
        "4:14: 'expires' of queue 'a' must be a duration of at most ten years, not the number 99999999999",
    ),
    "choice": (
        _queue("order: FIFO"),
        "4:12: 'order' of queue 'a' must be fifo, lifo, key or partition, not the text 'FIFO'; did you mean 'fifo'?",
    ),
    "jitter in percent": (
        _queue("backoff: {jitter: 20%}"),
        "4:23: 'backoff.jitter' of queue 'a' must be a number from 0 to 1, such as 0.2, not the text '20%'; write 0.2",
    ),
    "factor": (
        _queue("backoff: {factor: .5}"),
        "4:23: 'backoff.factor' of queue 'a' must be a number from 1 to 1,000, such as 2, not the number 0.5",
    ),
    "factor of fixed": (
        _queue("backoff: {type: fixed, factor: 2}"),
        "4:36: 'backoff.factor' of queue 'a' has no meaning for type fixed; remove it, or write type: exponential",
    ),
    "max below delay": (
        _queue("backoff: {delay: 10s, max: 5s}"),
        "4:32: 'backoff.max' of queue 'a' is shorter than the first delay; make it longer, or 'delay' shorter",
    ),
    "no delays": (_queue("backoff: []"), "4:14: 'backoff' of queue 'a' must have 1 to 100 durations, not 0"),
    "a delay of no duration": (
        _queue("backoff: [1s, x]"),
        "4:19: 'backoff' of queue 'a' must be a duration such as 30s or 1h30m, not the text 'x'",
    ),
    "rule without when": (
        _queue("errors: [{then: reject}]"),
        "4:14: a rule of 'errors' of queue 'a' has no 'when'; write the class of the exception, as in `when: ValueError`",
    ),
    "rule of a text": (
        _queue("errors: [ValueError]"),
        (
            "4:14: a rule of 'errors' of queue 'a' must be a mapping such as {when: ValueError, then: reject}, "
            "not the text 'ValueError'"
        ),
    ),
    "rule of no class": (
        _queue("errors: [{when: not a class}]"),
        (
            "4:21: 'errors.when' of queue 'a' must be the class of an exception, such as ValueError or httpx.ConnectError, "
            "not the text 'not a class'"
        ),
    ),
    "reject after a while": (
        _queue("errors: [{when: A, then: reject, backoff: 5s}]"),
        "4:47: 'backoff' has no meaning beside 'then: reject'; remove one of them",
    ),
    "middleware of a text": (
        _queue("middleware: mail"),
        "4:17: 'middleware' of queue 'a' must be a list, not the text 'mail'; write [mail]",
    ),
    "prefix a number": (
        "prefix: 7\n" + Q,
        "1:9: 'prefix' must be at most 64 letters, digits, '-', '_' and '.', not the number 7; put it in quotes",
    ),
    "prefix": (
        "prefix: a/b\n" + Q,
        "1:9: 'prefix' must be at most 64 letters, digits, '-', '_' and '.', not the text 'a/b'",
    ),
    "ledger": (
        "ledger: foo.db\n" + Q,
        "1:9: 'ledger' must be sqlite:PATH or off, not the text 'foo.db'; write 'sqlite:foo.db'",
    ),
    "ledger on": ("ledger: on\n" + Q, "1:9: 'ledger' must be sqlite:PATH or off, not the text 'on'"),
    "defaults a text": ("defaults: x\n" + Q, "1:11: 'defaults' must be a mapping, not the text 'x'"),
    # names
    "differing by case": (
        "queues:\n  mail: taskHandler\n  Mail: taskHandler\n",
        "3:3: queues 'mail' (line 2) and 'Mail' differ only in upper and lower case; rename one",
    ),
    "bad name": (
        "queues:\n  a b!: taskHandler\n",
        "2:3: queue 'a b!': a name cannot hold ' ' and '!'; it is 1 to 128 letters, digits, '-', '_' and '.'",
    ),
    "long name": (
        f"queues:\n  {'y' * 129}: taskHandler\n",
        f"2:3: the name of queue '{'y' * 57}…' has 129 characters; 128 is the most",
    ),
    "dots": (
        "queues: {..: taskHandler}\n",
        "1:10: a queue cannot be called '..'; a name is 1 to 128 letters, digits, '-', '_' and '.'",
    ),
    "variable in a name": (
        "queues: {'${X}': taskHandler}\n",
        "1:10: queue '${X}': a queue's name cannot hold a variable; use 'prefix' to tell environments apart",
    ),
    "our name": (
        "queues: {handrail.delay.1: taskHandler}\n",
        "1:10: queue 'handrail.delay.1': names that start with 'handrail.delay' belong to handrail; call it something else",
    ),
    # dead letters
    "own queue": (
        _queue("dead_letter: a"),
        "4:18: the dead letters of queue 'a' would go to itself ('a'); name another place in 'dead_letter'",
    ),
    "another queue": (
        "queues:\n  a: taskHandler\n  a.dead: taskHandler\n",
        "2:6: the dead letters of queue 'a' would go to queue 'a.dead' ('a.dead'); name another place in 'dead_letter'",
    ),
    "another's place": (
        "queues:\n  a: taskHandler\n  b: {handler: taskHandler, dead_letter: a.dead}\n",
        "3:42: queues 'a' and 'b' share 'a.dead' for their dead letters; each needs its own",
    ),
    "one place for all": (
        "defaults: {dead_letter: dead}\n" + Q,
        "1:25: 'dead_letter' of defaults can only be true or false; each queue needs a place of its own, so name it there",
    ),
    "dead letters to a number": (
        _queue("dead_letter: 5"),
        "4:18: 'dead_letter' of queue 'a' must be the name of a place for dead letters, or false to drop them, not the number 5",
    ),
    # brokers
    "no such scheme": (
        "broker: redis://h\n" + Q,
        "1:9: 'broker': no adapter is known for 'redis://h'; use",
    ),
    "not a URL": ("broker: somewhere\n" + Q, "1:9: 'broker': 'somewhere' is not a URL; use"),
    "no such broker": (
        "brokers: {main: 'sqlite:a'}\n" + _queue("broker: mian"),
        "5:13: 'broker' of queue 'a': there is no broker 'mian' under 'brokers'; did you mean 'main'?",
    ),
    "no brokers": (
        _queue("broker: main"),
        "4:13: 'broker' of queue 'a': there is no broker 'main' under 'brokers'; name it there, or write a URL",
    ),
    "broker without a URL": (
        "brokers: {m: {uri: 'sqlite:a'}}\n" + Q,
        "1:15: broker 'm' has no 'url'; write 'url' for 'uri'",
    ),
    "broker's name": (
        "brokers: {a/b: 'sqlite:a'}\n" + Q,
        "1:11: a broker cannot be called 'a/b'; a name is 1 to 64 letters, digits, '-', '_' and '.'",
    ),
    "two default brokers": (
        "broker: 'sqlite:a'\nbrokers: {default: 'sqlite:b'}\n" + Q,
        "2:11: the broker 'default' is given here and as 'broker'; remove one of them",
    ),
    "another broker's key": (
        _queue("queue_type: quorum"),
        "4:5: 'queue_type' of queue 'a' is for amqp: or amqps: alone, and this queue is on sqlite:; remove it",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_each_mistake_is_one_line_with_its_place_and_its_mend(project, name):
    """A file with one mistake gets one line that says where, what and how to mend it."""
    text, expected = FILES[name]
    found = project.problems(text)

    assert len(found) == 1, found
    # lists of brokers depend on what is installed
    shown = found[0].split("; use ")[0] + "; use" if expected.endswith("; use") else found[0]
    assert shown == f"queues.yaml:{expected}"


def test_all_problems_are_told_at_once_in_the_order_of_the_file(project):
    """One run shows everything there is to mend, from the shape down to the handlers."""
    found = project.problems(
        """
drain_timeout: soon
prefx: x
queues:
  a: {handler: nowhere, attempts: many}
  b: mail.send_welcom
  b: taskHandler
  c: {handler: "${UNSET_VARIABLE}", order: filo}
"""
    )

    assert [line.split(" ")[0] for line in found] == [
        "queues.yaml:2:16:",
        "queues.yaml:3:1:",
        "queues.yaml:5:16:",
        "queues.yaml:5:35:",
        "queues.yaml:6:6:",
        "queues.yaml:7:3:",
        "queues.yaml:8:16:",
        "queues.yaml:8:44:",
    ]


def test_a_missing_file_a_folder_and_an_unreadable_one_are_told(project, tmp_path):
    """What cannot be read is said in the same form."""
    found = {}
    (tmp_path / "folder.yaml").mkdir()
    for name in ("none.yaml", "folder.yaml"):
        with pytest.raises(ConfigError) as caught:
            config.load(tmp_path / name)
        found[name] = str(caught.value)

    assert found == {
        "none.yaml": "none.yaml:1:1: there is no such file; `platform new DIR` makes one",
        "folder.yaml": "folder.yaml:1:1: this is a folder; name the file in it",
    }


def test_the_file_is_named_from_the_working_directory(project, monkeypatch, tmp_path):
    """Below the working directory the path is shown, so that a terminal can open it; elsewhere the name is enough."""
    project.write("queues:\n")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path.name}{os.sep}queues.yaml:1:8: ")):
        config.load(project.path)
    monkeypatch.chdir("/")
    monkeypatch.chdir(tmp_path / "handlers")
    with pytest.raises(ConfigError, match=r"^queues\.yaml:1:8: "):
        config.load(project.path)


def test_a_billion_laughs_are_refused(project):
    """Aliases that expand without end are refused before they fill the memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    found = project.problems("\n".join(lines))

    assert len(found) == 1
    assert found[0].endswith("the aliases of this file expand to more than 10,000 values; write fewer of them")


def test_a_large_file_without_aliases_is_fine(project):
    """The bound on aliases does not bound honest files."""
    text = "queues:\n" + "".join(f"  q{n}: {{handler: taskHandler, attempts: 3, timeout: 5s}}\n" for n in range(2000))

    assert len(project.load(text).queues) == 2000


def test_mistakes_read_the_same_without_libyaml(project, monkeypatch):
    """Where PyYAML has no libyaml the places and the words are the same."""
    monkeypatch.setattr(nodes, "_FastLoader", nodes._PureLoader)
    for text, expected in FILES.values():
        if not expected.endswith("; use"):
            assert project.problems(text) == [f"queues.yaml:{expected}"]


KEYS = (
    "queues defaults brokers broker url handler backoff errors when then type delay attempts "
    "middleware options <single> <mapping> default x"
)

_yaml = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["queues", "defaults", "brokers", "broker", "ledger"]), _yaml) | _yaml)
def test_no_values_however_wrong_bring_a_traceback(project, value):
    """Any YAML at all is either settings or lines of problems."""
    project.write(yaml.safe_dump(value))
    try:
        config.load(project.path)
    except ConfigError as error:
        assert all(re.match(r"queues\.yaml:\d+:\d+: \S", line) for line in error.problems)  # noqa: PT017
        assert error.problems  # noqa: PT017


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text("{}[]:-&*!|>'\"%@#?, \n\tab${}<", max_size=60).map(str.encode))
def test_no_text_however_wrong_brings_a_traceback(project, data):
    """Any bytes at all are either settings or lines of problems, one line each."""
    project.write(data)
    try:
        config.load(project.path)
    except ConfigError as error:
        assert error.problems  # noqa: PT017
        assert all("\n" not in line for line in error.problems)  # noqa: PT017
