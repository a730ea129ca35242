SELECT id, body, headers, source, reason, handler, attempts, first_failed_at, last_failed_at
FROM dead_letters
WHERE replay_requested_at IS NOT NULL
ORDER BY id
LIMIT $1
