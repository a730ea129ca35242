-- The last event of each of the aggregates ($1).
SELECT wanted.aggregate_id, head.aggregate_type, head.tenant_id, head.aggregate_version
FROM unnest($1::uuid[]) AS wanted (aggregate_id)
CROSS JOIN LATERAL (
    SELECT aggregate_type, tenant_id, aggregate_version
    FROM events
    WHERE aggregate_id = wanted.aggregate_id
    ORDER BY aggregate_version DESC
    LIMIT 1
) AS head
