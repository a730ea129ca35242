-- Adds archived letters, unless the table has them already, and returns the ids of their rows in the order given.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::timestamptz[], $6::text[])
        WITH ORDINALITY AS g (once, letter, disposition, archived_by, archived_at, reason, place)
),
added AS (
    INSERT INTO archived_letters (once, letter, disposition, archived_by, archived_at, reason)
    SELECT once, letter, disposition, archived_by, archived_at, reason FROM given ORDER BY place
    ON CONFLICT (once) WHERE restored_at IS NULL OR disposition = 'imported' DO NOTHING
    RETURNING once, id
)
SELECT coalesce(added.id, found.id)
FROM given
LEFT JOIN added USING (once)
LEFT JOIN archived_letters AS found
    ON found.once = given.once AND (found.restored_at IS NULL OR found.disposition = 'imported')
ORDER BY place
