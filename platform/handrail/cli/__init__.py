"""The command ``platform``. It may hold no behaviour that app code could not have through the package."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line in ``sys.argv`` and exit with a code of `handrail.cli.exit_codes`."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever unpacked us by hand gets a sentence, not a SyntaxError
        sys.exit(f"handrail needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    if sys.platform not in {"linux", "darwin"}:
        sys.exit(f"handrail runs on Linux and macOS; this is {sys.platform} (on Windows, use WSL)")
    _open_standard_streams()
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        # names of files and what handlers print would be mangled or refused in a locale of another encoding
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very command
    if os.getpid() == 1:
        from handrail.cli import pid1  # noqa: PLC0415 - only a container's first process needs it

        pid1.become_init()
    from handrail.cli.app import run  # noqa: PLC0415 - nothing may be imported before the checks above

    sys.exit(run(sys.argv[1:]))


def _open_standard_streams() -> None:
    """A descriptor 0, 1 or 2 that was closed at start would become that of a socket or a database: log lines into it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one, since those below are open
            os.set_inheritable(opened, True)
            setattr(sys, name, os.fdopen(opened, mode))
