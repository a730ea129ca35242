-- Who has done what by the console and the command line, see package audit.

-- +goose Up
CREATE TABLE IF NOT EXISTS worker_audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)), -- microseconds
    action  TEXT    NOT NULL,
    done_by TEXT    NOT NULL,
    source  TEXT    NOT NULL, -- the console or the command line, and from where
    subject TEXT    NOT NULL CHECK (json_valid(subject)), -- what it is about: ids and conditions, nothing of a patient
    count   INTEGER,          -- NULL if it is not known
    reason  TEXT    NOT NULL
) STRICT;
-- +goose StatementBegin
CREATE TRIGGER IF NOT EXISTS worker_audit_no_update BEFORE UPDATE ON worker_audit
BEGIN
    SELECT RAISE(ABORT, 'worker_audit is append-only: a row cannot be changed');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER IF NOT EXISTS worker_audit_no_delete BEFORE DELETE ON worker_audit
BEGIN
    SELECT RAISE(ABORT, 'worker_audit is append-only: a row cannot be deleted');
END;
-- +goose StatementEnd
-- INSERT OR REPLACE deletes the row in its way without firing the trigger above.
-- +goose StatementBegin
CREATE TRIGGER IF NOT EXISTS worker_audit_no_replace BEFORE INSERT ON worker_audit WHEN NEW.id <> -1
BEGIN
    SELECT RAISE(ABORT, 'worker_audit is append-only: a row of this id exists')
    WHERE EXISTS (SELECT 1 FROM worker_audit WHERE id = NEW.id);
END;
-- +goose StatementEnd

-- What was recorded stays.
-- +goose Down
SELECT 1;
