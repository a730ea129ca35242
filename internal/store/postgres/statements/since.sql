-- Where to begin for the events that were created at a time ($1) or later: before the first of them, in commit order, or at
-- the end if there are none. One snapshot decides both, and a running transaction can still precede what is above the
-- horizon. What is recent is found by the index on created_at: the one on the order might have to be read from its beginning.
WITH recent AS MATERIALIZED (
    SELECT transaction_id, id FROM events WHERE created_at >= $1 AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())
)
SELECT transaction_id, id
FROM (
    (
        SELECT 1 AS choice, transaction_id, greatest(id, -9223372036854775807) - 1 AS id
        FROM recent
        ORDER BY recent.transaction_id, recent.id
        LIMIT 1
    )
    UNION ALL
    (
        SELECT 2, transaction_id, id
        FROM events
        WHERE transaction_id < pg_snapshot_xmin(pg_current_snapshot())
        ORDER BY transaction_id DESC, id DESC
        LIMIT 1
    )
) AS positions
ORDER BY choice
LIMIT 1
