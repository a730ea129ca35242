-- The first position, in commit order, of an event that was created at a time ($1) or later. What is recent is found by
-- the index on created_at: the one on the order might have to be read from its beginning.
WITH recent AS MATERIALIZED (
    SELECT transaction_id, id FROM events WHERE created_at >= $1
)
SELECT transaction_id, id FROM recent ORDER BY transaction_id, id LIMIT 1
