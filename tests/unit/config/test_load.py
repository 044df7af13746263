"""What a good queues.yaml means."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handrail import config, duration
from handrail.config.model import DEFAULT_BACKOFF, ErrorRule, HandlerRef, QueueSettings, Settings
from handrail.outcome import Backoff


def test_the_short_form_is_a_queue_with_all_defaults(project):
    """``queue: handler`` binds a handler and leaves everything else at its default."""
    found = project.load("queues:\n  taskQueue: taskHandler\n")

    assert found.queues == {
        "taskQueue": QueueSettings(
            name="taskQueue",
            handler=HandlerRef(text="taskHandler", file="taskHandler.py", function="handler"),
            dead_letter="taskQueue.dead",
        )
    }
    assert found.path == str(project.path)
    assert found.root == str(project.root)
    assert found.brokers["default"].url == "sqlite:.platform/queues.db"
    assert found.brokers["default"].root == str(project.root)
    assert found.ledger == "sqlite:.platform/ledger.db"


def test_the_long_form_says_everything_about_a_queue(project):
    """Every key of a queue reaches its settings."""
    found = project.load(
        """
queues:
  welcome-email:
    handler: mail.send_welcome
    concurrency: 5
    attempts: 4
    backoff: {type: exponential, delay: 2s, factor: 3, max: 5m, jitter: 0.2}
    timeout: 30s
    expires: 1h
    max_starts: 100
    max_crashes: 2
    priority: 7
    order: lifo
    isolation: process
    dead_letter: mail.failed
    content: text
    errors:
      - {when: httpx.ConnectError, backoff: [5s, 1m]}
      - {when: ValueError, then: reject}
    middleware: [mail.session]
    options: {anything: [1, two]}
"""
    ).queues["welcome-email"]

    assert found == QueueSettings(
        name="welcome-email",
        handler=HandlerRef(text="mail.send_welcome", file="mail.py", function="send_welcome"),
        concurrency=5,
        attempts=4,
        backoff=Backoff(type="exponential", delay=2.0, factor=3.0, max=300.0, jitter=0.2),
        timeout=30.0,
        expires=3600.0,
        max_starts=100,
        max_crashes=2,
        priority=7,
        order="lifo",
        isolation="process",
        dead_letter="mail.failed",
        content="text",
        errors=(
            ErrorRule(when="httpx.ConnectError", backoff=Backoff(type="list", delays=(5.0, 60.0))),
            ErrorRule(when="ValueError", then="reject"),
        ),
        middleware=(HandlerRef(text="mail.session", file="mail.py", function="session"),),
        options={"anything": [1, "two"]},
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[0s, 1s, 30s]", Backoff(type="list", delays=(0.0, 1.0, 30.0))),
        ("10s", Backoff(type="fixed", delay=10.0)),
        ("10", Backoff(type="fixed", delay=10.0)),
        ("{type: constant, delay: 5s}", Backoff(type="fixed", delay=5.0)),
        ("{type: linear, delay: 5s, max: none}", Backoff(type="linear", delay=5.0)),
        ("{delay: 250ms}", Backoff(type="exponential", delay=0.25)),
    ],
)
def test_backoff_is_a_mapping_a_list_or_one_duration(project, written, expected):
    """A backoff may be written in full, as a list of waits, or as one fixed wait."""
    found = project.load(f"queues:\n  a: {{handler: taskHandler, backoff: {written}}}\n")

    assert expected == found.queues["a"].backoff


def test_defaults_hold_where_a_queue_says_nothing(project):
    """A queue's own key replaces the default; the other defaults stay."""
    found = project.load(
        """
defaults: {attempts: 7, timeout: none, middleware: [mail.session], dead_letter: false, errors: [{when: KeyError}]}
queues:
  a: taskHandler
  b: {handler: taskHandler, attempts: 2, middleware: [], dead_letter: true, timeout: 5s}
"""
    ).queues

    assert (found["a"].attempts, found["a"].timeout, len(found["a"].middleware), found["a"].dead_letter) == (
        7,
        None,
        1,
        None,
    )
    assert (found["b"].attempts, found["b"].timeout, found["b"].middleware, found["b"].dead_letter) == (
        2,
        5.0,
        (),
        "b.dead",
    )
    assert found["a"].errors == found["b"].errors == (ErrorRule(when="KeyError"),)


def test_the_project_s_own_settings(project):
    """The keys at the top of the file reach the settings."""
    found = project.load(
        """
prefix: staging.
drain_timeout: 1m
send_timeout: 5
send_buffer: 10
max_message_bytes: 2000
ledger: off
queues: {a: taskHandler}
"""
    )

    assert (found.prefix, found.drain_timeout, found.send_timeout) == ("staging.", 60.0, 5.0)
    assert (found.send_buffer, found.max_message_bytes, found.ledger) == (10, 2000, None)
    assert found.brokers["default"].prefix == "staging."


def test_queues_name_their_broker_or_give_its_url(project):
    """``broker:`` is a name under ``brokers:`` or a URL; the same URL is one broker."""
    found = project.load(
        """
broker: {url: "sqlite:main.db", busy: 5}
brokers: {other: "sqlite:other.db"}
queues:
  a: taskHandler
  b: {handler: taskHandler, broker: other}
  c: {handler: taskHandler, broker: "sqlite:third.db"}
  d: {handler: taskHandler, broker: "sqlite:third.db"}
  e: {handler: taskHandler, broker: "sqlite:other.db"}
"""
    )

    assert {name: queue.broker for name, queue in found.queues.items()} == {
        "a": "default",
        "b": "other",
        "c": "sqlite:third.db",
        "d": "sqlite:third.db",
        "e": "other",
    }
    assert found.brokers["default"].options == {"busy": 5}
    assert found.brokers["sqlite:third.db"].url == "sqlite:third.db"


def test_the_default_broker_may_be_one_of_those_named(project):
    """``broker: name`` makes a named broker the default, and nothing else is opened."""
    found = project.load("broker: main\nbrokers: {main: 'sqlite:m.db'}\nqueues: {a: taskHandler}\n")

    assert found.queues["a"].broker == "main"
    assert list(found.brokers) == ["main"]


def test_a_default_broker_that_no_queue_uses_is_not_there(project):
    """The embedded broker is not opened when every queue names another."""
    found = project.load("brokers: {m: 'sqlite:m.db'}\nqueues: {a: {handler: taskHandler, broker: m}}\n")

    assert list(found.brokers) == ["m"]


def test_a_queue_without_a_handler_is_only_sent_to(project):
    """``queue: {}`` declares a queue whose handler lives elsewhere."""
    assert project.load("queues:\n  a: {}\n").queues["a"].handler is None


@pytest.mark.parametrize("name", ["on", "007", "null", "1.5", "yes", "2026-01-01", "a-b_c.D"])
def test_a_queue_may_have_a_name_that_yaml_takes_for_something_else(project, name):
    """Names are what is written, whatever YAML 1.1 would make of them."""
    assert list(project.load(f"queues:\n  {name}: taskHandler\n").queues) == [name]


@pytest.mark.parametrize("word", ["off", "no", "false", "'off'"])
def test_off_no_and_false_all_drop_dead_letters(project, word):
    """``dead_letter: no`` means what it says."""
    found = project.load(f"queues: {{a: {{handler: taskHandler, dead_letter: {word}}}}}\n")

    assert found.queues["a"].dead_letter is None


def test_anchors_aliases_merges_and_x_keys_are_fine(project):
    """Anchors may be kept under ``x-…`` and merged into queues, whose own keys win."""
    found = project.load(
        """
x-common: &common {attempts: 7, timeout: 5s}
queues:
  a: {<<: *common, handler: taskHandler, timeout: 9s}
  b: {<<: [{attempts: 2}, *common], handler: taskHandler}
"""
    ).queues

    assert (found["a"].attempts, found["a"].timeout) == (7, 9.0)
    assert (found["b"].attempts, found["b"].timeout) == (2, 5.0)


def test_keys_of_another_broker_in_defaults_pass_queues_by(project):
    """``defaults`` may hold what only some queues' brokers know."""
    assert project.load("defaults: {queue_type: quorum}\nqueues: {a: taskHandler}\n").queues["a"].options == {}


def test_a_byte_order_mark_and_windows_line_ends_are_fine(project):
    """A file saved by another system's editor loads."""
    assert list(project.load(b"\xef\xbb\xbfqueues:\r\n  a: taskHandler\r\n").queues) == ["a"]


def test_without_checking_the_handlers_may_be_absent(project):
    """An application that only sends does not need the handlers."""
    found = project.load("queues: {a: gone.away}\n", check_handlers=False)

    assert found.queues["a"].handler == HandlerRef(text="gone.away", file="gone.py", function="away")


def test_settings_cross_a_process_unchanged(project):
    """Settings survive msgpack, as the pipe to the hosts needs."""
    found = project.load("queues: {a: {handler: taskHandler, backoff: [1s], options: {x: 1}}}\n")

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Settings) == found


def test_a_project_mounted_by_symbolic_link_is_where_the_link_is(project, tmp_path):
    """A queues.yaml that is itself a link, as in a Kubernetes mount, has its project beside the link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.yaml").write_text("queues: {a: taskHandler}\n")
    project.path.symlink_to(elsewhere / "data.yaml")

    assert config.load(project.path).root == str(project.root)


def test_importing_config_imports_no_parser():
    """Application code that imports handrail does not pay for pydantic and YAML before it loads."""
    code = "import sys, handrail.config; print([m for m in ('pydantic', 'yaml', 'msgspec') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert found.stdout.strip() == "[]"


_durations = st.integers(0, 10**9).map(lambda ms: ms / 1000)
_backoffs = st.one_of(
    st.lists(_durations, min_size=1, max_size=4).map(lambda d: Backoff(type="list", delays=tuple(d))),
    _durations.map(lambda d: Backoff(type="fixed", delay=d)),
    st.builds(
        Backoff,
        type=st.sampled_from(["exponential"]),
        delay=st.integers(0, 100).map(float),
        factor=st.integers(1, 9).map(float),
        max=st.none() | st.integers(100, 10_000).map(float),
        jitter=st.sampled_from([0.0, 0.25, 1.0]),
    ),
)
_names = st.text("abcXYZ019-_.", min_size=1, max_size=12).filter(lambda name: name.strip(".")).map(lambda n: "q" + n)
_queues = st.builds(
    QueueSettings,
    name=st.just(""),
    handler=st.just(HandlerRef(text="taskHandler", file="taskHandler.py", function="handler")),
    concurrency=st.none() | st.integers(1, 10_000),
    attempts=st.integers(1, 1000),
    backoff=_backoffs | st.just(DEFAULT_BACKOFF),
    timeout=st.none() | _durations.filter(bool),
    expires=st.none() | _durations.filter(bool),
    max_starts=st.none() | st.integers(1, 99),
    max_crashes=st.integers(1, 99),
    priority=st.integers(0, 9),
    order=st.sampled_from(["fifo", "lifo"]),
    isolation=st.sampled_from(["none", "process"]),
    content=st.sampled_from(["json", "text", "bytes"]),
    errors=st.lists(
        st.builds(
            ErrorRule, when=st.sampled_from(["ValueError", "a.B"]), then=st.just("retry"), backoff=st.none() | _backoffs
        ),
        max_size=2,
    ).map(tuple),
)


def _written_backoff(backoff: Backoff) -> object:
    if backoff.type == "list":
        return [duration.text(each) for each in backoff.delays]
    if backoff.type == "fixed":
        return duration.text(backoff.delay)
    return {
        "type": backoff.type,
        "delay": duration.text(backoff.delay),
        "factor": backoff.factor,
        "max": "none" if backoff.max is None else duration.text(backoff.max),
        "jitter": backoff.jitter,
    }


def _written(queue: QueueSettings) -> dict[str, object]:
    found = {
        key: getattr(queue, key) for key in ("attempts", "max_crashes", "priority", "order", "isolation", "content")
    }
    found["handler"] = queue.handler.text
    found["concurrency"] = "auto" if queue.concurrency is None else queue.concurrency
    found["max_starts"] = "none" if queue.max_starts is None else queue.max_starts
    found["timeout"] = "none" if queue.timeout is None else duration.text(queue.timeout)
    found["expires"] = None if queue.expires is None else duration.text(queue.expires)
    found["backoff"] = _written_backoff(queue.backoff)
    found["errors"] = [
        {"when": rule.when} | ({} if rule.backoff is None else {"backoff": _written_backoff(rule.backoff)})
        for rule in queue.errors
    ]
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_names, _queues, min_size=1, max_size=3), st.booleans())
def test_what_is_written_is_what_is_loaded(project, queues, flow):
    """Any settings, written as YAML in either style, load as themselves."""
    queues = {
        name: queue
        for name, queue in queues.items()
        if not any(n != name and n.casefold() in {name.casefold(), f"{name}.dead".casefold()} for n in queues)
    }
    if not queues:
        return
    queues = {name: msgspec.structs.replace(queue, name=name, dead_letter=None) for name, queue in queues.items()}
    text = yaml.safe_dump(
        {"queues": {name: _written(queue) | {"dead_letter": False} for name, queue in queues.items()}},
        default_flow_style=flow,
    )

    assert project.load(text).queues == queues
