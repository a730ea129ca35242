-- Who has handled an event ($1), and what it said then.
SELECT handler, fingerprint FROM handled WHERE event_id = $1
