-- Who has handled these events ($1), and when.
SELECT event_id, handler, handled_at FROM handled WHERE event_id = ANY($1) ORDER BY handled_at, handler
