-- Who has handled events ($1), and with which fingerprint. Why there is a subquery: see write.sql.
SELECT event_id, handler, fingerprint FROM handled WHERE event_id = ANY ((SELECT $1::uuid[])::uuid[])
