CREATE TABLE nothing_may_be_lost (kept INTEGER CONSTRAINT the_tables_hold_events CHECK (kept = 0));
INSERT INTO nothing_may_be_lost SELECT EXISTS (SELECT 1 FROM dead_letters);
DROP TABLE nothing_may_be_lost;
DROP TABLE dead_letters;
CREATE TABLE dead_letters (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    reason           TEXT    NOT NULL,
    handler          TEXT    NOT NULL,
    attempts         INTEGER NOT NULL,
    first_failed     INTEGER NOT NULL,
    last_failed      INTEGER NOT NULL,
    source           TEXT    NOT NULL,
    headers          TEXT    NOT NULL,
    body             BLOB    NOT NULL,
    replay_requested INTEGER NOT NULL DEFAULT 0 CHECK (replay_requested IN (0, 1)),
    replay_id        TEXT    NOT NULL DEFAULT '',
    replay_to        TEXT    NOT NULL DEFAULT 'handler',
    replay_turn      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX idx_dead_letters_replay_turn ON dead_letters (replay_turn, id) WHERE replay_requested = 1;
CREATE TABLE archived_letters (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    once          TEXT    NOT NULL,
    letter        BLOB    NOT NULL,
    disposition   TEXT    NOT NULL CHECK (disposition IN ('archived', 'discarded', 'edited', 'imported')),
    archived_by   TEXT    NOT NULL,
    archived_at   INTEGER NOT NULL,
    reason        TEXT    NOT NULL,
    restore_begun INTEGER,
    restored_by   TEXT,
    restored_at   INTEGER
) STRICT;
CREATE UNIQUE INDEX archived_letters_once ON archived_letters (once) WHERE restored_at IS NULL OR disposition = 'imported';
