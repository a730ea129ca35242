-- Makes the transaction the one that relays, unless another is. It takes no transaction id, which would hold back all
-- that read in commit order while messages are handled.
SELECT pg_try_advisory_xact_lock(hashtext('worker relay'), 'events'::regclass::oid::integer)
