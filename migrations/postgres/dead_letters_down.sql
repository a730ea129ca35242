DO $$
BEGIN
    LOCK TABLE dead_letters;
    IF EXISTS (SELECT FROM dead_letters) THEN
        RAISE EXCEPTION 'dead_letters holds dead letters' USING ERRCODE = 'object_in_use';
    END IF;
END
$$;
ALTER TABLE dead_letters RENAME TO new_dead_letters;
ALTER INDEX dead_letters_pkey RENAME TO new_dead_letters_pkey;
CREATE TABLE dead_letters (
    id                  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    body                bytea       NOT NULL,
    headers             json        NOT NULL,
    source              text        NOT NULL,
    reason              text        NOT NULL,
    handler             text        NOT NULL,
    attempts            integer     NOT NULL,
    first_failed_at     timestamptz NOT NULL,
    last_failed_at      timestamptz NOT NULL,
    replay_requested_at timestamptz,
    replay_id           text        NOT NULL DEFAULT '',
    replay_to           text        NOT NULL DEFAULT 'handler',
    replay_turn         bigint      NOT NULL DEFAULT 0
);
CREATE INDEX dead_letters_replay ON dead_letters (replay_turn, id) WHERE replay_requested_at IS NOT NULL;
CREATE TABLE archived_letters (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    once             text        NOT NULL,
    letter           bytea       NOT NULL,
    disposition      text        NOT NULL CHECK (disposition IN ('archived', 'discarded', 'edited', 'imported')),
    archived_by      text        NOT NULL,
    archived_at      timestamptz NOT NULL,
    reason           text        NOT NULL,
    restore_begun_at timestamptz,
    restored_by      text,
    restored_at      timestamptz
);
CREATE UNIQUE INDEX archived_letters_once ON archived_letters (once) WHERE restored_at IS NULL OR disposition = 'imported';

DO $$
DECLARE
    held record;
    old_table text;
BEGIN
    FOREACH old_table IN ARRAY ARRAY['dead_letters', 'archived_letters'] LOOP
        FOR held IN
            SELECT DISTINCT grantee, privilege_type
            FROM pg_class, aclexplode(relacl)
            WHERE pg_class.oid = 'new_dead_letters'::regclass AND grantee <> 0 AND grantee <> relowner
        LOOP
            EXECUTE format('GRANT %s ON %s TO %s', held.privilege_type, old_table, held.grantee::regrole);
        END LOOP;
    END LOOP;
END
$$;
DROP TABLE new_dead_letters;
