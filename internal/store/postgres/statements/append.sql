-- Appends a batch if each of its aggregates continues what the store has, and otherwise nothing.
--
-- It is one statement so that the transaction's id is younger than all that the statement has seen: by (transaction_id,
-- id) an aggregate's events then stand in the order of their versions. A writer that comes between is refused by the
-- unique indexes.
WITH batch AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::int[], $6::uuid[], $7::uuid[], $8::uuid[], $9::uuid[],
        $10::uuid[], $11::timestamptz[], $12::text[], $13::text[], $14::bool[]
    ) WITH ORDINALITY AS b (
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, is_first_of_aggregate, place
    )
)
INSERT INTO events (
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
    correlation_id, user_id, created_at, event_data, metadata, own
)
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
    correlation_id, user_id, created_at, event_data::jsonb, metadata::jsonb, true
FROM batch
WHERE NOT EXISTS (
    SELECT FROM batch AS first
    LEFT JOIN LATERAL (
        SELECT aggregate_version, tenant_id, aggregate_type
        FROM events
        WHERE aggregate_id = first.aggregate_id
        ORDER BY aggregate_version DESC
        LIMIT 1
    ) AS head ON true
    WHERE first.is_first_of_aggregate AND (
        first.aggregate_version <> coalesce(head.aggregate_version, 0) + 1
        OR first.tenant_id <> head.tenant_id
        OR first.aggregate_type <> head.aggregate_type
    )
)
ORDER BY place
