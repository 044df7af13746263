"""How every end of the command becomes one line and an exit code."""

from __future__ import annotations

import subprocess

import pytest

from handrail import errors
from handrail.cli import app
from handrail.cli.exit_codes import ExitCode


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NoProjectError("x"), 2),
        (errors.UnknownQueueError("x"), 2),
        (errors.InvalidOptionError("x"), 2),
        (errors.BrokerError("x"), 3),
        (errors.SendTimeoutError("x"), 3),
        (errors.BufferFullError("x"), 3),
        (errors.AlreadyRunningError("x"), 4),
        (errors.StartError("x"), 5),
        (errors.HandrailError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code tells a script what went wrong, and stderr holds one line."""
    assert app._explain(error) == code
    assert capsys.readouterr().err == "platform: x\n"


def test_all_problems_of_a_config_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem of queues.yaml has its own line, and nothing stands around them."""
    assert app._explain(errors.ConfigError(["queues.yaml:1:1: a", "queues.yaml:2:1: b"])) == ExitCode.USAGE
    assert capsys.readouterr().err == "queues.yaml:1:1: a\nqueues.yaml:2:1: b\n"


def test_an_unexpected_error_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """What handrail did not expect is one line too, and says how to see more."""
    assert app._explain(KeyError("x")) == ExitCode.FAILED
    assert "--debug" in capsys.readouterr().err


def test_no_password_is_in_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL in an error has lost its password."""
    app._explain(errors.BrokerError("cannot reach amqp://me:secret@host"))
    assert capsys.readouterr().err == "platform: cannot reach amqp://me:***@host\n"


def test_debug_shows_the_traceback(project) -> None:
    """--debug is taken anywhere on the line and shows the traceback above the line; the exit code stays."""
    for words in (["--debug", "queues"], ["queues", "--debug"]):
        ran = project.run(*words)
        assert ran.returncode == 2
        assert "Traceback" in ran.stderr
        assert "NoProjectError" in ran.stderr


def test_a_misspelt_command_is_told_the_nearest(project) -> None:
    """`platform quues` asks whether `queues` was meant."""
    assert "did you mean 'queues'?" in project.refused("quues", code=2)


def test_a_missing_argument_names_the_command_whose_help_to_read(project) -> None:
    """A usage error is one line that ends with the help to ask for."""
    said = project.refused("send", code=2)
    assert "QUEUE" in said
    assert said.endswith("platform send --help\n")


def test_the_help_documents_the_exit_codes(project) -> None:
    """`platform --help` lists every exit code."""
    said = " ".join(project.ok("--help").split())
    for word in ("0 done", "1 it could", "2 the", "3 the broker", "4 already running", "5 the worker", "130, 143"):
        assert word in said


def test_a_reader_that_had_enough_is_no_error(project) -> None:
    """`platform … | head` ends quietly."""
    ran = subprocess.run(
        ["bash", "-c", "set -o pipefail; platform schema | head -c 10"],
        env={**project.environment, "PATH": f"{_bin()}:{project.environment['PATH']}"},
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.stderr, len(ran.stdout)) == ("", 10)


def _bin() -> str:
    import sys
    from pathlib import Path

    return str(Path(sys.executable).parent)


def test_closed_standard_streams_are_no_error(project) -> None:
    """Started with stdin, stdout and stderr closed, no descriptor of ours becomes a standard stream."""
    project.lay()
    process = project.start(shell=f"exec '{_bin()}/platform' check <&- >&- 2>&-")
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (["send", "task", "-5"], "goes behind --, as in: platform send QUEUE -- -5"),
        (["send", "task", "{a:", "1}"], "put single quotes around the message"),
        (["invoke", "task", "{a:", "1}"], "put single quotes around the message"),
        (["send", "task", "1", "--prio", "2"], "No such option: --prio"),
    ],
)
def test_what_a_shell_makes_of_a_message_is_mended(project, words, mend) -> None:
    """A negative number and an unquoted object are the two that everybody types once."""
    assert mend in project.lay().refused(*words, code=2)


def test_a_negative_number_is_sent_behind_two_dashes(project) -> None:
    """The hint works as it is printed."""
    project.lay().ok("send", "task", "--", "-5")
    assert [each["message"] for each in project.json("peek", "task")] == [-5]


def test_a_locale_of_another_encoding_mangles_no_name(project, tmp_path) -> None:
    """Files with names in UTF-8, and messages, are the same under a Latin-1 locale."""
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE.ISO-8859-1")],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("localedef can make no Latin-1 locale here")
    project.root = tmp_path / "prüfung €"
    project.lay()
    project.environment |= {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.ISO-8859-1"}
    project.environment.pop("PYTHONUTF8", None)
    project.ok("send", "task", '"grüße €"')

    assert [each["message"] for each in project.json("peek", "task")] == ["grüße €"]


def test_what_adapters_log_is_not_on_stdout(project) -> None:
    """A broker that cannot be reached leaves stdout empty, so that a program that reads JSON reads none."""
    project.lay(top="broker: amqp://user:secret@127.0.0.1:1/\nsend_timeout: 500ms\n")
    pytest.importorskip("handrail_rabbitmq.adapter")
    ran = project.run("queues", "--json")

    assert (ran.returncode, ran.stdout) == (3, "")
    assert "127.0.0.1:1" in ran.stderr
    assert "secret" not in ran.stderr
