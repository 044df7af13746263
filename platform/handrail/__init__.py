"""handrail: drop a handler file, bind a queue, run."""

from __future__ import annotations

__version__ = "0.1.0"
