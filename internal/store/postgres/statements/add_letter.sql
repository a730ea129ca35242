INSERT INTO dead_letters (body, headers, source, reason, handler, attempts, first_failed_at, last_failed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING id
