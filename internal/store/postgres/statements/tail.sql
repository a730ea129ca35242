-- The next batch for the relay, as one row: an array of events as they go over the wire, and the position behind them.
-- At most $1 events, only own ones if $2, and about 8 MB, but at least one event. No row when there is none.
--
-- The plan begins with a scan of the index on (transaction_id, id), or of that on own rows, between position and horizon.
WITH position AS MATERIALIZED (
    SELECT * FROM relay_position
),
page AS MATERIALIZED (
    SELECT *
    FROM events
    WHERE (transaction_id, id) > ((SELECT transaction_id FROM position), (SELECT id FROM position))
        AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())
        AND (own OR NOT $2)
        AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
    ORDER BY transaction_id, id
    LIMIT $1
),
-- The stored size is known without reading the data, but may be a hundredth of the text's: so the size is bounded twice.
stored AS (
    SELECT *, sum(pg_column_size(event_data)) OVER (ORDER BY transaction_id, id) - pg_column_size(event_data) AS size_before
    FROM page
),
written AS MATERIALIZED (
    SELECT
        transaction_id, id, aggregate_id, aggregate_version,
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
    FROM stored
    WHERE size_before < 8388608
),
measured AS (
    SELECT *, sum(octet_length(event)) OVER in_order AS size, row_number() OVER in_order AS place
    FROM written
    WINDOW in_order AS (ORDER BY transaction_id, id)
),
batch AS MATERIALIZED (
    SELECT * FROM measured WHERE size <= 8388608 OR place = 1
),
-- A transaction of another program may be older than the versions that it has seen, and so stand before them. Within
-- the batch each event waits for the lower versions of its aggregate.
ordered AS (
    SELECT *, max(place) OVER (PARTITION BY aggregate_id ORDER BY aggregate_version) AS turn
    FROM batch
)
SELECT
    concat('[', string_agg(event, ',' ORDER BY turn, aggregate_version), ']') AS payload,
    (SELECT transaction_id::text FROM batch ORDER BY place DESC LIMIT 1) AS transaction_id,
    (SELECT id FROM batch ORDER BY place DESC LIMIT 1) AS id
FROM ordered
HAVING count(*) > 0
