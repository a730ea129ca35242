-- Writes units, each of them all or not at all independently of the others, and returns the numbers of those that
-- it did not write. A unit is a batch of events, or the record that a handler has handled an event together with what
-- follows from it, which may be nothing. It is not written when one of its aggregates does not continue what the store
-- has, or when the event is on record for the handler, or with another fingerprint. The event's parked record is
-- deleted. No two units have an aggregate in common. If a trigger of others leaves out a row, the statement fails as a
-- whole. $20 > 0 is the lock timeout in milliseconds, so that one unit that waits for another program does not delay the
-- others.
--
-- It is one statement so that the transaction's id is younger than all that the statement has seen: by (transaction_id,
-- id) an aggregate's events then stand in the order of their versions. A writer that comes between is refused by the
-- unique indexes.
--
-- The arrays are behind subqueries, as the server would else see how few of them one unit has, and plan the statement
-- anew each time, which takes as long as to run it.
WITH batches AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT $1::uuid[]), (SELECT $2::text[]), (SELECT $3::text[]), (SELECT $4::uuid[]), (SELECT $5::int[]),
        (SELECT $6::uuid[]), (SELECT $7::uuid[]), (SELECT $8::uuid[]), (SELECT $9::uuid[]), (SELECT $10::uuid[]),
        (SELECT $11::timestamptz[]), (SELECT $12::text[]), (SELECT $13::text[]), (SELECT $14::bool[]), (SELECT $15::int[])
    ) WITH ORDINALITY AS b (
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, is_first_of_aggregate, unit, place
    )
),
records AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT $16::int[]), (SELECT $17::text[]), (SELECT $18::uuid[]), (SELECT $19::bytea[])
    ) AS r (unit, handler, event_id, fingerprint)
),
refused AS MATERIALIZED (
    SELECT unit
    FROM batches AS first
    WHERE is_first_of_aggregate AND NOT coalesce((
        SELECT
            aggregate_version = first.aggregate_version - 1 AND tenant_id = first.tenant_id
            AND aggregate_type = first.aggregate_type
        FROM events
        WHERE aggregate_id = first.aggregate_id
        ORDER BY aggregate_version DESC
        LIMIT 1
    ), first.aggregate_version = 1)
    UNION ALL
    SELECT unit
    FROM records AS r
    WHERE (
        SELECT true FROM handled
        WHERE event_id = r.event_id AND (handler = r.handler OR fingerprint <> r.fingerprint)
        LIMIT 1
    )
    UNION ALL
    SELECT NULL WHERE CASE WHEN $20 > 0 THEN set_config('lock_timeout', $20::int::text, true) IS NULL END
),
recorded AS (
    INSERT INTO handled (handler, event_id, fingerprint)
    SELECT handler, event_id, fingerprint
    FROM records
    WHERE unit NOT IN (SELECT unit FROM refused)
    RETURNING 1
),
unparked AS (
    DELETE FROM parked
    USING records
    WHERE parked.event_id = records.event_id AND parked.handler = records.handler
        AND unit NOT IN (SELECT unit FROM refused)
),
appended AS (
    INSERT INTO events (
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, own
    )
    SELECT
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data::jsonb, metadata::jsonb, true
    FROM batches
    WHERE unit NOT IN (SELECT unit FROM refused)
    ORDER BY place
    RETURNING 1
)
SELECT unit FROM refused
UNION ALL
-- As text is no bool, this fails, and so undoes everything.
SELECT NULL WHERE (
    CASE
        WHEN (SELECT count(*) FROM appended) + (SELECT count(*) FROM recorded) < (
            SELECT count(*)
            FROM (SELECT unit FROM batches UNION ALL SELECT unit FROM records) AS wanted
            WHERE unit NOT IN (SELECT unit FROM refused)
        )
        THEN 'a trigger has left it out'
    END
)::bool
