-- For each of the handlers ($3) the first event of an aggregate ($1) that is parked before a version ($2). One that has
-- been handled does not count, even if it was parked at the same time as another worker handled it.
SELECT handlers.handler, first.event_id
FROM unnest($3::text[]) AS handlers (handler)
CROSS JOIN LATERAL (
    SELECT event_id
    FROM parked
    WHERE aggregate_id = $1 AND parked.handler = handlers.handler AND aggregate_version < $2
        AND NOT EXISTS (
            SELECT FROM handled WHERE handled.event_id = parked.event_id AND handled.handler = parked.handler
        )
    ORDER BY aggregate_version
    LIMIT 1
) AS first
