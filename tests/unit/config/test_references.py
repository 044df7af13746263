"""What a handler reference means, and what is said when it means nothing."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("taskHandler", "handlers/taskHandler.py:handler"),
        ("mail.send_welcome", "handlers/mail.py:send_welcome"),
        ("mail.later", "handlers/mail.py:later"),
        ("billing/invoices", "handlers/billing/invoices.py:handler"),
        ("billing.invoices", "handlers/billing/invoices.py:handler"),
        ("billing.invoices.create", "handlers/billing/invoices.py:create"),
        ("billing/invoices.create", "handlers/billing/invoices.py:create"),
        ("my-tasks/send-all.run", "handlers/my-tasks/send-all.py:run"),
        ("pack", "handlers/pack/__init__.py:handler"),
        ("pack.other", "handlers/pack/__init__.py:other"),
    ],
)
def test_every_form_of_a_reference_finds_its_function(project, text, expected):
    """file, file.function, folder/file, folder.file.function and folder/file.function are all references."""
    project.handler("my-tasks/send-all.py", "def run(message): ...\n")
    project.handler("pack/__init__.py", "def handler(message): ...\ndef other(message): ...\n")
    found = project.load(f"queues: {{a: {text}}}\n").queues["a"].handler

    assert str(found) == expected
    assert found.text == text


def test_what_exists_decides_what_an_ambiguous_reference_means(project):
    """``mail.send`` is the function where mail.py has it, else the file mail/send.py."""
    project.handler("mail/send.py", "def handler(message): ...\n")

    assert str(project.load("queues: {a: mail.send}\n").queues["a"].handler) == "handlers/mail/send.py:handler"

    project.handler("mail.py", "def send(message): ...\n")

    assert str(project.load("queues: {a: mail.send}\n").queues["a"].handler) == "handlers/mail.py:send"
    assert str(project.load("queues: {a: mail/send}\n").queues["a"].handler) == "handlers/mail/send.py:handler"


BINDINGS = {
    "an import": "from os.path import join as handler\n",
    "an import of all": "from os.path import *\n",
    "a partial": "import functools\nhandler = functools.partial(print)\n",
    "a decorator's result": "import functools\n@functools.cache\ndef handler(a, b, c, d): ...\n",
    "a tuple of targets": "x, (handler, y) = 1, (print, 2)\n",
    "a branch": "if True:\n    def handler(message): ...\nelse:\n    handler = None\n",
    "a try": "try:\n    from x import handler\nexcept ImportError:\n    def handler(message): ...\n",
    "a with": "with open('x') as handler: ...\n",
    "a loop": "for handler in (print,): ...\n",
    "a walrus": "print(handler := print)\n",
    "a match": "match print:\n    case handler: ...\n",
    "a class": "class handler:\n    def __init__(self, message): ...\n",
    "a global": "def make():\n    global handler\n    handler = print\nmake()\n",
    "globals()": "globals()['handler'] = print\n",
    "__getattr__": "def __getattr__(name): ...\n",
    "an annotation with a value": "from typing import Any\nhandler: Any = print\n",
    "defaults": "def handler(message, callback, extra=1, *args, **kw): ...\n",
    "any arguments": "def handler(*args): ...\n",
    "positional only": "def handler(message, callback, /): ...\n",
    "an optional keyword": "async def handler(message, *, retry=False): ...\n",
    "a yield within": "def handler(message):\n    def inner():\n        yield 1\n",
}


@pytest.mark.parametrize("name", BINDINGS)
def test_whatever_may_be_a_handler_is_taken_for_one(project, name):
    """Only what is clearly no handler is refused; the rest is for the host to find out."""
    project.handler("it.py", BINDINGS[name])

    assert str(project.load("queues: {a: it}\n").queues["a"].handler) == "handlers/it.py:handler"


UNFIT = {
    "no parameters": (
        "def handler(): ...\n",
        (
            "handler in handlers/it.py, line 1, takes no parameters; "
            "write `def handler(message, callback):` or `def handler(message):`"
        ),
    ),
    "three parameters": (
        "\nasync def handler(a, b, c): ...\n",
        (
            "handler in handlers/it.py, line 2, takes 3 parameters (a, b, c); "
            "write `def handler(message, callback):` or `def handler(message):`"
        ),
    ),
    "self": (
        "def handler(self, message, callback): ...\n",
        (
            "handler in handlers/it.py, line 1, takes 3 parameters (self, message, callback); a function outside a class has "
            "no self; write `def handler(message, callback):` or `def handler(message):`"
        ),
    ),
    "keyword": (
        "def handler(message, *, callback): ...\n",
        (
            "handler in handlers/it.py, line 1, needs 'callback' by keyword, which nobody gives; "
            "write `def handler(message, callback):` or `def handler(message):`"
        ),
    ),
    "generator": (
        "def handler(message):\n    if message:\n        yield message\n",
        (
            "handler in handlers/it.py, line 1, has a yield, so calling it runs nothing; "
            "write `def handler(message, callback):` or `def handler(message):`"
        ),
    ),
    "constant": (
        "handler = 'mail'\n",
        (
            "handler in handlers/it.py, line 1, is not a function; "
            "write `def handler(message, callback):` or `def handler(message):`"
        ),
    ),
    "an annotation alone": (
        "from typing import Any\nhandler: Any\n",
        "handlers/it.py has no function 'handler' and no other; write `def handler(message, callback):` in it",
    ),
    "a local name": (
        "def other(message):\n    handler = message\n",
        "handlers/it.py has no function 'handler'; write 'it.other' for the one that is there",
    ),
    "several others": (
        "def one(message): ...\ndef two(message): ...\ndef _three(message): ...\n",
        "handlers/it.py has no function 'handler'; it has one and two: write 'it.one' for the first",
    ),
    "empty": (
        "",
        "handlers/it.py has no function 'handler' and no other; write `def handler(message, callback):` in it",
    ),
    "null bytes": (
        "def handler(message): ...\n\0",
        "handlers/it.py: source code string cannot contain null bytes; mend the file",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_clearly_no_handler_is_told(project, name):
    """A function that cannot be called as a handler is told before anything runs."""
    text, said = UNFIT[name]
    project.handler("it.py", text)

    assert project.problems("queues: {a: it}\n") == [f"queues.yaml:1:13: {said}"]


def test_a_syntax_error_names_the_file_and_the_line(project):
    """A handler file that is no Python is told with its line, at the place of the reference."""
    project.handler("it.py", "x = 1\ndef handler(message:\n")

    assert project.problems("queues: {a: it}\n") == [
        "queues.yaml:1:13: handlers/it.py, line 2: '(' was never closed; mend the file"
    ]


def test_a_file_is_never_imported(project):
    """Looking at handlers runs none of their code."""
    project.handler("it.py", "raise SystemExit('imported')\ndef handler(message): ...\n")

    assert project.load("queues: {a: it}\n").queues["a"].handler is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("taskhandler", "handler 'taskhandler': there is no file handlers/taskhandler.py; did you mean 'taskHandler'?"),
        (
            "mial.send_welcome",
            "handler 'mial.send_welcome': there is no file handlers/mial.py; did you mean 'mail.send_welcome'?",
        ),
        (
            "mial.send_wellcome",
            "handler 'mial.send_wellcome': there is no file handlers/mial.py; did you mean 'mail.send_welcome'?",
        ),
        ("mail.send_wellcome", "handlers/mail.py has no function 'send_wellcome'; did you mean 'mail.send_welcome'?"),
        ("invoices", "handler 'invoices': there is no file handlers/invoices.py; did you mean 'billing/invoices'?"),
        (
            "billing.invoice",
            "handler 'billing.invoice': there is no file handlers/billing/invoice.py; did you mean 'billing/invoices'?",
        ),
        ("xyz", "handler 'xyz': there is no file handlers/xyz.py; there is billing/invoices, mail, taskHandler"),
        (
            "handlers/taskHandler",
            "handler 'handlers/taskHandler': there is no file handlers/handlers/taskHandler.py; write 'taskHandler'",
        ),
        ("taskHandler.py", "handlers/taskHandler.py has no function 'py'; leave out '.py'"),
        ("'mail:send_bye'", "'mail:send_bye' is no handler reference; write 'mail.send_bye'"),
        ("mail.send_bye()", "'mail.send_bye()' is no handler reference; write 'mail.send_bye'"),
        ("../secrets", "'../secrets' leaves handlers/; a handler is named by its file there, such as 'mail'"),
        ("billing/../../x", "'billing/../../x' leaves handlers/; a handler is named by its file there, such as 'mail'"),
        (
            "/etc/passwd",
            "'/etc/passwd' is an absolute path; a handler is named by its file in handlers/, such as 'mail'",
        ),
        ("~/x", "'~/x' is an absolute path; a handler is named by its file in handlers/, such as 'mail'"),
        ("./mail", "'./mail' is no path in handlers/; a handler is named by its file there, such as 'mail'"),
        (
            "billing//invoices",
            "'billing//invoices' is no path in handlers/; a handler is named by its file there, such as 'mail'",
        ),
        (
            "mail..send",
            "'mail..send' is no handler reference; it is file, file.function or folder/file, of letters, digits, '-' and '_'",
        ),
    ],
)
def test_a_reference_to_nothing_is_told_with_the_nearest_that_is_something(project, text, said):
    """What cannot be found, or may not be looked for, is one line with what to write."""
    assert project.problems(f"queues:\n  a: {text}\n") == [f"queues.yaml:2:6: {said}"]


@pytest.mark.parametrize("text", ["../secrets", "/etc/passwd", "a/../../b"])
def test_a_reference_out_of_handlers_is_refused_unchecked_too(project, text):
    """Leaving handlers/ is refused even where handler files are not looked at."""
    with pytest.raises(Exception, match="handlers/"):
        project.load(f"queues:\n  a: {text}\n", check_handlers=False)


@pytest.mark.parametrize("check", [True, False])
def test_a_symbolic_link_that_leaves_handlers_is_refused(project, tmp_path_factory, check):
    """Neither a linked file nor a linked folder leads out of handlers/."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "evil.py").write_text("def handler(message): ...\n")
    (project.root / "handlers" / "link.py").symlink_to(outside / "evil.py")
    (project.root / "handlers" / "folder").symlink_to(outside)
    for text in ("link", "folder/evil"):
        with pytest.raises(Exception, match=f"'{text}' is a symbolic link that leaves handlers/"):
            project.load(f"queues:\n  a: {text}\n", check_handlers=check)


def test_a_symbolic_link_within_handlers_is_fine(project):
    """A link to another handler file is a handler file."""
    (project.root / "handlers" / "alias.py").symlink_to("taskHandler.py")

    assert str(project.load("queues: {a: alias}\n").queues["a"].handler) == "handlers/alias.py:handler"


def test_without_a_folder_of_handlers_the_line_says_so(project, tmp_path):
    """A project without handlers/ is told to make it."""
    (tmp_path / "handlers").rename(tmp_path / "handler")

    assert project.problems("queues: {a: mail.send}\n") == [
        "queues.yaml:1:13: handler 'mail.send': there is no folder handlers/ beside this file; make it, and mail.py in it"
    ]


def test_middleware_must_take_a_job_and_the_next_call(project):
    """A function with other parameters is no middleware."""
    assert project.problems(
        "defaults: {middleware: [mail.session, mail.send_welcome]}\nqueues: {a: taskHandler}\n"
    ) == [
        (
            "queues.yaml:1:39: send_welcome in handlers/mail.py, line 2, takes 1 parameter (message); "
            "write `async def send_welcome(job, call_next):`"
        )
    ]
