"""How handlers are called: kinds, types, the job, what they share, what wraps them."""

from __future__ import annotations

import os

import pytest
from contract_harness import Project

from handrail.message import Message, new_id
from handrail.outcome import Outcome

KINDS = {
    "async": ("async def", {}),
    "thread": ("def", {}),
    "process": ("def", {"isolation": "process", "concurrency": 1}),
    "async process": ("async def", {"isolation": "process", "concurrency": 1}),
}


@pytest.mark.parametrize(
    "payload",
    [None, 0, "", False, [], {}, "text", 1.5, 10**40, "ünïcødé \U0001f600 \x00", {"a": [1, {"b": None}]}],
    ids=repr,
)
def test_the_message_is_the_payload_exactly_as_it_was_sent(project: Project, payload: object) -> None:
    """What was sent arrives as it was, nothing wrapped around it; None, 0 and "" are payloads like any other."""
    project.handler("def handler(message): return [message, type(message).__name__]")
    project.start()

    project.send("work", payload)

    assert project.one(Outcome.COMPLETED).result == [payload, type(payload).__name__]


@pytest.mark.parametrize(
    ("definition", "annotation"),
    [
        ("from dataclasses import dataclass\n@dataclass\nclass User:\n    name: str\n    age: int = 1", "User"),
        ("import msgspec\nclass User(msgspec.Struct):\n    name: str\n    age: int = 1", "User"),
        ("import pydantic\nclass User(pydantic.BaseModel):\n    name: str\n    age: int = 1", "User"),
        ("from dataclasses import dataclass\n@dataclass\nclass User:\n    name: str\n    age: int = 1", "'User'"),
    ],
    ids=["dataclass", "msgspec", "pydantic", "forward reference"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_message_becomes_the_annotated_type(project: Project, kind: str, definition: str, annotation: str) -> None:
    """An annotated `message` is converted: dataclass, msgspec Struct and pydantic model, in every kind of handler."""
    word, options = KINDS[kind]
    project.handler(
        f"{definition}\n{word} handler(user: {annotation}):\n    return [type(user).__name__, user.name, user.age]"
    )
    project.queues({"work": {"handler": "work", **options}})
    project.start()

    project.send("work", {"name": "Ada"})

    assert project.one(Outcome.COMPLETED).result == ["User", "Ada", 1]


@pytest.mark.parametrize(
    ("content", "body", "expected"),
    [("json", b'"text"', "'text'"), ("text", b"plain \xc3\xa4", "'plain ä'"), ("bytes", b"\xff\x00", "b'\\xff\\x00'")],
)
def test_content_says_how_a_body_is_read(project: Project, content: str, body: bytes, expected: str) -> None:
    """`content: json`, `text` or `bytes` says how a queue's bodies become messages."""
    project.handler("def handler(message): return repr(message)")
    project.queues({"work": {"handler": "work", "content": content}})
    project.start()

    project.publish(Message(queue="work", id=new_id(), body=body))

    assert project.one(Outcome.COMPLETED).result == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_job_tells_of_its_delivery(project: Project, kind: str) -> None:
    """`context.job` holds id, queue, attempt, sent_at, headers, priority and key, in every kind of handler."""
    word, options = KINDS[kind]
    project.handler(f"""
        from handrail import context

        def helper():
            job = context.job
            return [job.id, job.queue, job.attempt, job.headers.get("trace"), job.priority, job.key, job.sent_at > 1e9]

        {word} handler(message):
            if context.job.attempt == 1: raise ValueError
            context.job.progress(0.5)
            context.job.log("half way there")
            return [*helper(), context.job.cancelled]
    """)
    project.queues({"work": {"handler": "work", "backoff": ["0s"], **options}})
    project.start()

    project.send("work", 1, id="job-1", headers={"trace": "abc"}, priority=7, key="k")

    assert project.one(Outcome.COMPLETED).result == ["job-1", "work", 2, "abc", 7, "k", True, False]
    assert project.logged("half way there")["id"] == "job-1"


def test_jobs_that_run_at_once_do_not_see_one_another(project: Project) -> None:
    """`context.job` is that of the running handler, were there a hundred of them on the loop and in threads."""
    source = """
        from handrail import context
        {word} handler(message):
            note('in')
            {wait}("all")
            return [message, context.job.id]
    """
    project.handler(source.format(word="async def", wait="await agate"), "tasks")
    project.handler(source.format(word="def", wait="gate"), "threads")
    project.queues(
        {"tasks": {"handler": "tasks", "concurrency": 20}, "threads": {"handler": "threads", "concurrency": 20}}
    )
    project.start()
    for n in range(20):
        project.send("tasks", f"a{n}", id=f"a{n}")
        project.send("threads", f"t{n}", id=f"t{n}")
    project.noted("in", 40)
    project.open("all")

    assert all(one.result == [one.id, one.id] for one in project.wait(Outcome.COMPLETED, count=40))


def test_a_thread_sees_that_its_job_was_given_up(project: Project) -> None:
    """After a timeout `context.job.cancelled` is true in the abandoned thread, so that it can return."""
    project.handler("""
        import time
        from handrail import context
        def handler(message, callback):
            while not context.job.cancelled: time.sleep(0.01)
            note('gave up')
    """)
    project.queues({"work": {"handler": "work", "timeout": "200ms", "attempts": 1}})
    project.start()

    project.send("work", 1)

    project.one(Outcome.DEAD)
    project.noted("gave up")


@pytest.mark.parametrize(
    "reference",
    ["mail", "mail.send", "shop/mail", "shop.mail.send", "shop/mail.send"],
)
def test_handlers_are_found_by_file_folder_and_function(project: Project, reference: str) -> None:
    """`file`, `file.function`, `folder/file` and `folder.file.function` all name a handler."""
    source = "def handler(message): return 'handler'\ndef send(message): return 'send'"
    project.handler(source, "shop/mail" if "shop" in reference else "mail")
    project.queues({"work": reference})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.COMPLETED).result == ("send" if reference.endswith("send") else "handler")


def test_handlers_import_the_project_and_one_another(project: Project) -> None:
    """The project's root is importable from handlers, and handlers import one another."""
    package = project.root / "myapp"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mail.py").write_text("def greeting(name): return f'Hello {name}'")
    project.handler("def shout(text): return text.upper()", "loud")
    project.handler("""
        from loud import shout
        from myapp.mail import greeting
        def handler(message): return shout(greeting(message))
    """)
    project.start()

    project.send("work", "Ada")

    assert project.one(Outcome.COMPLETED).result == "HELLO ADA"


LIFESPANS = {
    "async generator": "async def lifespan():\n    {enter}\n    yield {{'db': 'open'}}\n    {leave}",
    "generator": "def lifespan():\n    {enter}\n    yield {{'db': 'open'}}\n    {leave}",
    "async context manager": """
import contextlib
@contextlib.asynccontextmanager
async def lifespan():
    {enter}
    yield {{'db': 'open'}}
    {leave}
""",
}


@pytest.mark.parametrize("form", LIFESPANS)
def test_a_lifespan_opens_before_the_first_message_and_closes_after_the_last(project: Project, form: str) -> None:
    """What `_lifespan.py` yields is `context.state` in every handler; it is left when the worker stops, after the drain."""
    project.handler(LIFESPANS[form].format(enter="note('enter')", leave="note('leave')"), "_lifespan")
    project.handler("""
        from handrail import context
        def handler(message):
            note('ran')
            gate("go")
            return context.state['db']
    """)
    running = project.start()
    project.send("work", 1)
    project.noted("ran")
    project.open("go")

    running.stop()

    assert project.one(Outcome.COMPLETED).result == "open"
    assert [one.tag for one in project.notes()] == ["enter", "ran", "leave"]


def test_middleware_wraps_each_call_outermost_first(project: Project) -> None:
    """`middleware:` wraps every call, in its order, around both kinds of handler."""
    project.handler(
        """
        async def outer(job, call_next):
            note('outer in', job.queue)
            try:
                return await call_next()
            finally:
                note('outer out')

        async def inner(job, call_next):
            note('inner in')
            return await call_next()
        """,
        "wraps",
    )
    project.handler("async def handler(message): note('ran'); return 'a'")
    project.handler("def handler(message): note('ran'); return 'b'", "plain")
    middleware = ["wraps.outer", "wraps.inner"]
    project.queues(
        {"work": {"handler": "work", "middleware": middleware}, "plain": {"handler": "plain", "middleware": middleware}}
    )
    project.start()

    project.send("work", 1)
    project.one(Outcome.COMPLETED, queue="work")
    project.send("plain", 1)

    assert project.one(Outcome.COMPLETED, queue="plain").result == "b"
    assert [one.tag for one in project.notes()] == ["outer in", "inner in", "ran", "outer out"] * 2


def test_plain_middleware_wraps_plain_handlers(project: Project) -> None:
    """A plain function is middleware for plain handlers, in their thread."""
    project.handler(
        """
        import threading
        def timed(job, call_next):
            note('in', threading.get_ident())
            return call_next()
        """,
        "wraps",
    )
    project.handler("import threading\ndef handler(message): note('ran', threading.get_ident()); return 1")
    project.queues({"work": {"handler": "work", "middleware": ["wraps.timed"]}})
    project.start()

    project.send("work", 1)

    project.one(Outcome.COMPLETED)
    assert project.notes("in")[0].facts == project.notes("ran")[0].facts


def test_middleware_sees_what_a_handler_raises(project: Project) -> None:
    """What a handler raises passes through its middleware, and what middleware raises instead fails the attempt."""
    project.handler(
        """
        from handrail import Reject
        async def mends(job, call_next):
            try:
                return await call_next()
            except KeyError as error:
                raise Reject(f'no {error}') from error
        """,
        "wraps",
    )
    project.handler("def handler(message): raise KeyError('user')")
    project.queues({"work": {"handler": "work", "middleware": ["wraps.mends"]}})
    project.start()

    project.send("work", 1)

    assert project.one(Outcome.DEAD).verdict.reason == "no 'user'"


def test_an_isolated_handler_runs_in_a_process_of_its_own_that_is_used_again(project: Project) -> None:
    """`isolation: process` runs one job at a time in a child process that is no other queue's, and reuses it."""
    project.handler("import os\ndef handler(message): return os.getpid()")
    project.queues({"work": {"handler": "work", "isolation": "process", "concurrency": 1}, "other": "work"})
    project.start()

    for n in range(3):
        project.send("work", n)
    project.send("other", 1)

    isolated = {one.result for one in project.wait(Outcome.COMPLETED, count=3, queue="work")}
    shared = project.one(Outcome.COMPLETED, queue="other").result
    assert len(isolated) == 1
    assert shared not in isolated
    assert os.getpid() not in {shared, *isolated}


def test_isolated_handlers_run_at_once(project: Project) -> None:
    """`concurrency` of an isolated queue is its number of processes."""
    project.handler("import os\ndef handler(message):\n    note('in')\n    gate(\"all\")\n    return os.getpid()")
    project.queues({"work": {"handler": "work", "isolation": "process", "concurrency": 2}})
    project.start()
    project.send_bulk("work", [1, 2])
    project.noted("in", 2)
    project.open("all")

    assert len({one.result for one in project.wait(Outcome.COMPLETED, count=2)}) == 2


def test_user_code_never_runs_in_the_workers_own_process(project: Project) -> None:
    """Neither handlers nor lifespan, middleware or rules are imported by the process that holds the broker's connection."""
    (project.root / "shop.py").write_text(
        "from notes import note\nnote('imported')\nclass BusyError(Exception): pass\n"
    )
    project.handler("import shop\nnote('imported')\ndef handler(message): note('ran')")
    project.handler("note('imported')\nasync def lifespan():\n    note('imported')\n    yield {}", "_lifespan")
    project.handler(
        "note('imported')\nasync def wraps(job, call_next):\n    note('ran')\n    await call_next()", "wraps"
    )
    rules = [{"when": "shop.BusyError", "then": "reject"}]
    project.queues({"work": {"handler": "work", "middleware": ["wraps.wraps"], "errors": rules}})
    project.start()

    project.send("work", 1)

    project.one(Outcome.COMPLETED)
    assert project.notes("imported")
    assert os.getpid() not in {one.pid for one in project.notes()}
