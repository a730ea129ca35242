-- The lag of the relay: whether it has started, whether its position was deleted since, when that moved last and, of at
-- most 10 001 events that it could publish now, their number, how many of them the worker has appended, and when the
-- oldest was created; and, of at most 10 001 further ones, how many are committed and held back by a transaction that runs.
WITH position AS MATERIALIZED (
    SELECT * FROM relay_position
),
waiting AS MATERIALIZED (
    SELECT own, created_at
    FROM events
    WHERE (transaction_id, id) > ((SELECT transaction_id FROM position), (SELECT id FROM position))
        AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())
        AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
    ORDER BY transaction_id, id
    LIMIT 10001
)
SELECT
    EXISTS (SELECT FROM position),
    NOT EXISTS (SELECT FROM position) AND EXISTS (SELECT FROM leases WHERE task = 'relay'),
    extract(epoch FROM clock_timestamp() - (SELECT moved_at FROM position))::float8,
    count(*),
    count(*) FILTER (WHERE own),
    least(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE isfinite(created_at))), 9e9)::float8,
    (
        SELECT count(*)
        FROM (
            SELECT
            FROM events
            WHERE transaction_id >= pg_snapshot_xmin(pg_current_snapshot())
                AND (transaction_id, id) > ((SELECT transaction_id FROM position), (SELECT id FROM position))
                AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
                AND (own OR NOT $1)
            LIMIT 10001
        ) AS held
    )
FROM waiting
