-- Trials wake no relay.

-- +goose Up
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION events_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A trial is rolled back: it has nothing to tell, and must not take the turn of one that has.
    IF current_setting('worker.trial', true) IS DISTINCT FROM 'on'
        AND pg_try_advisory_xact_lock(hashtext('worker wake'), TG_RELID::integer)
    THEN
        PERFORM pg_notify('events_' || TG_RELID, '');
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION events_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_try_advisory_xact_lock(hashtext('worker wake'), TG_RELID::integer) THEN
        PERFORM pg_notify('events_' || TG_RELID, '');
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
