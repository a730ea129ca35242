-- Whether there is a position, how many events are between it and the end, counted up to $1, and for how many seconds
-- the first of them has been there, as far as its created_at can tell. Those not committed yet are not seen, those above
-- the horizon are. The conditions "true" become "own" where only own events are wanted.
WITH waiting AS MATERIALIZED (
    SELECT created_at
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
    EXISTS (SELECT FROM relay_position),
    (SELECT count(*) FROM waiting),
    least(greatest(extract(
        epoch FROM now() - (SELECT created_at FROM waiting WHERE isfinite(created_at) LIMIT 1)
    ), 0), 9e9)::float8
