-- Moves the relay's position behind a batch.
UPDATE relay_position SET transaction_id = $1, id = $2, moved_at = now()
