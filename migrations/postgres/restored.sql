-- To be run once, by the owner, on a database that was restored from a dump into another cluster, before any worker
-- starts on it. This is no migration.
--
-- The dump has the transaction ids of the cluster that it came from. In this one they may lie far ahead, and whoever
-- reads in commit order would wait for them. All events get transaction 0, as adopted ones have, and the relay goes on
-- at the first that it had not relayed; some behind it may be relayed twice.
--
--     psql --single-transaction -v ON_ERROR_STOP=1 -f restored.sql
LOCK TABLE events, relay_position;

UPDATE relay_position AS position
SET transaction_id = '0', passed_over = NULL, id = coalesce(
    (
        SELECT min(id) - 1
        FROM events
        WHERE (events.transaction_id, events.id) > (position.transaction_id, position.id)
            AND NOT coalesce(pg_visible_in_snapshot(events.transaction_id, position.passed_over), false)
    ),
    (SELECT max(id) FROM events),
    0
);

ALTER TABLE events DROP COLUMN transaction_id;
ALTER TABLE events ADD COLUMN transaction_id xid8 NOT NULL DEFAULT '0';
ALTER TABLE events ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id();
CREATE UNIQUE INDEX events_transaction_unique ON events (transaction_id, id);
CREATE INDEX events_own ON events (transaction_id, id) WHERE own;
