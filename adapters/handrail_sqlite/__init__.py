"""The embedded broker of handrail: queues in one SQLite file. It re-exports the adapter and holds no code."""

from __future__ import annotations

from handrail_sqlite.adapter import SQLiteAdapter

__all__ = ["SQLiteAdapter"]
