-- Marked letters, by their turns.
SELECT id, body, headers, source, reason, handler, attempts, first_failed_at, last_failed_at, replay_id, replay_to
FROM dead_letters
WHERE replay_requested_at IS NOT NULL
ORDER BY replay_turn, id
LIMIT $1
