-- The newest version of the schema, the newest that breaks older programs (see package migrations), and whether the server
-- is read-only, as a standby or by its settings.
SELECT
    coalesce(max(version_id), 0),
    coalesce(substring(obj_description('worker_migrations'::regclass, 'pg_class') FROM 'breaking: ([0-9]+)')::bigint, 0),
    current_setting('transaction_read_only')::boolean
FROM worker_migrations WHERE is_applied
