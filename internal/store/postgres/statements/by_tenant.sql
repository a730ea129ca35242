-- The events of a tenant before a sort key ($2, $3), newest first.
-- Why tenant_id is not compared by =: see by_type.sql.
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, correlation_id,
    causation_id, user_id, created_at, event_data, metadata, transaction_id, id
FROM events
WHERE tenant_id >= $1 AND (tenant_id, created_at, id) < ($1, $2, $3)
ORDER BY tenant_id DESC, created_at DESC, id DESC
LIMIT $4 OFFSET $5
