-- The events of an aggregate after a version ($3), oldest first.
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, correlation_id,
    causation_id, user_id, created_at, event_data, metadata, transaction_id, id
FROM events
WHERE aggregate_type = $1 AND aggregate_id = $2 AND aggregate_version > $3::bigint
ORDER BY aggregate_version
LIMIT $4 OFFSET $5
