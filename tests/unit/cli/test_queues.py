"""`platform send`, `queues`, `peek` and `purge` on a real embedded queue."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess

import pytest
from cli_support import PLATFORM, wait_for

ID = re.compile(r"[0-9a-f]{32}\n")


@pytest.fixture
def laid(project):
    return project.lay("  task: task\n  other: task\n  text: {handler: task, content: text}\n")


def depth(project, queue="task"):
    return next(
        {state: row[state] for state in ("ready", "delayed", "active", "dead")}
        for row in project.json("queues")
        if row["queue"] == queue
    )


def test_send_prints_the_id_once_the_broker_has_it(laid) -> None:
    """One message, one id on stdout, nothing on stderr; the message stands in the queue."""
    ran = laid.run("send", "task", '{"n": 1}')

    assert ID.fullmatch(ran.stdout), ran.stdout + ran.stderr
    assert ran.stderr == ""
    (found,) = laid.json("peek", "task")
    assert (found["id"], found["message"]) == (ran.stdout.strip(), {"n": 1})
    assert depth(laid) == {"ready": 1, "delayed": 0, "active": 0, "dead": 0}


def test_every_option_travels_with_the_message(laid) -> None:
    """id, priority, key, headers and counts arrive as they were given."""
    laid.ok(
        *("send", "task", "null", "--id", "mine-1", "--priority", "9", "--key", "k", "--attempts", "2"),
        *("--header", "a=1", "-H", "b=x=y", "--timeout", "5s", "--expires", "60"),
    )

    (found,) = laid.json("peek", "task")

    assert {name: found[name] for name in ("id", "priority", "key", "headers", "message")} == {
        "id": "mine-1",
        "priority": 9,
        "key": "k",
        "headers": {"a": "1", "b": "x=y"},
        "message": None,
    }


def test_a_delayed_message_waits(laid) -> None:
    """--delay and --at put the message among the delayed ones."""
    laid.ok("send", "task", "1", "--delay", "1h")
    laid.ok("send", "task", "2", "--at", f"{dt.datetime.now(tz=dt.UTC).year + 2}-01-31T09:00")

    assert depth(laid) == {"ready": 0, "delayed": 2, "active": 0, "dead": 0}
    found = laid.json("peek", "task", "--state", "delayed")
    assert [each["message"] for each in found] == [1, 2]


def test_count_sends_it_so_many_times(laid) -> None:
    """--count gives as many ids, and --json a JSON array of them."""
    sent = laid.json("send", "task", "0", "--count", "3")

    assert len({each["id"] for each in sent}) == 3
    assert depth(laid)["ready"] == 3


def test_lines_on_stdin_are_messages_in_their_order(laid) -> None:
    """One JSON message a line; empty lines are none."""
    said = laid.ok("send", "task", "-", stdin='{"n": 1}\n\n2\n"drei"')

    assert len(said.splitlines()) == 3
    assert [each["message"] for each in laid.json("peek", "task")] == [{"n": 1}, 2, "drei"]


def test_a_file_may_hold_lines_or_one_message_over_many_lines(laid) -> None:
    """A pretty-printed document is one message."""
    laid.write("lines.jsonl", "1\n2\n")
    laid.write("one.json", '{\n  "a": [\n    1\n  ]\n}\n')
    laid.ok("send", "task", "@lines.jsonl")
    laid.ok("send", "task", "@one.json")

    assert [each["message"] for each in laid.json("peek", "task")] == [1, 2, {"a": [1]}]


def test_a_bad_line_in_a_file_sends_nothing(laid) -> None:
    """A file is checked whole before its first message leaves; the error names line and column."""
    laid.write("lines.jsonl", '1\n{"a": }\n3\n')

    assert "lines.jsonl:2:7: not JSON" in laid.refused("send", "task", "@lines.jsonl", code=2)
    assert depth(laid)["ready"] == 0


def test_a_bad_line_in_a_stream_says_what_was_sent(laid) -> None:
    """A stream cannot be checked beforehand, so the error says how many messages went before."""
    ran = laid.run("send", "task", "-", stdin="1\n" * 1500 + "x\n")

    assert ran.returncode == 2
    assert "stdin:1501:1: not JSON" in ran.stderr
    assert "1,000 messages were sent" in ran.stderr
    assert depth(laid)["ready"] == 1000


def test_text_and_raw_messages(laid) -> None:
    """--text is a JSON string, or the body itself on a text queue; --raw is any bytes, a file of them one message."""
    laid.ok("send", "task", "--text", "hello")
    laid.ok("send", "text", "--text", "hello")
    (laid.root / "blob").write_bytes(b"\x00\xff\n\n")
    laid.ok("send", "other", "--raw", "@blob")

    assert laid.json("peek", "task")[0]["message"] == "hello"
    assert laid.json("peek", "text")[0]["message"] == "hello"
    assert laid.json("peek", "other")[0]["message"] == {"base64": "AP8KCg=="}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task", "{n: 1}"), "expecting property name enclosed in double quotes at column 2; the shell took"),
        (("taks", "1"), "did you mean 'task'?"),
        (("task", "@nowhere"), "there is no file nowhere"),
        (("task", "@"), "@ wants a file"),
        (("task", "1", "--delay", "soon"), "--delay: 'soon' is not a duration"),
        (("task", "1", "--at", "noon"), "--at 'noon' is not a time"),
        (("task", "1", "--delay", "1s", "--at", "2100-01-01"), "exclude each other"),
        (("task", "1", "--priority", "10"), "priority"),
        (("task", "1", "--priority", "high"), "--priority"),
        (("task", "1", "--id", "a b"), "id"),
        (("task", "1", "--id", "a", "--count", "2"), "--id names one message"),
        (("task", "1", "--header", "x"), "is not NAME=VALUE"),
        (("task", "1", "--text", "--raw"), "exclude each other"),
        (("task", "1", "--attempts", "0"), "--attempts"),
        (("task", "-"), "no message"),
    ],
)
def test_bad_input_is_one_line_that_says_the_mend(laid, words, said) -> None:
    """Each refusal names what is wrong; nothing is sent."""
    code = 1 if said == "no message" else 2
    assert said in laid.refused("send", *words, code=code, stdin="")


def test_too_large_a_message_is_refused(laid) -> None:
    """The limit is named; exit code 2, for sending it again does not help."""
    laid.write("big.json", json.dumps("x" * 1_100_000))
    assert "max_message_bytes" in laid.refused("send", "task", "@big.json", code=2)


def test_a_message_that_cannot_be_sent_is_named_by_its_line(laid) -> None:
    """What people can look up is the line of their file, not a place in a bulk."""
    laid.write("big.jsonl", '1\n"' + "x" * 1_100_000 + '"\n')
    assert laid.refused("send", "task", "@big.jsonl", code=2).startswith("platform: big.jsonl:2: the message for queue")


def test_a_stream_that_pauses_is_sent_so_far(laid) -> None:
    """`tail -f log | platform send task -` does not wait for a full batch, nor for the stream's end."""
    sender = subprocess.Popen(
        [PLATFORM, "send", "task", "-"],
        cwd=laid.root,
        env=laid.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sender.stdin is not None
    assert sender.stdout is not None
    try:
        sender.stdin.write('1\n"begun')
        sender.stdin.flush()
        assert ID.fullmatch(sender.stdout.readline())
        assert depth(laid)["ready"] == 1

        sender.stdin.write('"\n')
        sender.stdin.close()
        assert ID.fullmatch(sender.stdout.readline())
        assert sender.wait(30) == 0
    finally:
        sender.kill()
        sender.wait()
        sender.stdout.close()
    assert [each["message"] for each in laid.json("peek", "task")] == [1, "begun"]


def test_ids_are_printed_as_they_come_and_a_reader_that_has_enough_stops_no_send(laid) -> None:
    """`| head -1` gets its line, and everything is sent all the same."""
    lines = "".join(f"{n}\n" for n in range(3500))
    ran = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {PLATFORM} send task - | head -1"],
        cwd=laid.root,
        env=laid.environment,
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ID.fullmatch(ran.stdout), ran.stderr
    assert (ran.returncode, ran.stderr) == (0, "")
    assert depth(laid)["ready"] == 3500


def test_a_full_disk_under_the_output_is_said_after_everything_was_sent(laid) -> None:
    """The ids could not be written, the message is sent: exit code 1, and no request to report a fault."""
    ran = laid.shell(f"{PLATFORM} send task 1 >/dev/full")

    assert ran.wait() == 1
    assert "the disk is full" in ran.text
    assert "report" not in ran.text
    assert depth(laid)["ready"] == 1


def test_typed_messages_have_no_bar_beside_them(laid) -> None:
    """On a terminal each line is sent when it is typed, and nothing is drawn over it."""
    terminal = laid.terminal("send", "task", "-")
    terminal.until("Ctrl-D ends")
    terminal.press("17\n")
    wait_for(lambda: depth(laid)["ready"] == 1, "the line to be sent")
    terminal.press("\x04")

    assert terminal.wait() == 0
    assert "sent" not in terminal.text
    assert ID.search(terminal.text.replace("\r", ""))


def test_a_purge_frees_the_ids_of_what_it_deletes(laid) -> None:
    """An id that was chosen, and held by a message that waited for its retry, can be sent anew."""
    laid.write("handlers/task.py", "def handler(message):\n    print('ran', flush=True)\n    raise ValueError('no')\n")
    laid.write("queues.yaml", "queues:\n  task: {handler: task, backoff: 1h}\n")
    worker = laid.start("work")
    laid.ready(worker)
    laid.ok("send", "task", "1", "--id", "mine")
    wait_for(lambda: depth(laid)["delayed"] == 1, "the retry waits")
    laid.ok("send", "task", "1", "--id", "mine")
    wait_for(lambda: "duplicate" in laid.err(), "the second is a duplicate")

    assert laid.json("purge", "task", "--yes")["purged"] == 1

    laid.ok("send", "task", "1", "--id", "mine")
    wait_for(lambda: laid.out().count("ran") == 2, "the third runs")


def test_a_purge_of_nothing_asks_nothing_and_its_json_is_json(laid) -> None:
    """Where nothing would be deleted there is nothing to ask, with a terminal or without."""
    assert laid.json("purge", "task") == {"queue": "task", "purged": 0}
    assert laid.json("dead", "purge", "task", "--all") == {"queue": "task", "purged": 0}
    assert laid.ok("purge", "task") == "no waiting messages in task\n"


def test_ctrl_c_at_the_question_deletes_nothing_and_ends_the_line(laid) -> None:
    """What is said afterwards stands on a line of its own."""
    laid.ok("send", "task", "1")
    terminal = laid.terminal("purge", "task")
    terminal.until("[y/N]")
    terminal.press("\x03")

    assert terminal.wait() == 1
    assert "\nplatform: nothing was done" in terminal.text.replace("\r", "")
    assert depth(laid)["ready"] == 1


def test_queues_is_a_table_with_every_queue(laid) -> None:
    """For people: names, numbers and handlers."""
    laid.ok("send", "task", "1", "--count", "1234")

    said = laid.ok("queues")

    assert re.search(r"task +1,234 +0 +0 +0 +handlers/task.py:handler", said)


def test_peek_shows_brackets_as_they_are(laid) -> None:
    """A payload is never taken for markup, nor obeyed by the terminal."""
    laid.ok("send", "task", '["[red]x[/red]", "\\u001b[2J"]')

    said = laid.ok("peek", "task")

    assert "[red]x[/red]" in said
    assert "\x1b" not in said
    assert laid.ok("peek", "other") == "no ready messages in other\n"


def test_purge_asks_first(laid) -> None:
    """Where nobody can be asked, it wants --yes; then it says how many went."""
    laid.ok("send", "task", "1", "--count", "2")
    laid.ok("send", "task", "1", "--delay", "1h")

    assert "Delete 3 waiting messages of task for ever?" in laid.refused("purge", "task", code=2)
    assert depth(laid)["ready"] == 2
    assert laid.ok("purge", "task", "--yes", "--state", "delayed") == "deleted 1 message of task\n"
    assert laid.json("purge", "task", "--yes") == {"queue": "task", "purged": 2}
    assert laid.ok("purge", "task") == "no waiting messages in task\n"


def test_purge_on_a_terminal_takes_no_for_an_answer(laid) -> None:
    """The default answer deletes nothing."""
    laid.ok("send", "task", "1")
    terminal = laid.terminal("purge", "task")
    terminal.until("for ever?")

    terminal.press("\n")

    assert terminal.wait() == 1
    assert "nothing was done" in terminal.text
    assert depth(laid)["ready"] == 1


def test_watch_looks_again_until_ctrl_c(laid) -> None:
    """`platform queues --watch` follows the numbers; Ctrl-C is a good end."""
    terminal = laid.terminal("queues", "--watch")
    terminal.until("Ctrl-C to leave")
    laid.ok("send", "other", "1", "--count", "77")

    terminal.until("77")
    terminal.press("\x03")

    assert terminal.wait() == 0


def test_an_unknown_state_is_told_the_nearest(laid) -> None:
    """`--state delay` asks whether `delayed` was meant."""
    assert "did you mean 'delayed'?" in laid.refused("peek", "task", "--state", "delay", code=2)


def test_a_bar_shows_the_progress_on_a_terminal(laid) -> None:
    """Sending many on a terminal shows how far it is and ends with a summary instead of thousands of ids."""
    laid.write("lines.jsonl", "1\n" * 5000)
    terminal = laid.terminal("send", "task", "@lines.jsonl")

    assert terminal.wait() == 0
    assert "sent 5,000 messages to task" in terminal.text
    assert depth(laid)["ready"] == 5000


def test_a_broker_that_cannot_be_used_is_one_line_and_3(project) -> None:
    """A file that is no database of ours is left alone; exit code 3."""
    project.lay(top="broker: sqlite:queues.yaml\n")
    assert "queues.yaml" in project.refused("queues", code=3)
