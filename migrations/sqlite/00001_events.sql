-- The contract's columns, in SQLite's types: a uuid is its canonical lower-case text, a time the microseconds since
-- 1970 in UTC, JSON its text as it was written. Writers are serialised, so the order of id is the order of commit.
--
-- What the worker writes (own = 1) it has validated. Rows of other programs are held to the same here, as one that
-- cannot be read would stop the relay.

-- +goose Up
CREATE TABLE events (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id          TEXT    NOT NULL CONSTRAINT events_event_id_unique UNIQUE,
    event_type        TEXT    NOT NULL CHECK (length(event_type) BETWEEN 1 AND 100),
    aggregate_type    TEXT    NOT NULL CHECK (length(aggregate_type) BETWEEN 1 AND 50),
    aggregate_id      TEXT    NOT NULL,
    aggregate_version INTEGER NOT NULL CHECK (aggregate_version BETWEEN 1 AND 2147483647),
    tenant_id         TEXT    NOT NULL,
    clinic_id         TEXT,
    causation_id      TEXT,
    correlation_id    TEXT    NOT NULL,
    user_id           TEXT,
    created_at        INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    event_data        TEXT    NOT NULL,
    metadata          TEXT             DEFAULT '{}',
    own               INTEGER NOT NULL DEFAULT 0 CHECK (own IN (0, 1)),

    CONSTRAINT events_ids_are_uuids CHECK (own = 1 OR (
            event_id       GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
        AND aggregate_id   GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
        AND tenant_id      GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
        AND clinic_id      GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
        AND causation_id   GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
        AND correlation_id GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
        AND user_id        GLOB replace('hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh', 'h', '[0-9a-f]')
    )),
    CONSTRAINT events_json_is_valid CHECK (own = 1 OR (
        json_valid(event_data)
        AND (metadata IS NULL OR CASE WHEN json_valid(metadata) THEN json_type(metadata) = 'object' END IS TRUE)
    ))
) STRICT;

CREATE UNIQUE INDEX events_aggregate_version_unique ON events (aggregate_id, aggregate_version);

-- An index ends with the row's id, so these give the reads their order, ties and all, without a sort.
CREATE INDEX idx_events_aggregate   ON events (aggregate_type, aggregate_id, aggregate_version);
CREATE INDEX idx_events_correlation ON events (correlation_id, created_at);
CREATE INDEX idx_events_causation   ON events (causation_id) WHERE causation_id IS NOT NULL;
CREATE INDEX idx_events_tenant      ON events (tenant_id, created_at);
CREATE INDEX idx_events_type        ON events (event_type, created_at);
CREATE INDEX idx_events_created_at  ON events (created_at);

-- +goose StatementBegin
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events is append-only: a row cannot be changed');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
BEGIN
    SELECT RAISE(ABORT, 'events is append-only: a row cannot be deleted');
END;
-- +goose StatementEnd

-- INSERT OR REPLACE deletes the row in its way without firing the trigger above. The worker's own INSERT never does.
-- +goose StatementBegin
CREATE TRIGGER events_no_replace BEFORE INSERT ON events WHEN NEW.own = 0
BEGIN
    SELECT RAISE(ABORT, 'events is append-only: a row of this id, event_id or version exists')
    WHERE EXISTS (SELECT 1 FROM events WHERE id = NEW.id)
       OR EXISTS (SELECT 1 FROM events WHERE event_id = NEW.event_id)
       OR EXISTS (SELECT 1 FROM events
                  WHERE aggregate_id = NEW.aggregate_id AND aggregate_version = NEW.aggregate_version);
END;
-- +goose StatementEnd

-- The inbox: which handler has handled which event.
CREATE TABLE handled (
    event_id    TEXT    NOT NULL,
    handler     TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,
    handled_at  INTEGER NOT NULL,
    PRIMARY KEY (event_id, handler)
) STRICT, WITHOUT ROWID;

-- The one row says up to which events.id the bus has taken responsibility.
CREATE TABLE relay_position (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    event     INTEGER NOT NULL
) STRICT;

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
    replay_requested INTEGER NOT NULL DEFAULT 0 CHECK (replay_requested IN (0, 1))
) STRICT;

CREATE INDEX idx_dead_letters_replay_requested ON dead_letters (id) WHERE replay_requested = 1;

-- +goose Down
-- Fails, and with it the whole step, when anything would be lost.
CREATE TABLE nothing_may_be_lost (kept INTEGER CONSTRAINT the_tables_hold_events CHECK (kept = 0));
INSERT INTO nothing_may_be_lost
    SELECT EXISTS (SELECT 1 FROM events) OR EXISTS (SELECT 1 FROM handled) OR EXISTS (SELECT 1 FROM dead_letters);
DROP TABLE nothing_may_be_lost;
DROP TABLE dead_letters;
DROP TABLE relay_position;
DROP TABLE handled;
DROP TABLE events;
