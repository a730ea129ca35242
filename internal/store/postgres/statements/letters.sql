-- Letters behind one ($1), oldest first.
SELECT id, body, headers, source, reason, handler, attempts, first_failed_at, last_failed_at
FROM dead_letters
WHERE id > $1
ORDER BY id
LIMIT $2
