-- The newest version of the schema.
SELECT coalesce(max(version_id), 0) FROM worker_migrations WHERE is_applied
