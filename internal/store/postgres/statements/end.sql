-- The last position below the horizon.
SELECT transaction_id, id
FROM events
WHERE transaction_id < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY transaction_id DESC, id DESC
LIMIT 1
