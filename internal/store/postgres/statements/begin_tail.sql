-- Says where the relay begins that has never run here: before all rows, or behind the adopted ones, which have
-- transaction 0; or behind all rows that are visible now. Those of transactions that run now are not passed over,
-- whatever their ids.
INSERT INTO relay_position (transaction_id, id, passed_over)
SELECT
    CASE WHEN $1 = 'end' THEN pg_snapshot_xmin(pg_current_snapshot()) ELSE '0' END,
    CASE WHEN $1 = 'auto' THEN 9223372036854775807 ELSE 0 END,
    CASE WHEN $1 = 'end' THEN pg_current_snapshot() END
ON CONFLICT DO NOTHING
