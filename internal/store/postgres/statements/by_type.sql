-- The events of a type before a sort key ($2, $3), newest first.
--
-- With event_type = $1 the planner might scan the events of all types by created_at, which takes long when those of this
-- type are old. Only the index on (event_type, created_at, id) has this order.
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, correlation_id,
    causation_id, user_id, created_at, event_data, metadata, transaction_id, id
FROM events
WHERE event_type >= $1 AND (event_type, created_at, id) < ($1, $2, $3)
ORDER BY event_type DESC, created_at DESC, id DESC
LIMIT $4 OFFSET $5
