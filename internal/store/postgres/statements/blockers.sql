-- The sessions that a migration waits for: a migration's statement sets lock_timeout or is concurrent. The statements of the
-- others are not named, as these may hold patients' data.
SELECT string_agg(
    format('pid %s (%s)', blocker.pid, blocker.application_name)
    || coalesce(', ' || blocker.state, '') || coalesce(', in a transaction since ' || blocker.xact_start::timestamptz(0), ''),
    '; ' ORDER BY blocker.xact_start
)
FROM pg_stat_activity AS migration
CROSS JOIN unnest(pg_blocking_pids(migration.pid)) AS blocking (pid)
JOIN pg_stat_activity AS blocker ON blocker.pid = blocking.pid
WHERE migration.datname = current_database() AND migration.usename = current_user
    AND migration.wait_event_type = 'Lock' AND migration.query ~ 'SET LOCAL lock_timeout|CONCURRENTLY'
