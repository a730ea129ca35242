-- Marks letters ($1, in the order of their turns) for a replay ($2) to somewhere ($3), the first of them at a turn ($4).
UPDATE dead_letters
SET replay_requested_at = now(), replay_id = $2, replay_to = $3, replay_turn = $4::bigint + wanted.turn
FROM unnest($1::bigint[]) WITH ORDINALITY AS wanted (id, turn)
WHERE dead_letters.id = wanted.id
RETURNING dead_letters.id
