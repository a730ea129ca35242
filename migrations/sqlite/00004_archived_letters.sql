-- The dead letters that were taken out of their queue: who, when and why.

-- +goose Up
CREATE TABLE archived_letters (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    once          TEXT    NOT NULL, -- the same for a letter that is archived again, as the first time was cut off
    letter        BLOB    NOT NULL, -- all of it, as deadletter.Letter.Encode writes it
    disposition   TEXT    NOT NULL CHECK (disposition IN ('archived', 'discarded', 'edited', 'imported')),
    archived_by   TEXT    NOT NULL,
    archived_at   INTEGER NOT NULL,
    reason        TEXT    NOT NULL,
    restore_begun INTEGER,
    restored_by   TEXT,
    restored_at   INTEGER
) STRICT;

CREATE UNIQUE INDEX archived_letters_once ON archived_letters (once) WHERE restored_at IS NULL OR disposition = 'imported';

-- +goose Down
CREATE TABLE nothing_may_be_lost (kept INTEGER CONSTRAINT the_tables_hold_events CHECK (kept = 0));
INSERT INTO nothing_may_be_lost SELECT EXISTS (SELECT 1 FROM archived_letters);
DROP TABLE nothing_may_be_lost;
DROP TABLE archived_letters;
