-- One row for each id that a sender chose, and for each job whose outcome is kept.
CREATE TABLE job (
    seq      INTEGER PRIMARY KEY,
    queue    TEXT NOT NULL,
    id       TEXT NOT NULL,
    send     TEXT NOT NULL DEFAULT '',    -- the act of sending that holds the id
    final    INTEGER NOT NULL DEFAULT 0,  -- 1: no attempt follows
    outcome  TEXT,                        -- the last one; NULL: none yet
    attempts INTEGER NOT NULL DEFAULT 0,
    at       REAL NOT NULL DEFAULT 0,     -- when the outcome came
    touched  REAL NOT NULL,               -- when this row was last written; what it is pruned by
    error    TEXT NOT NULL DEFAULT '',
    result   BLOB,                        -- last, so that the other columns are read without its pages
    UNIQUE (queue, id)
);
CREATE INDEX job_by_age ON job (final, touched);

-- A log of changes: workers read what is newer than the last change they saw.
CREATE TABLE cancellation (
    change   INTEGER PRIMARY KEY AUTOINCREMENT,
    queue    TEXT NOT NULL,
    id       TEXT NOT NULL,
    at       REAL NOT NULL,
    standing INTEGER NOT NULL,            -- 0: taken back or carried out
    UNIQUE (queue, id)
);
CREATE INDEX cancellation_by_age ON cancellation (at);
