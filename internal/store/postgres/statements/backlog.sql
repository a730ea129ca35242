-- Where the position is (no row if there is none), how many events are behind it, counted up to $1, and where the last of
-- all is. Those not committed yet are not seen, those above the horizon are. The conditions "true" become "own" where only own events are wanted.
WITH waiting AS MATERIALIZED (
    SELECT transaction_id, id
    FROM events
    WHERE (transaction_id, id) > (
            (SELECT transaction_id FROM relay_position), (SELECT id FROM relay_position)
        )
        AND true /* or own */
        AND NOT coalesce(
            pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM relay_position)), false
        )
    ORDER BY transaction_id, id
    LIMIT $1
)
SELECT
    p.transaction_id, p.id,
    (SELECT count(*) FROM waiting),
    coalesce(last.transaction_id, p.transaction_id), coalesce(last.id, p.id)
FROM relay_position AS p
LEFT JOIN LATERAL (
    SELECT transaction_id, id
    FROM events
    WHERE (transaction_id, id) > (p.transaction_id, p.id)
        AND true /* or own */
        AND NOT coalesce(pg_visible_in_snapshot(transaction_id, p.passed_over), false)
    ORDER BY transaction_id DESC, id DESC
    LIMIT 1
) AS last ON true
