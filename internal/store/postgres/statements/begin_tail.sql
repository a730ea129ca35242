-- Says where the relay begins that has never run here: before all rows, whose ids may be negative, or behind the adopted
-- ones, which have transaction 0; or behind all rows that are visible now. Those of transactions that run now are not
-- passed over, whatever their ids. A position that was deleted after a relay had run, and so had a lease, is not replaced.
INSERT INTO relay_position (transaction_id, id, passed_over)
SELECT
    CASE WHEN $1 = 'end' THEN pg_snapshot_xmin(pg_current_snapshot()) ELSE '0' END,
    CASE WHEN $1 = 'auto' THEN 9223372036854775807 ELSE -9223372036854775808 END,
    CASE WHEN $1 = 'end' THEN pg_current_snapshot() END
WHERE NOT EXISTS (SELECT FROM leases WHERE task = 'relay')
ON CONFLICT DO NOTHING
