-- The oldest transactions of the whole cluster, which hold back reads in commit order. Their queries are not read, as they
-- may contain patient data. Without pg_read_all_stats a role sees only the pid of sessions of other roles.
SELECT *
FROM (
    SELECT
        max(age(lock.transactionid)) AS age,
        lock.pid,
        '' AS gid,
        coalesce(session.usename, '') AS role,
        coalesce(session.application_name, '') AS application,
        coalesce(session.datname, '') AS database,
        coalesce(host(session.client_addr), '') AS client,
        coalesce(session.state, '') AS state,
        extract(epoch FROM clock_timestamp() - session.xact_start)::float8 AS seconds
    FROM pg_locks AS lock
    LEFT JOIN pg_stat_activity AS session ON session.pid = lock.pid
    WHERE lock.locktype = 'transactionid' AND lock.mode = 'ExclusiveLock' AND lock.granted AND lock.pid IS NOT NULL
    GROUP BY lock.pid, session.usename, session.application_name, session.datname, session.client_addr, session.state,
        session.xact_start
    UNION ALL
    SELECT
        age(transaction), 0, gid, owner, '', database, '', 'prepared',
        extract(epoch FROM clock_timestamp() - prepared)::float8
    FROM pg_prepared_xacts
) AS holders
ORDER BY age DESC
LIMIT 3
