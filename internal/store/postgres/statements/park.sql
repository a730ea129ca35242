-- Records that an event ($1) is a dead letter of a handler ($2), unless that handler has handled it.
INSERT INTO parked (event_id, handler, aggregate_id, aggregate_version)
SELECT $1, $2, $3, $4
WHERE NOT EXISTS (SELECT FROM handled WHERE event_id = $1 AND handler = $2)
ON CONFLICT DO NOTHING
