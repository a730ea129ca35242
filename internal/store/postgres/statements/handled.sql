-- Who has handled events ($1), and what those said then. Why there is a subquery stands in write.sql.
SELECT event_id, handler, fingerprint FROM handled WHERE event_id = ANY ((SELECT $1::uuid[])::uuid[])
