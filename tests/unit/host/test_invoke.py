"""One call without a broker."""

from __future__ import annotations

import pytest

from handrail.config.model import HandlerRef
from handrail.errors import ConfigError
from handrail.host.invoke import invoke
from handrail.pipe import End


def test_a_queues_handler_is_called_once(project):
    """The queue's own settings and the same outcomes as in a worker."""
    project.handler("def handler(message, callback): callback(None, message['n'] + 1)")
    invoked = invoke(project.settings, "q", b'{"n": 1}', in_process=True)

    assert (invoked.end, invoked.detail, invoked.reason) == (End.COMPLETED, [b"2"], "")
    assert invoked.found.where == "handlers/h.py:handler"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("raise Reject('never')", "never"),
        ("raise RetryLater(30)", "the handler asked for it again in 30 s"),
        ("kept.append(callback)", "callback not called within the timeout"),
    ],
)
def test_a_handler_by_its_reference(project, body, reason):
    """It needs no queue; every outcome has a reason in one line."""
    project.write("handlers/x.py", f"from handrail.errors import *\nkept = []\ndef go(message, callback): {body}")
    timeout = 0.3 if "kept" in body else 60.0
    invoked = invoke(project.settings, HandlerRef("x.go", "x.py", "go"), b"1", timeout=timeout, in_process=True)

    assert invoked.reason == reason


def test_sends_and_log_lines_are_handed_back(project):
    """Nothing is published unless somebody is given to do it."""
    project.handler("""
        from handrail import transport
        from handrail.host.job import current_job
        from handrail.message import Message
        def handler(message):
            current_job.get().log("hello")
            transport.current().submit([Message(queue="other", id="1", body=b"2")], lambda failures: None)
        """)
    invoked = invoke(project.settings, "q", b"1", in_process=True)

    assert [one.queue for one in invoked.sends] == ["other"]
    assert invoked.logs == [("info", "hello")]


def test_a_handler_that_cannot_be_loaded_is_a_config_error(project):
    """All problems at once, as for a worker; so is a queue that is not there."""
    project.handler("1/0")
    with pytest.raises(ConfigError, match=r"handlers/h.py:1: ZeroDivisionError"):
        invoke(project.settings, "q", b"1", in_process=True)
    with pytest.raises(ConfigError, match="no queue other; it has q"):
        invoke(project.settings, "other", b"1", in_process=True)


def test_debug_opens_the_debugger_where_it_was_raised(project, monkeypatch, capsys):
    """The frame is the handler's own, locals and all."""
    project.handler("def handler(message):\n    wanted = 42\n    raise ValueError('no')")
    seen = []
    monkeypatch.setattr("pdb.post_mortem", seen.append)
    invoke(project.settings, "q", b"1", debug=True, in_process=True)
    last = seen[0]
    while last.tb_next:
        last = last.tb_next

    assert last.tb_frame.f_locals["wanted"] == 42
    assert "ValueError: no" in capsys.readouterr().err
