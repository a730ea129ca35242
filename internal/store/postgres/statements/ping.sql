-- The newest version of the schema, and whether the server is read-only, as a standby or by its settings.
SELECT coalesce(max(version_id), 0), current_setting('transaction_read_only')::boolean
FROM worker_migrations WHERE is_applied
