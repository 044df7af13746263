"""Puts the commands together and turns every end into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import traceback
from typing import Any

import typer

from handrail import errors
from handrail.cli import about, check, dead, exit_codes, invoke, jobs, new, plan, queues, send
from handrail.cli import run as running
from handrail.cli.common import FailedError, UsageError, forget_stdout, nearest
from handrail.cli.exit_codes import ExitCode

# typer does not export the roots of its usage errors under one name in all its versions
_TyperUsageError: Any = typer.BadParameter.__base__
_TyperError: Any = _TyperUsageError.__base__

app = typer.Typer(
    name="platform",
    help="Drop a handler file into handlers/, bind a queue to it in queues.yaml, and run.",
    epilog=f"{exit_codes.HELP} Any command takes --debug: an error then shows its traceback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    rich_markup_mode="rich",
)
for _module in (running, send, queues, dead, jobs, invoke, check, plan, new, about):
    _module.register(app)


@app.callback()
def _root() -> None:
    """Drop a handler file into handlers/, bind a queue to it in queues.yaml, and run."""


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code. Nothing but a fault in the interpreter escapes it."""
    debug, arguments = _take_debug(arguments)
    _log_to_stderr()
    try:
        result = app(args=arguments, prog_name="platform", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()
        return ExitCode.OK  # whoever read us, such as `head`, had enough
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except typer.Abort:
        return _tell("nothing was done", ExitCode.FAILED)
    except Exception as error:  # noqa: BLE001 - here every error becomes a line
        if debug and not isinstance(error, _TyperError):
            traceback.print_exc()  # and then the line and the exit code that there are without --debug
        return _explain(error)
    return result if isinstance(result, int) else ExitCode.OK


def _log_to_stderr() -> None:
    """What adapters have to say in passing goes to stderr: stdout holds only what was asked for."""
    from handrail import logs  # noqa: PLC0415 - after the checks of Python and system

    with contextlib.suppress(ValueError):  # a wrong HANDRAIL_LOG is refused by the commands that log
        # whoever waits at a terminal is told why; elsewhere the command's own error says it in one line
        logs.configure(level=os.environ.get(logs.VARIABLE) or ("warning" if _seen() else "error"))


def _seen() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether ``--debug`` is among *arguments*, and the rest; `invoke` gives it a meaning of its own as well."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return bool(os.environ.get("HANDRAIL_DEBUG")), arguments
    if arguments[0] == "invoke":
        return True, arguments
    return True, [word for at, word in enumerate(arguments) if word != "--debug" or at > end]


def _explain(error: Exception) -> int:
    match error:
        case errors.ConfigError():
            _write("\n".join(error.problems))
            return ExitCode.USAGE
        case _ if isinstance(error, _TyperError):
            return _usage(error)
        case errors.AlreadyRunningError():
            code = ExitCode.RUNNING
        case (
            errors.UnknownQueueError()
            | errors.InvalidOptionError()
            | errors.SerialisationError()
            | errors.TooLargeError()
        ):
            code = ExitCode.USAGE
        case errors.BrokerError() | errors.SendError() | TimeoutError():
            code = ExitCode.BROKER
        case errors.StartError() | errors.HandlerError():
            code = ExitCode.START
        case FailedError():
            code = ExitCode.FAILED
        case errors.NoProjectError() | UsageError():
            code = ExitCode.USAGE
        case errors.HandrailError():
            code = ExitCode.FAILED
        case OSError(errno=errno.ENOSPC):
            try:
                sys.stdout.flush()
            except OSError:
                forget_stdout()  # what it still holds would be tried once more at the end, and change the exit code
            return _tell("the disk is full; not all of the output could be written", ExitCode.FAILED)
        case _:
            return _tell(
                f"unexpected {type(error).__name__}: {error}; run it again with --debug to see where, and please report it",
                ExitCode.FAILED,
            )
    return _tell(str(error), code)


def _usage(error: Any) -> int:
    text = " ".join(error.format_message().split())
    if not text:  # typer raises a nameless error after it has printed the help
        return ExitCode.USAGE
    if unknown := re.match(r"No such command '([^']*)'", text):
        text = f"there is no command {unknown[1]!r}{nearest(unknown[1], _commands())}"
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "platform"
    if command.endswith((" send", " invoke")):
        # a message that a shell has cut into words, or that looks like an option
        if re.match(r"No such option: -[\d.]", text):
            return _tell(f"a message that begins with - goes behind --, as in: {command} QUEUE -- -5", ExitCode.USAGE)
        if "unexpected extra argument" in text:
            text = f"{text.rstrip('.')}; put single quotes around the message, as in '{{\"n\": 1}}'"
    return _tell(f"{text.rstrip('.')}; see: {command} --help", ExitCode.USAGE)


def _commands() -> list[str]:
    groups = [group.name for group in app.registered_groups if group.name]
    return [*groups, *(command.name for command in app.registered_commands if command.name)]


def _tell(text: str, code: ExitCode) -> int:
    _write(f"platform: {text}")
    return code


def _write(text: str) -> None:
    from handrail import logs  # noqa: PLC0415 - needed only for an error

    try:
        sys.stderr.write(logs.without_secrets(text) + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody is left to read it; the exit code still says it
