-- One table for the dead letters of both buses, whatever has become of them. The rows of the old tables are moved by
-- letters.go, in the same transaction.
ALTER TABLE dead_letters RENAME TO old_dead_letters;
ALTER TABLE archived_letters RENAME TO old_archived_letters;

CREATE TABLE dead_letters (
    seq               INTEGER PRIMARY KEY AUTOINCREMENT,
    id                TEXT    NOT NULL UNIQUE,
    identity          TEXT    NOT NULL UNIQUE, -- the same for a message that arrives again
    arrival           TEXT    NOT NULL,        -- names the message that arrived last
    unsettled         TEXT,                    -- hash of a message without an id, until the broker has its ack
    state             TEXT    NOT NULL CHECK (state IN ('waiting', 'replaying', 'archived', 'discarded', 'edited', 'handled')),
    event_id          TEXT,
    event_type        TEXT    NOT NULL,
    aggregate_type    TEXT    NOT NULL,
    aggregate_id      TEXT,
    aggregate_version INTEGER NOT NULL,
    tenant_id         TEXT,
    correlation_id    TEXT,
    handler           TEXT    NOT NULL,
    group_id          TEXT    NOT NULL,
    reason            TEXT    NOT NULL,
    attempts          INTEGER NOT NULL,
    first_failed_at   INTEGER NOT NULL,        -- this and the other times: microseconds since 1970
    last_failed_at    INTEGER NOT NULL,
    replays           INTEGER NOT NULL,
    replay_id         TEXT    NOT NULL,        -- the replay that it failed in last
    history           TEXT,
    source            TEXT    NOT NULL,
    headers           TEXT,
    raw               TEXT,
    bytes             INTEGER NOT NULL,
    release           TEXT    NOT NULL DEFAULT '', -- the replay that released it last, and where that stands
    release_to        TEXT    NOT NULL DEFAULT '',
    turn              INTEGER NOT NULL DEFAULT 0,
    released_at       INTEGER,
    sent_at           INTEGER,
    problem           TEXT    NOT NULL DEFAULT '',
    decided_by        TEXT    NOT NULL DEFAULT '',
    decided_reason    TEXT    NOT NULL DEFAULT '',
    decided_at        INTEGER,
    added_at          INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    body              BLOB    NOT NULL -- the last: what is read without it does not pass over it
) STRICT;
CREATE INDEX idx_dead_letters_groups ON dead_letters (group_id, tenant_id, first_failed_at, last_failed_at, replays)
    WHERE state = 'waiting';
CREATE INDEX idx_dead_letters_group ON dead_letters (group_id, last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX idx_dead_letters_waiting ON dead_letters (last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX idx_dead_letters_handler ON dead_letters (handler, last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX idx_dead_letters_tenant ON dead_letters (tenant_id, last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX idx_dead_letters_event ON dead_letters (event_id);
CREATE INDEX idx_dead_letters_aggregate ON dead_letters (aggregate_id);
CREATE INDEX idx_dead_letters_correlation ON dead_letters (correlation_id);
CREATE INDEX idx_dead_letters_unsettled ON dead_letters (unsettled) WHERE unsettled IS NOT NULL;
CREATE INDEX idx_dead_letters_released ON dead_letters (released_at, turn) WHERE state = 'replaying';
CREATE INDEX idx_dead_letters_decided ON dead_letters (decided_at, seq) WHERE decided_at IS NOT NULL;
