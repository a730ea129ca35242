-- Appends one event if it continues what the store has of its aggregate, and otherwise nothing. It does what write.sql
-- would do, in two thirds of the time.
INSERT INTO events (
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
    correlation_id, user_id, created_at, event_data, metadata, own
)
SELECT $1, $2, $3::text, $4, $5::int, $6, $7, $8, $9, $10, $11, $12::text::jsonb, $13::text::jsonb, true
WHERE coalesce((
    SELECT aggregate_version = $5 - 1 AND tenant_id = $6 AND aggregate_type = $3
    FROM events
    WHERE aggregate_id = $4
    ORDER BY aggregate_version DESC
    LIMIT 1
), $5 = 1)
