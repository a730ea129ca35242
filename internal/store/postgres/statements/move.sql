-- Moves the relay's position behind a batch ($1, $2), unless the lease has another holder ($3) or fence ($4) meanwhile.
-- The row lock lets nobody take the lease before this is committed.
WITH held AS MATERIALIZED (
    SELECT FROM leases WHERE task = 'relay' AND holder = $3 AND fence = $4 FOR SHARE
)
UPDATE relay_position SET transaction_id = $1, id = $2, moved_at = now() WHERE EXISTS (SELECT FROM held)
