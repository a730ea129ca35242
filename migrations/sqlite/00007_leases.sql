-- Who does what one worker does alone: a row for each task, once somebody has held its lease.

-- +goose Up
CREATE TABLE leases (
    task       TEXT    PRIMARY KEY,
    holder     TEXT    NOT NULL, -- '' if it was given back
    fence      INTEGER NOT NULL, -- grows with each change of the holder
    expires_at INTEGER NOT NULL  -- microseconds
) STRICT;

-- +goose Down
DROP TABLE leases;
