"""What SQLite itself does: a bare apsw loop that inserts in bulk, then claims and deletes. The baseline of our ratios.

No ids, priorities, delays, owners' locks or other processes: one table, one connection, one thread. Inserts are synced to
the disk (FULL), claims and deletes are not (NORMAL), as in the adapter.

    python benchmarks/raw_sqlite.py [--messages 10000] [--size 200] [--rounds 5] [--batch 500]

prints the medians of the rounds as JSON, under the names of ``measures.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import apsw

SCHEMA = """
CREATE TABLE msg (seq INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER NOT NULL, owner INTEGER, body BLOB NOT NULL);
CREATE INDEX ready ON msg (seq) WHERE state = 0;
"""
CLAIM = """
UPDATE msg SET state = 1, owner = 1 WHERE seq IN (SELECT seq FROM msg WHERE state = 0 ORDER BY seq LIMIT ?)
RETURNING seq, body
"""


def publish(db: apsw.Connection, body: bytes, messages: int, batch: int) -> float:
    """Insert *messages* in transactions of *batch*; messages/s."""
    db.pragma("synchronous", "FULL")
    started = time.perf_counter()
    for first in range(0, messages, batch):
        count = min(batch, messages - first)
        with db:
            db.executemany("INSERT INTO msg (state, body) VALUES (0, ?)", [(body,)] * count)
    return messages / (time.perf_counter() - started)


def handle(db: apsw.Connection, batch: int) -> float:
    """Claim and delete everything, *batch* at a time, the delete in the same transaction as the next claim; messages/s."""
    db.pragma("synchronous", "NORMAL")
    started = time.perf_counter()
    done = 0
    held: list[tuple[int]] = []
    while True:
        with db:
            db.executemany("DELETE FROM msg WHERE seq = ? AND owner = 1", held)
            claimed = db.execute(CLAIM, (batch,)).fetchall()
        done += len(held)
        held = [(seq,) for seq, _body in claimed]
        if not held:
            return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    body = b'{"n": "' + b"x" * (options.size - 9) + b'"}'
    with tempfile.TemporaryDirectory(prefix="raw-sqlite-", dir=".") as folder:
        db = apsw.Connection(str(Path(folder, "raw.db")))
        db.pragma("journal_mode", "wal")
        db.execute(SCHEMA)
        rates = [
            (publish(db, body, options.messages, options.batch), handle(db, options.batch))
            for _ in range(options.rounds)
        ]
        db.close()
    names = ("publish bulk", "handle")
    print(json.dumps({name: statistics.median(rate[at] for rate in rates) for at, name in enumerate(names)}))


if __name__ == "__main__":
    main()
