-- Puts %d events into the table as it is then, as fast as can be: the indexes are made afterwards.
DO $$
DECLARE
    index record;
    made text[];
BEGIN
    SET LOCAL maintenance_work_mem = '512MB';
    FOR index IN
        SELECT indexname, indexdef FROM pg_indexes
        WHERE tablename = 'events' AND indexname NOT IN (SELECT conname FROM pg_constraint)
    LOOP
        made := made || index.indexdef;
        EXECUTE format('DROP INDEX %%I', index.indexname);
    END LOOP;
    INSERT INTO events (
        event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id, created_at,
        event_data, own
    )
    SELECT
        (lpad(to_hex(i), 12, '0') || '7000' || '8000' || left(md5(i::text), 12))::uuid, -- in the order of time, as the worker's are
        'AppointmentBooked', 'Appointment',
        md5('aggregate ' || (i - 1) / 10)::uuid, (i - 1) %% 10 + 1,
        md5('tenant ' || (i - 1) / 10 %% 20)::uuid,
        md5('correlation ' || (i - 1) / 10)::uuid,
        date_trunc('milliseconds', now()) - interval '1 ms' * (%[1]d - i),
        jsonb_build_object(
            'patient_id', md5('patient ' || i)::uuid, 'doctor_id', md5('doctor ' || i)::uuid, 'starts_at', now(),
            'minutes', 30, 'reason', 'check-up after the operation of last week'
        ),
        true
    FROM generate_series(1, %[1]d) AS i;
    FOR i IN 1..coalesce(array_length(made, 1), 0) LOOP
        EXECUTE made[i];
    END LOOP;
END
$$;
