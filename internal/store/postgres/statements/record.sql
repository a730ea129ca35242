-- Records that a handler ($15) has handled an event ($16), and appends what follows from it, or does neither. Returns
-- whether it did; it did not when the record is there, or one of the same event that said something else (by $17), or
-- when the batch does not continue what the store has. An event that was parked is so no longer. Why it is one statement
-- stands in append.sql.
WITH batch AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::int[], $6::uuid[], $7::uuid[], $8::uuid[], $9::uuid[],
        $10::uuid[], $11::timestamptz[], $12::text[], $13::text[], $14::bool[]
    ) WITH ORDINALITY AS b (
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, is_first_of_aggregate, place
    )
),
recorded AS (
    INSERT INTO handled (handler, event_id, fingerprint)
    SELECT $15, $16, $17
    WHERE NOT EXISTS (
        SELECT FROM handled WHERE event_id = $16 AND fingerprint <> $17
    ) AND NOT EXISTS (
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
    ON CONFLICT DO NOTHING
    RETURNING true
),
appended AS (
    INSERT INTO events (
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, own
    )
    SELECT
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data::jsonb, metadata::jsonb, true
    FROM batch
    WHERE EXISTS (SELECT FROM recorded)
    ORDER BY place
),
unparked AS (
    DELETE FROM parked WHERE event_id = $16 AND handler = $15 AND EXISTS (SELECT FROM recorded)
)
SELECT EXISTS (SELECT FROM recorded)
