"""Every SQL statement of the SQLite adapter, named. Nothing is executed here.

Batches cross into SQL as one array (``carray``) or one JSON text, and come back as one row. Python's lock changes
hands around each step of a statement, and in a busy process each change can take a whole switch interval: a statement
per message would be a thousand changes where these are one.
"""

# ruff: noqa: S608 - only numbers of our own are put into the text
from __future__ import annotations

from typing import Final

#: ``PRAGMA application_id`` of our files, "hrl1": a database of somebody else is never written to.
APPLICATION: Final = 0x68726C31
#: ``PRAGMA user_version``: the version of the schema below.
VERSION: Final = 1

READY: Final = 0
DELAYED: Final = 1
ACTIVE: Final = 2
DEAD: Final = 3

#: Bits of ``msg.more``: which further tables hold a row for the message. Plain messages have neither.
EXTRA: Final = 1
FAULT: Final = 2

#: Times are whole microseconds since 1970. ``ord`` comes from the same counter as ``seq`` (negative where the newest goes
#: first), so it only ever rises and what is put in anew always stands behind what was there.
SCHEMA: Final = f"""
CREATE TABLE queue (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    lifo INTEGER NOT NULL DEFAULT 0,
    -- counted by the transactions that change them, for count(*) takes 105 ms at 134,000 rows
    ready INTEGER NOT NULL DEFAULT 0,
    delayed INTEGER NOT NULL DEFAULT 0,
    active INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0
) STRICT;

-- narrow, so that claiming walks few pages; AUTOINCREMENT, so that a late acknowledgement never meets a reused row
CREATE TABLE msg (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    ord INTEGER NOT NULL,
    due INTEGER,
    owner INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    starts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    redelivered INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL,
    sent INTEGER NOT NULL,
    more INTEGER NOT NULL DEFAULT 0,
    id TEXT NOT NULL
) STRICT;

CREATE INDEX msg_ready ON msg (queue, priority DESC, ord) WHERE state = {READY};
CREATE INDEX msg_delayed ON msg (due) WHERE state = {DELAYED};
CREATE INDEX msg_active ON msg (owner) WHERE state = {ACTIVE};
CREATE INDEX msg_dead ON msg (queue, ord) WHERE state = {DEAD};

CREATE TABLE body (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;

-- what few messages have: headers, key, options, another content type
CREATE TABLE extra (seq INTEGER PRIMARY KEY, meta BLOB NOT NULL) STRICT;

-- why a message is dead, the queue it died in, and the name its dead letters stand under
CREATE TABLE fault (
    seq INTEGER PRIMARY KEY,
    place TEXT NOT NULL,
    queue TEXT NOT NULL,
    at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    traceback TEXT NOT NULL
) STRICT;

CREATE INDEX fault_place ON fault (place) WHERE place <> '';

-- workers that may hold messages; each holds a lock on the file of its name for as long as it lives
CREATE TABLE owner (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE) STRICT;

INSERT INTO sqlite_sequence (name, seq) VALUES ('msg', 0);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""

TABLES = "SELECT count(*) FROM sqlite_schema"

# --- queues -----------------------------------------------------------------------------------------------------------

ADD_QUEUE = "INSERT OR IGNORE INTO queue (name) VALUES (?)"
QUEUE_ID = "SELECT id FROM queue WHERE name = ?"
SET_ORDER = "UPDATE queue SET lifo = ?2 WHERE id = ?1 AND lifo <> ?2"
GET_ORDER = "SELECT lifo FROM queue WHERE id = ?"
COUNT = (
    "UPDATE queue SET ready = ready + ?2, delayed = delayed + ?3, active = active + ?4, dead = dead + ?5 WHERE id = ?1"
)
DEPTH = "SELECT ready, delayed, active, dead FROM queue WHERE name = ?"
#: What a worker asks when woken: the next due time, and which queues have ready messages.
AGENDA = f"""
SELECT (SELECT min(due) FROM msg WHERE state = {DELAYED}),
       (SELECT group_concat(id) FROM queue WHERE ready > 0)
"""

# --- the counter behind seq and ord -----------------------------------------------------------------------------------

LAST_SEQ = "SELECT seq FROM sqlite_sequence WHERE name = 'msg'"
ADVANCE = "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'msg' RETURNING seq - ?1"

# --- publishing -------------------------------------------------------------------------------------------------------

#: ?1 the counter, ?2 now, ?3 JSON rows of queue, priority, due, size, sent, more, id.
INSERT = f"""
INSERT INTO msg (seq, queue, state, priority, ord, due, size, sent, more, id)
SELECT ?1 + 1 + key, value ->> 0, iif(value ->> 2 > ?2, {DELAYED}, {READY}), value ->> 1,
       iif((SELECT lifo FROM queue WHERE id = value ->> 0), -1, 1) * (?1 + 1 + key),
       value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
FROM json_each(?3)
"""
INSERT_BODIES = "INSERT INTO body (seq, body) SELECT ?1 + rowid, value FROM carray(?2)"
PUT_BODY = "INSERT OR REPLACE INTO body (seq, body) VALUES (?, ?)"
PUT_EXTRA = "INSERT OR REPLACE INTO extra (seq, meta) VALUES (?, ?)"
PUT_FAULT = "INSERT OR REPLACE INTO fault (seq, place, queue, at, reason, traceback) VALUES (?, ?, ?, ?, ?, ?)"
SET_COUNTS = "UPDATE msg SET attempts = ?2, starts = ?3, crashes = ?4 WHERE seq = ?1"

# --- claiming ---------------------------------------------------------------------------------------------------------

#: ?1 queue, ?2 how many. One row: a JSON array in order of delivery.
CANDIDATES = f"""
SELECT json_group_array(json_array(
           seq, id, priority, sent, due, attempts, starts, crashes, redelivered, size, more))
FROM (SELECT * FROM msg WHERE state = {READY} AND queue = ?1 ORDER BY priority DESC, ord LIMIT ?2)
"""
CLAIM = f"UPDATE msg SET state = {ACTIVE}, owner = ?1 WHERE seq IN carray(?2)"
#: All bodies behind one another; the sizes are known.
BODIES = """
SELECT CAST(group_concat(body, '') AS BLOB)
FROM (SELECT body.body AS body FROM carray(?1) AS c CROSS JOIN body ON body.seq = c.value)
"""
EXTRAS = "SELECT seq, meta FROM extra WHERE seq IN carray(?1)"
FAULTS = "SELECT seq, reason, traceback, at, queue FROM fault WHERE seq IN carray(?1)"

# A plus keeps a condition out of the choice of an index: rows named by their seq are found by it, not by walking all
# that an owner holds once for each.

# --- settling ---------------------------------------------------------------------------------------------------------

#: Of ?2, those that this owner still holds.
OWNED = f"SELECT seq FROM msg WHERE +state = {ACTIVE} AND +owner = ?1 AND seq IN carray(?2)"
DELETE = f"DELETE FROM msg WHERE seq IN carray(?2) AND +owner = ?1 AND +state = {ACTIVE}"
DELETE_BODIES = "DELETE FROM body WHERE seq IN carray(?1)"
DELETE_EXTRAS = "DELETE FROM extra WHERE seq IN carray(?1)"
DELETE_FAULTS = "DELETE FROM fault WHERE seq IN carray(?1)"

#: Back to the head untouched: in a queue of first in first out that is where its old place in the order lies.
RELEASE = f"""
UPDATE msg SET state = {READY}, owner = NULL WHERE seq IN carray(?2) AND +owner = ?1 AND +state = {ACTIVE}
"""
#: ?2 JSON rows of seq, attempts, starts, crashes, redelivered.
GIVE_BACK = f"""
UPDATE msg SET state = {READY}, owner = NULL,
       attempts = j.value ->> 1, starts = j.value ->> 2, crashes = j.value ->> 3, redelivered = j.value ->> 4
FROM json_each(?2) AS j WHERE msg.seq = j.value ->> 0 AND +owner = ?1 AND +state = {ACTIVE}
"""
#: ?2 JSON rows of seq, attempts, starts, crashes, due. It stays with its owner.
HOLD = f"""
UPDATE msg SET attempts = j.value ->> 1, starts = j.value ->> 2, crashes = j.value ->> 3, due = j.value ->> 4
FROM json_each(?2) AS j WHERE msg.seq = j.value ->> 0 AND +owner = ?1 AND +state = {ACTIVE}
"""
#: ?2 JSON array of seqs, the first of which shall be delivered first; ?3 the counter. Only for newest first.
TO_HEAD = "UPDATE msg SET ord = -(?2 - j.key) FROM json_each(?1) AS j WHERE msg.seq = j.value"
#: ?2 the counter, ?3 JSON rows of seq, queue, state, priority, due, attempts, starts, crashes, size, more, id.
MOVE = f"""
UPDATE msg SET queue = j.value ->> 1, state = j.value ->> 2, priority = j.value ->> 3,
       ord = iif(j.value ->> 2 <> {DEAD} AND (SELECT lifo FROM queue WHERE id = j.value ->> 1), -1, 1) * (?2 + 1 + j.key),
       due = j.value ->> 4, owner = NULL, attempts = j.value ->> 5, starts = j.value ->> 6, crashes = j.value ->> 7,
       redelivered = 0, size = j.value ->> 8, more = j.value ->> 9, id = j.value ->> 10
FROM json_each(?3) AS j WHERE msg.seq = j.value ->> 0 AND +owner = ?1 AND +state = {ACTIVE}
"""

# --- delays -----------------------------------------------------------------------------------------------------------

#: ?1 now, ?2 how many.
FALLEN_DUE = f"""
SELECT json_group_array(json_array(seq, queue))
FROM (SELECT seq, queue FROM msg WHERE state = {DELAYED} AND due <= ?1 ORDER BY due, seq LIMIT ?2)
"""
#: ?1 the counter, ?2 JSON rows of seq, queue.
PROMOTE = f"""
UPDATE msg SET state = {READY},
       ord = iif((SELECT lifo FROM queue WHERE id = j.value ->> 1), -1, 1) * (?1 + 1 + j.key)
FROM json_each(?2) AS j WHERE msg.seq = j.value ->> 0 AND +state = {DELAYED}
"""

# --- owners -----------------------------------------------------------------------------------------------------------

ADD_OWNER = "INSERT INTO owner (name) VALUES (?) RETURNING id"
OWNERS = "SELECT id, name FROM owner"
IS_OWNER = "SELECT 1 FROM owner WHERE id = ?"
REMOVE_OWNER = "DELETE FROM owner WHERE id = ?"
#: What an owner holds, with the order it shall have at the head.
HELD_BY = f"""
SELECT msg.seq, msg.queue, queue.name, queue.lifo, msg.id, msg.attempts, msg.starts, msg.crashes, msg.redelivered
FROM msg JOIN queue ON queue.id = msg.queue WHERE msg.state = {ACTIVE} AND msg.owner = ?1 ORDER BY msg.ord
"""

# --- looking at and clearing ------------------------------------------------------------------------------------------

_ORDER = {READY: "priority DESC, ord", DELAYED: "due, seq", ACTIVE: "+seq", DEAD: "ord DESC"}
_COLUMNS = """
SELECT m.id, m.priority, m.sent, m.due, m.attempts, m.starts, m.crashes, body.body, extra.meta,
       fault.reason, fault.traceback, fault.at, fault.queue
"""
_JOINS = """
JOIN queue ON queue.id = m.queue JOIN body ON body.seq = m.seq
LEFT JOIN extra ON extra.seq = m.seq LEFT JOIN fault ON fault.seq = m.seq
"""

# a state must stand in the text, not be bound, for SQLite to use its partial index


def peek(state: int) -> str:
    """?1 queue name, ?2 limit, ?3 offset."""
    order = _ORDER[state]
    return f"""
    {_COLUMNS} FROM (
        SELECT * FROM msg WHERE state = {state} AND queue = (SELECT id FROM queue WHERE name = ?1)
        ORDER BY {order} LIMIT ?2 OFFSET ?3
    ) AS m {_JOINS} ORDER BY {order.replace("seq", "m.seq")}
    """


def find(state: int) -> str:
    """?1 queue name, ?2 id."""
    return f"{_COLUMNS} FROM msg AS m {_JOINS} WHERE m.state = {state} AND queue.name = ?1 AND m.id = ?2 LIMIT 1"


def select(state: int, *, by_id: bool) -> str:
    """Up to ?2 seqs of queue ?1 (with *by_id* those whose id is in the JSON array ?3), as JSON; dead ones in order of death."""
    only = "AND id IN (SELECT value FROM json_each(?3))" if by_id else ""
    # no order where none is needed: sorting a million rows for each step would cost more than deleting them
    order = "ORDER BY ord" if state == DEAD else ""
    return f"""
    SELECT json_group_array(seq) FROM (
        SELECT seq FROM msg WHERE state = {state} AND queue = ?1 {only} {order} LIMIT ?2
    )
    """


def delete(state: int) -> str:
    """The seqs ?1, where they are still in that state."""
    return f"DELETE FROM msg WHERE seq IN carray(?1) AND +state = {state}"


#: ?1 the counter, ?2 now, ?3 JSON rows of seq, queue. Due is set to now, so that an ``expires`` counts from the replay.
REPLAY = f"""
UPDATE msg SET queue = j.value ->> 1, state = {READY}, due = ?2, attempts = 0, starts = 0, crashes = 0, redelivered = 0,
       more = more & {EXTRA}, ord = iif((SELECT lifo FROM queue WHERE id = j.value ->> 1), -1, 1) * (?1 + 1 + j.key)
FROM json_each(?3) AS j WHERE msg.seq = j.value ->> 0 AND +state = {DEAD}
"""
#: Of the dead letters ?1, the queue each died in.
DIED_IN = "SELECT seq, queue FROM fault WHERE seq IN carray(?1)"

# --- dead letters whose place is a queue with a handler ---------------------------------------------------------------

HAS_DEAD = "SELECT EXISTS (SELECT 1 FROM fault WHERE place = ?1 AND place <> '')"
#: ?1 the place, ?2 how many.
DEAD_AT = f"""
SELECT json_group_array(json_array(seq, queue)) FROM (
    SELECT msg.seq, msg.queue FROM fault JOIN msg ON msg.seq = fault.seq
    WHERE fault.place = ?1 AND fault.place <> '' AND msg.state = {DEAD} ORDER BY fault.seq LIMIT ?2
)
"""
#: ?1 the queue, ?2 the counter, ?3 JSON rows of seq, queue.
ADOPT = f"""
UPDATE msg SET queue = ?1, state = {READY}, ord = iif((SELECT lifo FROM queue WHERE id = ?1), -1, 1) * (?2 + 1 + j.key)
FROM json_each(?3) AS j WHERE msg.seq = j.value ->> 0 AND +state = {DEAD}
"""
LEAVE_PLACE = "UPDATE fault SET place = '' WHERE place = ?1 AND place <> '' AND seq IN carray(?2)"
#: Writes a page that is written anyway, to find out whether there is room.
PROBE = "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'msg'"
