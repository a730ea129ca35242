-- The version of an aggregate.
SELECT aggregate_version
FROM events
WHERE aggregate_type = $1 AND aggregate_id = $2
ORDER BY aggregate_version DESC
LIMIT 1
