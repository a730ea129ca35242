-- The next batch for the relay, as one row: an array of events as they go over the wire, and the position behind them.
-- At most $1 events and about 8 MB of data, but at least one event; and what must not be overtaken by these. It begins behind
-- ($2, $3) instead of the position, unless these are null. No row when there is no event. The conditions "true" become "own"
-- where only own events are wanted.
--
-- The plan begins with a scan of the index on (transaction_id, id), or of that on own rows, from position to horizon.
WITH RECURSIVE position AS MATERIALIZED (
    SELECT coalesce($2, transaction_id) AS transaction_id, coalesce($3, id) AS id, passed_over FROM relay_position
),
-- The stored size is known without reading the data, but may be a hundredth of the text's. So it bounds what is read,
-- and the text's size bounds the batch; data so small that it is stored in place has about the size of its text.
sized AS (
    SELECT
        *,
        row_number() OVER in_order AS place,
        sum(pg_column_size(event_data)) OVER in_order - pg_column_size(event_data) AS stored_before
    FROM (
        SELECT *, xmin AS inserted_by
        FROM events
        WHERE (transaction_id, id) > ((SELECT transaction_id FROM position), (SELECT id FROM position))
            AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())
            AND true /* or own */
            AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
        ORDER BY transaction_id, id
        LIMIT $1
    ) AS following
    WINDOW in_order AS (ORDER BY transaction_id, id)
),
page AS MATERIALIZED (
    SELECT * FROM sized WHERE stored_before < 8388608
),
last AS MATERIALIZED (
    SELECT transaction_id, id FROM page ORDER BY place DESC LIMIT 1
),
-- A transaction of another program may be older than versions that it has seen, and so its own stand before them. The
-- versions below such a late row that follow behind the page, however far, are read early. A row that the worker has
-- appended is never late (see write.sql), unless it did so in a transaction of another program, which is a nested one with
-- an id of its own, or its transaction_id was replaced by 1 (see renumber.sql).
early AS (
    SELECT lower.*
    FROM page AS late
    CROSS JOIN LATERAL (
        SELECT *
        FROM events
        WHERE aggregate_id = late.aggregate_id AND aggregate_version < late.aggregate_version
        ORDER BY aggregate_version DESC
        LIMIT 1
    ) AS lower
    WHERE (NOT late.own OR late.inserted_by <> late.transaction_id::xid OR late.transaction_id < '3')
        AND (lower.transaction_id, lower.id) > ((SELECT transaction_id FROM last), (SELECT id FROM last))
    UNION ALL
    SELECT lower.*
    FROM early AS late
    CROSS JOIN LATERAL (
        SELECT *
        FROM events
        WHERE aggregate_id = late.aggregate_id AND aggregate_version < late.aggregate_version
        ORDER BY aggregate_version DESC
        LIMIT 1
    ) AS lower
    WHERE (lower.transaction_id, lower.id) > ((SELECT transaction_id FROM last), (SELECT id FROM last))
),
chosen AS (
    SELECT
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, place
    FROM page
    UNION ALL
    SELECT
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
        correlation_id, user_id, created_at, event_data, metadata, NULL
    FROM early
    WHERE true /* or own */
        AND NOT coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false)
),
-- A row takes the turn of the first row that must not overtake it. So the batch may end behind any turn; what it has
-- taken from behind its end comes again in its place.
turns AS (
    SELECT *, min(place) OVER (PARTITION BY aggregate_id ORDER BY aggregate_version DESC) AS turn
    FROM chosen
),
measured AS (
    SELECT
        *,
        sum(
            CASE WHEN pg_column_size(event_data) < 2000
                THEN pg_column_size(event_data)
                ELSE octet_length(event_data::text)
            END
        ) OVER (ORDER BY turn) AS size
    FROM turns
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
            '","created_at":"', CASE WHEN created_at >= '0001-01-01 UTC' AND created_at < '10000-01-01 UTC'
                THEN to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
                ELSE (created_at AT TIME ZONE 'UTC')::text -- an infinity, or a year that to_char writes as another one
            END,
            '","event_data":', event_data,
            ',"metadata":' || metadata::text,
            '}'
        ) AS event,
        turn
    FROM measured
    WHERE size <= 8388608 OR turn = 1
    ORDER BY turn, aggregate_version
),
batch AS (
    SELECT concat('[', string_agg(event, ','), ']') AS payload, max(turn) AS place FROM written
)
SELECT payload, transaction_id::text, id FROM batch JOIN page USING (place)
