"""What queues need in a SQLite file and how it stands there. It only reads, and makes no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apsw

from handrail.adapter import Planned, QueueSpec
from handrail.errors import BrokerError
from handrail_sqlite import statements as sql
from handrail_sqlite.faults import explain, foreign, newer


def of_memory(prefix: str, queues: Sequence[QueueSpec]) -> list[Planned]:
    """As :func:`of_file`, for a broker that begins and ends with its process."""
    return [_queue(prefix, spec, None) for spec in queues]


def of_file(file: Path, prefix: str, queues: Sequence[QueueSpec]) -> list[Planned]:
    """The file and a row for each queue. Raises :class:`BrokerError` for a file that cannot be used."""
    found = _orders(file) if file.exists() else None
    schema = f"version {sql.VERSION}"
    place = Planned("file", str(file), "missing" if found is None else "there", {"schema": schema})
    return [place, *(_queue(prefix, spec, found) for spec in queues)]


def _queue(prefix: str, spec: QueueSpec, found: dict[str, str] | None) -> Planned:
    name = prefix + spec.name
    order = found.get(name) if found is not None else None
    settings: dict[str, str] = {"order": spec.order}
    if order is None:
        return Planned("queue", name, "missing", settings)
    detail = f"has order: {order}, which a start changes" if order != spec.order else ""
    return Planned("queue", name, "there", settings, detail)


def _orders(file: Path) -> dict[str, str] | None:
    """The order of each queue in *file*; None when it is empty yet."""
    try:
        db = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            application, version = db.pragma("application_id"), db.pragma("user_version")
            if application != sql.APPLICATION:
                if db.execute(sql.TABLES).get:
                    raise foreign(file)
                return None
            if version > sql.VERSION:
                raise newer(file, version, sql.VERSION)
            rows = db.execute("SELECT name, lifo FROM queue").fetchall()
            return {str(name): "lifo" if lifo else "fifo" for name, lifo in rows}
        finally:
            db.close()
    except (apsw.Error, OSError) as error:
        raise BrokerError(explain(error, file)) from error
