-- The events of a chain of causes after a sort key ($2, $3), oldest first.
-- Why correlation_id is not compared by =: see by_type.sql.
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, correlation_id,
    causation_id, user_id, created_at, event_data, metadata, transaction_id, id
FROM events
WHERE correlation_id <= $1 AND (correlation_id, created_at, id) > ($1, $2, $3)
ORDER BY correlation_id, created_at, id
LIMIT $4 OFFSET $5
