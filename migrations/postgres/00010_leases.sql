-- Who does what one worker does alone: a row for each task, once somebody has held its lease.

-- +goose Up
CREATE TABLE leases (
    task       text        PRIMARY KEY,
    holder     text        NOT NULL, -- '' if it was given back
    fence      bigint      NOT NULL, -- grows with each change of the holder
    expires_at timestamptz NOT NULL
);

-- +goose Down
DROP TABLE leases;
