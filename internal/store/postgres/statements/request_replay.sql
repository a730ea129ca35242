UPDATE dead_letters SET replay_requested_at = coalesce(replay_requested_at, now()) WHERE id = $1
