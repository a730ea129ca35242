-- The next batch for the relay, as one row: an array of events as they go over the wire, and the position behind them.
-- At most $1 events and about 8 MB of data, but at least one event. No row when there is none. The conditions "true"
-- become "own" where only own events are wanted.
--
-- The plan begins with a scan of the index on (transaction_id, id), or of that on own rows, from position to horizon.
WITH RECURSIVE position AS MATERIALIZED (
    SELECT * FROM relay_position
),
page AS MATERIALIZED (
    SELECT *
    FROM events
    WHERE (transaction_id, id) > ((SELECT transaction_id FROM position), (SELECT id FROM position))
        AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())
        AND true /* or own */
        AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
    ORDER BY transaction_id, id
    LIMIT $1
),
-- The stored size is known without reading the data, but may be a hundredth of the text's. So it bounds what is read,
-- and the text's size bounds the batch; data so small that it is stored in place has about the size of its text.
stored AS (
    SELECT *, sum(pg_column_size(event_data)) OVER in_order - pg_column_size(event_data) AS stored_before
    FROM page
    WINDOW in_order AS (ORDER BY transaction_id, id)
),
measured AS (
    SELECT
        *,
        sum(
            CASE WHEN pg_column_size(event_data) < 2000
                THEN pg_column_size(event_data)
                ELSE octet_length(event_data::text)
            END
        ) OVER in_order AS size,
        row_number() OVER in_order AS place
    FROM stored
    WHERE stored_before < 8388608
    WINDOW in_order AS (ORDER BY transaction_id, id)
),
batch AS MATERIALIZED (
    SELECT * FROM measured WHERE size <= 8388608 OR place = 1
),
last AS MATERIALIZED (
    SELECT transaction_id, id FROM batch ORDER BY place DESC LIMIT 1
),
-- A transaction of another program may be older than versions that it has seen, and so its own stand before them. Such
-- a late row has a greater id than those that follow it. The versions it has seen, if they follow behind the batch, are
-- taken into it; they come again in their place.
early AS (
    SELECT seen.*
    FROM batch AS late
    JOIN events AS seen
        ON seen.aggregate_id = late.aggregate_id AND seen.aggregate_version = late.aggregate_version - 1
    WHERE (seen.transaction_id, seen.id) > ((SELECT transaction_id FROM last), (SELECT id FROM last))
        AND late.id > (
            SELECT min(id)
            FROM (
                SELECT id
                FROM events
                WHERE (transaction_id, id) > ((SELECT transaction_id FROM last), (SELECT id FROM last))
                ORDER BY transaction_id, id
                LIMIT 100
            ) AS following
        )
    UNION ALL
    SELECT seen.*
    FROM early AS late
    JOIN events AS seen
        ON seen.aggregate_id = late.aggregate_id AND seen.aggregate_version = late.aggregate_version - 1
    WHERE (seen.transaction_id, seen.id) > ((SELECT transaction_id FROM last), (SELECT id FROM last))
),
chosen AS (
    SELECT
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, place
    FROM batch
    UNION ALL
    SELECT
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, NULL
    FROM early
    WHERE true /* or own */
        AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
),
-- Each event waits for the lower versions of its aggregate.
turns AS (
    SELECT *, max(place) OVER (PARTITION BY aggregate_id ORDER BY aggregate_version) AS turn
    FROM chosen
),
written AS (
    SELECT
        concat(
            '{"event_id":"', event_id,
            '","event_type":', to_json(event_type),
            ',"aggregate_type":', to_json(aggregate_type),
            ',"aggregate_id":"', aggregate_id,
            '","aggregate_version":', aggregate_version,
            ',"tenant_id":"', tenant_id,
            '","clinic_id":"' || clinic_id,
            '","correlation_id":"', correlation_id,
            '","causation_id":"' || causation_id,
            '","user_id":"' || user_id,
            '","created_at":"', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
            '","event_data":', event_data,
            ',"metadata":' || metadata::text,
            '}'
        ) AS event
    FROM turns
    ORDER BY turn NULLS FIRST, aggregate_version
)
SELECT
    concat('[', string_agg(event, ','), ']') AS payload,
    (SELECT transaction_id::text FROM last) AS transaction_id,
    (SELECT id FROM last) AS id
FROM written
HAVING count(*) > 0
