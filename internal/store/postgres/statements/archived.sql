-- Archived letters behind one ($1), in order.
SELECT id, letter, disposition, archived_by, archived_at, reason, once, restore_begun_at, restored_by, restored_at
FROM archived_letters
WHERE id > $1
ORDER BY id
LIMIT $2
