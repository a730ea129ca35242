-- Takes the lease of the task $1 for the holder $2, or renews it, until $3 from now. No row while another holds it. A
-- lease that ends later than any can is of a time when the clock was ahead, and counts as ended.
INSERT INTO leases AS lease (task, holder, fence, expires_at)
VALUES ($1, $2, 1, now() + $3::interval)
ON CONFLICT (task) DO UPDATE
SET holder = excluded.holder,
    fence = lease.fence + CASE WHEN lease.holder = excluded.holder THEN 0 ELSE 1 END,
    expires_at = excluded.expires_at
WHERE lease.holder IN (excluded.holder, '') OR lease.expires_at NOT BETWEEN now() AND now() + interval '1 minute'
RETURNING fence
