-- Who has handled events ($1), and what those said then.
SELECT event_id, handler, fingerprint FROM handled WHERE event_id = ANY ($1::uuid[])
