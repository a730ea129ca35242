-- Which of the ids ($1) events have.
SELECT event_id FROM events WHERE event_id = ANY ($1::uuid[])
