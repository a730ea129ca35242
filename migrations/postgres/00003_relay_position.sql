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
-- The relay would pass over what it has not come to: on the way up again, all rows that are there are taken for adopted
-- ones, which have transaction 0.
-- +goose StatementBegin
DO $$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    LOCK TABLE relay_position;
    LOCK TABLE events IN SHARE MODE;
    IF EXISTS (
        SELECT FROM events
        WHERE (transaction_id, id) > (
            coalesce((SELECT transaction_id FROM relay_position), '0'),
            coalesce((SELECT id FROM relay_position), 9223372036854775807)
        )
    ) THEN
        RAISE EXCEPTION 'events holds events that were not relayed yet' USING ERRCODE = 'object_in_use';
    END IF;
END
$$;
-- +goose StatementEnd
DROP TABLE relay_position;
