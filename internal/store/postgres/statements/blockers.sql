-- The sessions that the one which migrates waits for. Their statements are not named, as these may hold patients' data.
SELECT string_agg(
    format('pid %s (%s)', blocker.pid, blocker.application_name)
    || coalesce(', ' || blocker.state, '') || coalesce(', in a transaction since ' || blocker.xact_start::timestamptz(0), ''),
    '; ' ORDER BY blocker.xact_start
)
FROM pg_locks AS migration
CROSS JOIN unnest(pg_blocking_pids(migration.pid)) AS blocking (pid)
JOIN pg_stat_activity AS blocker ON blocker.pid = blocking.pid
WHERE migration.locktype = 'advisory' AND migration.granted AND migration.objsubid = 1
    AND migration.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (migration.classid::bigint << 32) + migration.objid::bigint = $1
