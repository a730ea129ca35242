-- The events that rest in the dead letters of a handler, while later ones of their aggregate have to wait behind them.

-- +goose Up
CREATE TABLE parked (
    event_id          TEXT    NOT NULL,
    handler           TEXT    NOT NULL,
    aggregate_id      TEXT    NOT NULL,
    aggregate_version INTEGER NOT NULL,
    parked_at         INTEGER NOT NULL,
    PRIMARY KEY (event_id, handler)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_parked_aggregate ON parked (aggregate_id, handler, aggregate_version);

-- +goose Down
-- Without it later events of an aggregate would get past those in the dead letters.
CREATE TABLE nothing_may_be_lost (kept INTEGER CONSTRAINT the_tables_hold_events CHECK (kept = 0));
INSERT INTO nothing_may_be_lost SELECT EXISTS (SELECT 1 FROM parked);
DROP TABLE nothing_may_be_lost;
DROP TABLE parked;
