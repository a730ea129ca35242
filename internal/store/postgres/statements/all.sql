-- The events after a position ($1, $2) in commit order, up to the first that a running transaction could still precede.
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, correlation_id,
    causation_id, user_id, created_at, event_data, metadata, transaction_id, id
FROM events
WHERE (transaction_id, id) > ($1, $2) AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY transaction_id, id
LIMIT $3 OFFSET $4
