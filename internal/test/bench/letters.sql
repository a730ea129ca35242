-- Puts %[1]d letters that wait into the table of dead letters, of 20 groups with 50 tenants each, as fast as can be: the
-- indexes are made afterwards. Vacuum leaves the table alone, so that it is the run's choice when it has been there.
ALTER TABLE dead_letters SET (autovacuum_enabled = false);
DO $$
DECLARE
    index record;
    made text[];
BEGIN
    SET LOCAL maintenance_work_mem = '512MB';
    FOR index IN
        SELECT indexname, indexdef FROM pg_indexes
        WHERE tablename = 'dead_letters' AND indexname NOT IN (SELECT conname FROM pg_constraint)
    LOOP
        made := made || index.indexdef;
        EXECUTE format('DROP INDEX %%I', index.indexname);
    END LOOP;
    INSERT INTO dead_letters (
        id, identity, arrival, state, event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id,
        correlation_id, handler, group_id, reason, attempts, first_failed_at, last_failed_at, replays, replay_id, source,
        raw, body, bytes
    )
    SELECT
        id, md5('identity ' || i), id, 'waiting', event, 'AppointmentBooked', 'Appointment', md5('aggregate ' || i / 10)::uuid,
        i %% 10 + 1, tenant, correlation, handler, left(md5(handler), 8), reason, 5, failed - interval '2 s', failed, 0, '',
        'healz.events.consumer',
        json_build_object(
            'exchange', 'healz.events.dlx', 'routing_key', 'failed', 'content_type', 'application/json', 'delivery_mode', 2,
            'message_id', event, 'type', 'AppointmentBooked', 'correlation_id', correlation, 'timestamp', 1767225600 + i,
            'headers', json_build_array(
                'aggregate_id', md5('aggregate ' || i / 10)::uuid, 'dead_letter_id', id, 'source_queue', 'healz.events.consumer',
                'reason_poisoned', reason, 'handler_poisoned', handler, 'topic_poisoned', 'AppointmentBooked',
                'attempts_poisoned', '5', 'first_failed_at', failed - interval '2 s', 'last_failed_at', failed
            )
        ),
        body, length(body)
    FROM (
        SELECT *, convert_to(format(
            '{"event_id":"%%s","event_type":"AppointmentBooked","tenant_id":"%%s","correlation_id":"%%s","event_data":{"reason":"%%s"}}',
            event, tenant, correlation, repeat(md5(i::text), 12)
        ), 'UTF8') AS body
        FROM (
            SELECT
                i, '01KB' || lpad(upper(to_hex(i)), 22, '0') AS id, md5('event ' || i)::uuid AS event,
                md5('tenant ' || i / 20 %% 50)::uuid AS tenant, md5('correlation ' || i / 10)::uuid AS correlation,
                'handler-' || i %% 20 AS handler, 'the provider answered 503 to request ' || i || ' of handler-' || i %% 20 AS reason,
                now() - interval '1 s' * (%[1]d - i) AS failed
            FROM generate_series(1, %[1]d) AS i
        ) AS numbered
    ) AS letters;
    FOR i IN 1..coalesce(array_length(made, 1), 0) LOOP
        EXECUTE made[i];
    END LOOP;
END
$$;
ANALYZE dead_letters;
