"""The log set-up and the journal."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from handrail import logs
from handrail.outcome import Outcome


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.collect()  # what it says of tests before shall not come in the midst of this one
    for name in (logs.VARIABLE, "NO_COLOR"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards, whatever a test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm")
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    for handler in [each for each in logging.getLogger().handlers if isinstance(each, logs._Standard)]:
        logging.getLogger().removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def json_log(level: str | None = None) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(colors=False, level=level, stream=stream)
    return stream


def people_log() -> io.StringIO:
    os.environ["NO_COLOR"] = "1"
    stream = io.StringIO()
    logs.configure(colors=True, stream=stream)
    return stream


def python(code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True, timeout=60, **how
    )


class TestForm:
    def test_a_line_is_one_json_object_when_stderr_is_no_terminal(self) -> None:
        """Away from a terminal every line is one JSON object with time, level, event and the fields."""
        stream = io.StringIO()
        logs.configure(stream=stream)
        structlog.get_logger().info("ready", pid=7, queues=["a"])

        (line,) = lines(stream)

        assert (line["level"], line["event"], line["pid"], line["queues"]) == ("info", "ready", 7, ["a"])
        assert line["timestamp"].endswith("Z")

    def test_a_line_for_people_is_short_and_aligned(self) -> None:
        """A person gets the time of day, the level and the event, without JSON around them."""
        stream = people_log()
        structlog.get_logger().warning("host answers no ping", host=1)

        assert stream.getvalue()[8:] == " warning     host answers no ping  host=1\n"

    def test_colours_go_only_with_a_terminal_that_wants_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines for people carry escape codes, except under NO_COLOR or on a dumb terminal."""
        stream = io.StringIO()
        logs.configure(colors=True, stream=stream)
        structlog.get_logger().info("x")
        assert "\x1b[" in stream.getvalue()

        monkeypatch.setenv("TERM", "dumb")
        stream = io.StringIO()
        logs.configure(colors=True, stream=stream)
        structlog.get_logger().info("x")
        assert "\x1b[" not in stream.getvalue()

    def test_text_of_strangers_cannot_steer_the_terminal(self) -> None:
        """Control characters in a message are shown, not obeyed, and a line stays one line."""
        stream = people_log()
        structlog.get_logger().info("a\x1b[2Jb\nc\x9b")

        assert stream.getvalue()[8:] == " info        a\\x1b[2Jb ⏎ c\\x9b\n"

    def test_what_json_cannot_say_is_logged_all_the_same(self) -> None:
        """Objects, lone surrogates and odd keys become text instead of an error."""
        stream = json_log()
        structlog.get_logger().info("x", thing=object, text="\ud800", odd={1: {2}, (3,): 4})

        (line,) = lines(stream)

        assert line["text"] == "\ud800"

    def test_lines_of_other_libraries_have_the_same_form(self) -> None:
        """What goes through the standard library's logging comes out like our own lines."""
        stream = json_log()
        logging.getLogger("some.library").warning("%d%% of %s", 10, "it")

        (line,) = lines(stream)

        assert (line["event"], line["level"], line["logger"]) == ("10% of it", "warning", "some.library")

    def test_a_broken_logging_call_is_logged_as_it_is(self) -> None:
        """A format that does not fit its arguments costs nobody an exception."""
        stream = json_log()
        # past pytest's own handler, which makes a failure of it
        logs._Standard().emit(logging.LogRecord("app", logging.ERROR, "x.py", 1, "%d", ("no number",), None))

        assert lines(stream)[0]["event"] == "%d ('no number',)"

    def test_an_exception_is_a_block_under_its_line(self) -> None:
        """For people the traceback stands indented below the line."""
        stream = people_log()
        try:
            raise KeyError("gone")
        except KeyError:
            structlog.get_logger().exception("boom")

        head, *block = stream.getvalue().splitlines()
        assert head.endswith(" error       boom")
        assert block[-1] == "    KeyError: 'gone'"


class TestLevel:
    def test_the_variable_sets_the_level(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """HANDRAIL_LOG is the level where the caller names none."""
        monkeypatch.setenv(logs.VARIABLE, "ERROR")
        stream = json_log()
        structlog.get_logger().warning("not this")
        structlog.get_logger().error("this")

        assert [line["event"] for line in lines(stream)] == ["this"]

    def test_off_is_silent(self) -> None:
        """The level `off` writes nothing at all."""
        stream = json_log("off")
        structlog.get_logger().error("x")
        logging.getLogger("x").critical("x")
        logs.Journal().job(Outcome.DEAD, "q", "1", 1, 0.1, reason="x")

        assert stream.getvalue() == ""

    def test_an_unknown_level_is_refused_with_those_there_are(self) -> None:
        """A misspelt level is an error that lists the levels."""
        with pytest.raises(
            ValueError, match="unknown log level 'verbose'; use one of debug, info, warning, error, off"
        ):
            logs.level_number("verbose")


class TestSecrets:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("amqp://me:secret@host/v", "amqp://me:***@host/v"),
            ("at postgres://me:p@ss@host:5432/db, gone", "at postgres://me:***@host:5432/db, gone"),
            ("kafka://h:9092?sasl_password=secret&x=1", "kafka://h:9092?sasl_password=***&x=1"),
            ("https://example.org/a?b=c", "https://example.org/a?b=c"),
            ("no url: me:secret@host", "no url: me:secret@host"),
        ],
    )
    def test_the_password_of_a_url_is_masked(self, text: str, shown: str) -> None:
        """A URL keeps its form and loses its password."""
        assert logs.without_secrets(text) == shown

    def test_every_place_of_a_line_is_masked(self) -> None:
        """Event, fields, what is nested in them, exceptions and job lines: nowhere stands a password."""
        stream = json_log()
        url = "amqp://me:secret@host"
        try:
            raise ConnectionError(url)
        except ConnectionError as error:
            structlog.get_logger().exception(url, url=url, nested={"a": [url, (url,)]}, error=error)
        logging.getLogger("x").error("%s", url)
        logs.Journal().job(Outcome.FAILED, "q", "1", 1, 0.1, reason=url, traceback=url)

        assert "secret" not in stream.getvalue()
        assert stream.getvalue().count("amqp://me:***@host") == 9


class TestJournal:
    def test_a_job_line_says_queue_id_attempt_and_duration(self) -> None:
        """One line an outcome with all that is needed to find the job again."""
        stream = json_log()
        logs.Journal().job(Outcome.COMPLETED, "mail", "id-1", 2, 0.0123)

        (line,) = lines(stream)

        assert {key: line[key] for key in ("level", "outcome", "queue", "id", "attempt", "duration_ms")} == {
            "level": "info",
            "outcome": "completed",
            "queue": "mail",
            "id": "id-1",
            "attempt": 2,
            "duration_ms": 12.3,
        }

    def test_a_failed_line_says_why_and_when_it_is_tried_again(self) -> None:
        """For people: reason and wait on the line, the traceback as an indented block."""
        stream = people_log()
        logs.Journal().job(
            Outcome.FAILED, "mail", "id-1", 1, 0.5, reason="ValueError: no", traceback="Traceback\n  x\n", next_in=90.0
        )

        head, *block = stream.getvalue().splitlines()
        assert head[8:] == " failed      mail  id-1  attempt 1  500ms  ValueError: no; next in 1m30s"
        assert block == ["    Traceback", "      x"]

    def test_completed_lines_beyond_the_rate_fold_into_one_a_queue(self) -> None:
        """The rest of a second's completed jobs are one line a queue with count, mean and longest."""
        stream = json_log()
        journal = logs.Journal(lines=2)

        async def burst() -> None:
            for n in range(6):
                journal.job(Outcome.COMPLETED, "a" if n < 4 else "b", f"{n}", 1, n / 1000)

        asyncio.run(burst())
        journal.flush()

        found = lines(stream)
        assert [line.get("id") for line in found] == ["0", "1", None, None]
        assert [(f["queue"], f["count"], f["mean_ms"], f["max_ms"]) for f in found[2:]] == [
            ("a", 2, 2.5, 3.0),
            ("b", 2, 4.5, 5.0),
        ]

    def test_a_bursts_summary_does_not_wait_for_the_next_job(self) -> None:
        """The summary of the last second comes by itself while a loop runs."""
        stream = json_log()
        journal = logs.Journal(lines=0)

        async def burst() -> None:
            journal.job(Outcome.COMPLETED, "a", "1", 1, 0.001)
            async with asyncio.timeout(10):
                while not stream.getvalue():
                    await asyncio.sleep(0.02)

        asyncio.run(burst())

        assert lines(stream)[0]["count"] == 1

    def test_failures_never_fold(self) -> None:
        """Whatever the rate, each outcome that is not `completed` has its own line."""
        stream = json_log()
        journal = logs.Journal(lines=0)
        for n in range(200):
            journal.job(Outcome.DEAD, "a", f"{n}", 1, 0.001, reason="x")

        assert len(lines(stream)) == 200

    def test_a_level_switches_completed_lines_off(self) -> None:
        """From `warning` on, only what went wrong is written."""
        stream = json_log("warning")
        journal = logs.Journal()
        journal.job(Outcome.COMPLETED, "a", "1", 1, 0.001)
        journal.job(Outcome.INTERRUPTED, "a", "2", 1, 0.001)
        journal.job(Outcome.FAILED, "a", "3", 1, 0.001)
        journal.flush()

        assert [line["id"] for line in lines(stream)] == ["3"]


class TestSink:
    @pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
    def test_a_closed_or_full_stderr_kills_nothing(self, stderr: str) -> None:
        """The work goes on when no line can be written."""
        code = "from handrail import logs; import structlog; logs.configure(); structlog.get_logger().error('x'); print('on')"
        ran = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" -c "$1" {stderr}', sys.executable, code],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ran.stdout, ran.returncode) == ("on\n", 0)

    def test_a_broken_pipe_kills_nothing(self) -> None:
        """The reader of stderr may end at any time."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            ran = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import structlog; from handrail import logs; logs.configure(); structlog.get_logger().error(1); print('on')",
                ],
                check=False,
                stdout=subprocess.PIPE,
                stderr=writer,
                text=True,
                timeout=60,
            )
        finally:
            os.close(writer)
        assert (ran.stdout, ran.returncode) == ("on\n", 0)

    def test_a_reader_who_stops_reading_stops_nobody(self) -> None:
        """While nobody reads stderr, writing returns at once; what was written arrives whole when it is read again."""
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            sink = logs.Sink(stream)
            wrote = threading.Event()
            text = "".join(f"{n:09}\n" for n in range(40_000))  # more than a pipe holds

            def write() -> None:
                for at in range(0, len(text), 10):
                    sink.write(text[at : at + 10])
                wrote.set()

            threading.Thread(target=write, daemon=True).start()
            assert wrote.wait(30)
            got = bytearray()
            while len(got) < len(text):
                got += os.read(reader, 65536)
        os.close(reader)

        assert got.decode() == text

    def test_what_nobody_reads_is_dropped_and_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond the backlog's bound lines are lost, and the log says how many."""
        monkeypatch.setattr(logs, "BACKLOG_BYTES", 1000)
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            sink = logs.Sink(stream)
            for _ in range(200):
                sink.write("x" * 1023 + "\n")
            got = bytearray()
            while b"dropped" not in got:
                got += os.read(reader, 65536)
        os.close(reader)

        assert got.endswith(b"log lines were dropped because nobody read them\n")

    def test_a_stream_without_a_descriptor_is_written_as_it_is(self) -> None:
        """A test's StringIO works, and so does one that is closed under us."""
        stream = io.StringIO()
        sink = logs.Sink(stream)
        sink.write("a")
        assert stream.getvalue() == "a"
        stream.close()
        sink.write("b")

    def test_lines_written_just_before_the_end_arrive(self) -> None:
        """Nothing is left in a buffer when the process ends."""
        ran = python(
            "from handrail import logs; import structlog, os; logs.configure(); structlog.get_logger().info('last'); os._exit(3)"
        )
        assert (json.loads(ran.stderr)["event"], ran.returncode) == ("last", 3)
