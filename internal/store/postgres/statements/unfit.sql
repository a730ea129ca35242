-- What keeps a table events of another service from being adopted, beside its columns: for each problem the number of rows
-- and the first ids. A unique index rules out duplicates, which are then not looked for; another index of its name would
-- be taken for it.
WITH found AS MATERIALIZED (
    SELECT coalesce((
        SELECT indisunique AND indisvalid AND pg_get_indexdef(indexrelid) LIKE '%USING btree (aggregate_id, aggregate_version)'
        FROM pg_index
        WHERE indexrelid = to_regclass('events_aggregate_version_unique')
    ), false) AS is_unique
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
    WHERE NOT is_unique AND to_regclass('events_aggregate_version_unique') IS NOT NULL
)
SELECT problem, count(id), (array_agg(id ORDER BY id))[:5] FROM problems GROUP BY place, problem ORDER BY place
