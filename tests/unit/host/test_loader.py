"""What is found in handlers/, and how what is wrong is told."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from handrail.config.model import ErrorRule, HandlerRef
from handrail.host.loader import Loader
from handrail.pipe import End

DECORATED = """
import functools
def decorate(function):
    @functools.wraps(function)
    async def wrapper(*args): return await function(*args)
    return wrapper
@decorate
async def handler(message: int): pass
"""
PARTLY_RESOLVED = """
from __future__ import annotations
import msgspec
class U(msgspec.Struct): n: int
def handler(message: U, callback: Gone): pass
"""


@pytest.fixture
def load(project):
    """Found and problems of the project."""
    loaders = []

    def act():
        loader = Loader(project.settings, process_wide=False)
        loaders.append(loader)
        _bindings, found = loader.load(list(project.queues))
        return found, loader.problems

    yield act
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize(
    ("source", "kind", "callback", "type_"),
    [
        ("def handler(message, callback): pass", "thread", True, ""),
        ("async def handler(message, callback): pass", "async", True, ""),
        ("def handler(message): pass", "thread", False, ""),
        ("async def handler(message): pass", "async", False, ""),
        ("handler = lambda message: None", "thread", False, ""),
        ("def handler(*args): pass", "thread", True, ""),
        ("def handler(message, callback=None): pass", "thread", True, ""),
        ("def handler(message, tries=3): pass", "thread", False, ""),
        ("def handler(message, *, tries=3): pass", "thread", False, ""),
        ("class H:\n    def __call__(self, message): pass\nhandler = H()", "thread", False, ""),
        ("class H:\n    async def __call__(self, message, callback): pass\nhandler = H()", "async", True, ""),
        ("class H:\n    async def go(self, message: int): pass\nhandler = H().go", "async", False, "int"),
        ("import functools\nasync def f(db, message, cb): pass\nhandler = functools.partial(f, 1)", "async", True, ""),
        ("import functools\ndef f(message, db): pass\nhandler = functools.partial(f, db=1)", "thread", False, ""),
        (DECORATED, "async", False, "int"),
        ("handler = len", "thread", False, ""),
        ("def handler(message: dict): pass", "thread", False, ""),
        ("from typing import Any\ndef handler(message: Any): pass", "thread", False, ""),
        ("def handler(message: 'list[int]'): pass", "thread", False, "list[int]"),
        (PARTLY_RESOLVED, "thread", True, "U"),
        ("import pydantic\nclass U(pydantic.BaseModel): n: int\ndef handler(message: U): pass", "thread", False, "U"),
        (
            "from typing import TypedDict\nclass U(TypedDict): n: int\ndef handler(message: list['U']): pass",
            "thread",
            False,
            "list[",
        ),
    ],
)
def test_call_shapes(project, load, source, kind, callback, type_):
    """Every callable that takes one or two positional parameters can be a handler."""
    project.handler(source)
    found, problems = load()

    assert problems == []
    assert (found[0].kind, found[0].callback) == (kind, callback)
    assert found[0].type.startswith(type_)
    assert bool(found[0].type) == bool(type_)
    assert found[0].where == "handlers/h.py:handler"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "\ndef handler(): pass",
            "handlers/h.py:2: handler takes no parameter; a handler takes (message) or (message, callback)",
        ),
        ("def handler(a, b, c): pass", "handlers/h.py:1: handler takes 3 parameters (a, b, c); a handler takes"),
        ("def handler(message, *, db): pass", "handlers/h.py:1: handler needs the keyword argument db"),
        ("def handler(message): yield", "handlers/h.py:1: handler is a generator"),
        ("async def handler(message): yield", "handlers/h.py:1: handler is a generator"),
        ("class handler:\n    def __init__(self, message): pass", "handlers/h.py: handler is a class"),
        ("handler = 5", "handlers/h.py: handler is not a function but an int"),
        (
            "def handler(message: 'Gone'): pass",
            "handlers/h.py:1: handler: the annotation of its message, 'Gone', cannot be resolved",
        ),
        ("class Odd: pass\ndef handler(message: Odd): pass", "handlers/h.py:2: "),
        ("def handle(message): pass", "handlers/h.py: no function handler; did you mean handle?"),
        ("def send(message): pass", "handlers/h.py: no function handler; there is send"),
        ("", "handlers/h.py: no function handler; write: def handler(message, callback):"),
    ],
)
def test_what_cannot_be_a_handler_is_told_with_its_place(project, load, source, says):
    """A problem names file and line, what is wrong and what fits."""
    project.handler(source)
    found, problems = load()

    assert found == []
    assert len(problems) == 1
    assert problems[0].startswith(says)


def test_isolation_makes_the_kind_process(project, load):
    """isolation: process is told as a kind of its own, whatever the function is."""
    project.handler("def handler(message): pass", isolation="process")

    assert load()[0][0].kind == "process"


def test_a_syntax_error_is_shown_as_a_block(project, load):
    """File and line first, then the lines around it."""
    project.handler("import os\n\ndef handler(message:\n    pass\n")
    _, problems = load()

    lines = problems[0].splitlines()
    assert lines[0].startswith("handlers/h.py:3: SyntaxError: ")
    assert any(line.startswith("  >    3 | def handler(message:") for line in lines)


def test_an_exception_at_import_is_shown_where_it_was_raised(project, load):
    """The user's innermost frame is the headline, the way there follows, and no frame of handrail's or of importlib's."""
    project.write("helper.py", "def connect():\n    raise OSError('no database')\n")
    project.handler("import helper\n\nhelper.connect()\ndef handler(message): pass")
    _, problems = load()

    lines = problems[0].splitlines()
    assert lines[0] == "helper.py:2: OSError: no database"
    assert "  >    2 |     raise OSError('no database')" in lines
    assert lines[-1].strip() == "from handlers/h.py:3"
    assert "importlib" not in problems[0]


@pytest.mark.parametrize("act", ["import sys; sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_module_that_ends_the_process_is_a_problem(project, load, act):
    """sys.exit() at import is told like any other error."""
    project.handler(act)
    _, problems = load()

    assert problems[0].startswith("handlers/h.py:1: ")


def test_a_broken_file_is_told_once_for_all_its_queues(project, load):
    """Two queues of one broken file give one problem; the good file beside it is found."""
    project.handler("1/0", name="a", file="bad.py")
    project.bind("b", HandlerRef("bad.other", "bad.py", "other"))
    project.handler("def handler(message): pass", name="c", file="good.py")
    found, problems = load()

    assert len(problems) == 1
    assert [one.queue for one in found] == ["c"]


def test_a_missing_file_is_told(project, load):
    """The file that is not there is named."""
    project.bind("q", HandlerRef("gone", "gone.py", "handler"))

    assert load()[1] == ["handlers/gone.py: there is no such file"]


def test_a_file_is_imported_once_however_it_is_named(project, load):
    """`import b`, `from handlers import b` and the queue's own handler are the same module."""
    project.handler(
        "count = 0\ncount += 1\nclass E(Exception): pass\ndef handler(message): pass", name="b", file="b.py"
    )
    project.handler(
        "import b\nimport handlers.b\nfrom handlers import b as again\nassert b is handlers.b is again\n"
        "assert b.__spec__.name == 'handlers.b'\nfrom .b import E\nassert E is b.E\ndef handler(message): pass",
        name="a",
        file="a.py",
    )

    assert load()[1] == []


def test_handlers_in_folders_import_one_another(project, load):
    """A folder needs no __init__.py, under its short name and its full one."""
    project.write("handlers/mail/text.py", "GREETING = 'hi'")
    project.bind("q", HandlerRef("mail/send", "mail/send.py", "handler"))
    project.write(
        "handlers/mail/send.py",
        "from mail.text import GREETING\nimport mail.text, handlers.mail.text\n"
        "assert mail.text is handlers.mail.text\ndef handler(message): return GREETING",
    )

    assert load()[1] == []


def test_a_handler_named_like_a_library_harms_nobody(project, load):
    """handlers/email.py is a handler, and `import email` is the standard library's."""
    project.handler("import email\nassert email.__file__ != __file__\ndef handler(message): pass", file="email.py")

    assert load()[1] == []


def test_the_project_root_is_importable_and_sys_path_untouched(project, load):
    """`from myapp.mail import send` works in the application's own process without changing sys.path."""
    before = list(sys.path)
    project.write("myapp/__init__.py", "")
    project.write("myapp/mail.py", "def send(): return 1")
    project.handler("from myapp.mail import send\ndef handler(message): return send()")

    assert load()[1] == []
    assert sys.path == before


def test_code_saved_twice_in_one_moment_is_never_stale(project, load):
    """Same size, same time stamp, other code: what runs is what the files say."""
    for number in (1, 2, 3):
        files = [
            project.write("helper.py", f"N = {number}"),
            project.write("handlers/h.py", "import helper\nN = helper.N\ndef handler(m): pass"),
        ]
        project.bind("q", HandlerRef("h", "h.py", "handler"))
        for file in files:
            os.utime(file, (1_000_000_000, 1_000_000_000))
        assert load()[1] == []
        assert sys.modules["handlers.h"].N == number


def test_an_unchanged_module_stays_the_one_a_test_imported(project, load):
    """What a user's test has imported and patched is what the handlers use."""
    project.handler("from handlers import util\ndef handler(m): pass")
    project.write("handlers/util.py", "def send(): pass")
    load()
    module = sys.modules["handlers.util"]
    load()

    assert sys.modules["handlers.util"] is module


@pytest.mark.parametrize(
    ("when", "raised", "rule"),
    [
        (["ValueError"], "ValueError()", 0),
        (["KeyError", "LookupError"], "IndexError()", 1),
        (["KeyError"], "ValueError()", -1),
        (["json.JSONDecodeError"], "__import__('json').JSONDecodeError('m', 'd', 0)", 0),
        (["errs.Bounce"], "__import__('errs').Bounce()", 0),
        (["errs.Outer.Inner"], "__import__('errs').Outer.Inner()", 0),
        (["OSError"], "ExceptionGroup('g', [OSError(), ConnectionError()])", 0),
        (["OSError"], "ExceptionGroup('g', [OSError(), ValueError()])", -1),
        (["ExceptionGroup"], "ExceptionGroup('g', [OSError(), ValueError()])", 0),
        (["handrail.errors.SerialisationError"], None, 0),
    ],
)
def test_the_first_matching_rule_is_told(project, memory, when, raised, rule):
    """FAILED carries the index of the first of `errors` that the exception meets; a group meets it by all its leaves."""
    project.write("handlers/errs.py", "class Bounce(Exception): pass\nclass Outer:\n    class Inner(Exception): pass\n")
    body = f"raise {raised}" if raised else "return object()"
    project.handler(f"def handler(message): {body}", errors=tuple(ErrorRule(one) for one in when))

    async def test():
        async with memory() as host:
            outcome = await host.call()
            assert (outcome[0], outcome[4]) == (End.FAILED, rule)

    asyncio.run(test())


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ("ValueErrr", "queue q: errors: when: ValueErrr is no builtin exception"),
        ("nowhere.Gone", "queue q: errors: when: nowhere.Gone cannot be imported: there is no module nowhere"),
        ("json.Gone", "queue q: errors: when: json.Gone: json has no Gone"),
        ("json.dumps", "queue q: errors: when: json.dumps is not a class of exceptions"),
        ("len", "queue q: errors: when: len is not a class of exceptions"),
    ],
)
def test_a_rule_that_names_no_exception_is_a_problem(project, load, when, says):
    """A class that cannot be imported is told at load, not when it would have been needed."""
    project.handler("def handler(message): pass", errors=(ErrorRule(when),))

    assert load()[1][0].startswith(says)
