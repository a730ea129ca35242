-- How far the relay has come: one row, once it has begun.

-- +goose Up
CREATE TABLE relay_position (
    only_row       boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    transaction_id xid8        NOT NULL,
    id             bigint      NOT NULL,
    passed_over    pg_snapshot, -- what it shows behind the position was there when a relay began at the end
    moved_at       timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP TABLE relay_position;
