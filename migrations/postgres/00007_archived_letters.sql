-- The dead letters that were taken out of their queue: who, when and why. And trials wake no relay.

-- +goose Up
CREATE TABLE archived_letters (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    once             text        NOT NULL, -- the same for a letter that is archived again, as the first time was cut off
    letter           bytea       NOT NULL, -- all of it, as deadletter.Letter.Encode writes it
    disposition      text        NOT NULL CHECK (disposition IN ('archived', 'discarded', 'edited', 'imported')),
    archived_by      text        NOT NULL,
    archived_at      timestamptz NOT NULL,
    reason           text        NOT NULL,
    restore_begun_at timestamptz,
    restored_by      text,
    restored_at      timestamptz
);
CREATE UNIQUE INDEX archived_letters_once ON archived_letters (once) WHERE restored_at IS NULL OR disposition = 'imported';

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
DO $$
BEGIN
    LOCK TABLE archived_letters;
    IF EXISTS (SELECT FROM archived_letters) THEN
        RAISE EXCEPTION 'archived_letters holds archived dead letters' USING ERRCODE = 'object_in_use';
    END IF;
END
$$;
-- +goose StatementEnd
DROP TABLE archived_letters;
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
