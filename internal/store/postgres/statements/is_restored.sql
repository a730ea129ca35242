-- Whether the transaction ids are those of another cluster, from whose dump the database was restored: an event has one
-- that no transaction had yet, or the position has one that is greater than that of the transaction which has written it.
-- The position tells it also when the cluster has come to the ids of the dump meanwhile.
WITH next AS (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS id
)
SELECT
    EXISTS (SELECT FROM events WHERE transaction_id >= pg_snapshot_xmax(pg_current_snapshot()))
    OR EXISTS (
        SELECT
        FROM relay_position, next
        WHERE greatest(transaction_id, pg_snapshot_xmax(passed_over))
            > (next.id - mod(next.id - xmin::text::bigint + 4294967296, 4294967296))::text::xid8
    )
