-- The events that rest in the dead letters of a handler, while later ones of their aggregate have to wait behind them.

-- +goose Up
CREATE TABLE parked (
    event_id          uuid        NOT NULL,
    handler           text        NOT NULL,
    aggregate_id      uuid        NOT NULL,
    aggregate_version integer     NOT NULL,
    parked_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, handler)
);
CREATE INDEX parked_aggregate ON parked (aggregate_id, handler, aggregate_version);

-- +goose Down
-- Without it later events of an aggregate would get past those in the dead letters.
-- +goose StatementBegin
DO $$
BEGIN
    IF EXISTS (SELECT FROM parked) THEN
        RAISE EXCEPTION 'parked holds events that others wait behind' USING ERRCODE = 'object_in_use';
    END IF;
END
$$;
-- +goose StatementEnd
DROP TABLE parked;
