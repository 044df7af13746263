"""Writes the capability table, as the installed adapters state it, between the markers of README.md."""  # noqa: INP001

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
PLATFORM = Path(sys.executable).with_name("platform")


def main() -> None:
    printed = subprocess.run(
        [PLATFORM, "capabilities", "--markdown"], check=True, capture_output=True, text=True
    ).stdout
    table = f"<!-- capabilities:start -->\n{printed.strip()}\n<!-- capabilities:end -->"
    text = README.read_text()
    README.write_text(
        re.sub("<!-- capabilities:start -->.*?<!-- capabilities:end -->", lambda _: table, text, flags=re.DOTALL)
    )


if __name__ == "__main__":
    main()
