-- Whether the transaction ids are those of another cluster, from whose dump the database was restored: an event has one
-- that no transaction had yet, or the position has one that is greater than that of the transaction which has written it.
-- The position tells it also when the cluster has come to the ids of the dump meanwhile. The greatest id is read from the
-- index: after a restore the column has no statistics, and EXISTS would scan the table.
WITH next AS (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS id
)
SELECT
    coalesce((
        SELECT transaction_id FROM events ORDER BY transaction_id DESC, id DESC LIMIT 1
    ) >= pg_snapshot_xmax(pg_current_snapshot()), false)
    OR EXISTS (
        SELECT
        FROM relay_position, next
        WHERE greatest(transaction_id, pg_snapshot_xmax(passed_over))
            > (next.id - mod(next.id - xmin::text::bigint + 4294967296, 4294967296))::text::xid8
    )
