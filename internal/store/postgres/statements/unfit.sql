-- What keeps a table events of another service from being adopted, beside its columns: for each problem the number of rows
-- and the first ids. A unique index rules out duplicates, which are then not looked for; another index of its name would
-- be taken for it. An index whose concurrent build was interrupted is invalid, and is built anew.
WITH found AS MATERIALIZED (
    SELECT coalesce(bool_or(is_unique AND indisvalid), false) AS is_unique, coalesce(bool_or(NOT is_unique), false) AS is_another
    FROM (
        SELECT
            indisvalid,
            indisunique AND pg_get_indexdef(indexrelid) LIKE '%USING btree (aggregate_id, aggregate_version)' AS is_unique
        FROM pg_index
        WHERE indexrelid = to_regclass('events_aggregate_version_unique')
    ) AS index
),
problems AS (
    SELECT 1 AS place, 'rows with aggregate_version below 1, the first of an aggregate' AS problem, id
    FROM events
    WHERE aggregate_version < 1
    UNION ALL
    SELECT 2, 'rows with the same aggregate_id and aggregate_version as another', id
    FROM (
        SELECT id, count(*) OVER (PARTITION BY aggregate_id, aggregate_version) AS rows
        FROM events
        WHERE NOT (SELECT is_unique FROM found)
    ) AS counted
    WHERE rows > 1
    UNION ALL
    SELECT 3, 'the index events_aggregate_version_unique is not a unique one on (aggregate_id, aggregate_version): drop it', NULL
    FROM found
    WHERE is_another
)
SELECT problem, count(id), (array_agg(id ORDER BY id))[:5] FROM problems GROUP BY place, problem ORDER BY place
