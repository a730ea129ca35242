-- One table for the dead letters of both buses, whatever has become of them. The rows of the old tables are moved by
-- letters.go, in the same transaction.
ALTER TABLE dead_letters RENAME TO old_dead_letters;
ALTER TABLE archived_letters RENAME TO old_archived_letters;
ALTER INDEX dead_letters_pkey RENAME TO old_dead_letters_pkey;
ALTER INDEX dead_letters_replay RENAME TO old_dead_letters_replay;
ALTER SEQUENCE dead_letters_id_seq RENAME TO old_dead_letters_id_seq;

CREATE TABLE dead_letters (
    seq               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id                text        NOT NULL CONSTRAINT dead_letters_id UNIQUE,
    identity          text        NOT NULL CONSTRAINT dead_letters_identity UNIQUE, -- the same for a message that arrives again
    arrival           text        NOT NULL, -- names the message that arrived last
    unsettled         text,                 -- hash of a message without an id, until the broker has its ack
    state             text        NOT NULL CHECK (state IN ('waiting', 'replaying', 'archived', 'discarded', 'edited', 'handled')),
    event_id          uuid,
    event_type        text        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      uuid,
    aggregate_version integer     NOT NULL,
    tenant_id         uuid,
    correlation_id    uuid,
    handler           text        NOT NULL,
    group_id          text        NOT NULL COLLATE "C",
    reason            text        NOT NULL,
    attempts          integer     NOT NULL,
    first_failed_at   timestamptz NOT NULL,
    last_failed_at    timestamptz NOT NULL,
    replays           integer     NOT NULL,
    replay_id         text        NOT NULL, -- the replay that it failed in last
    history           json,
    source            text        NOT NULL,
    headers           json,                 -- not jsonb, which refuses \u0000
    raw               json,
    body              bytea       NOT NULL,
    bytes             integer     NOT NULL,
    release           text        NOT NULL DEFAULT '', -- the replay that released it last, and where that stands
    release_to        text        NOT NULL DEFAULT '',
    turn              integer     NOT NULL DEFAULT 0,
    released_at       timestamptz,
    sent_at           timestamptz,
    problem           text        NOT NULL DEFAULT '',
    decided_by        text        NOT NULL DEFAULT '',
    decided_reason    text        NOT NULL DEFAULT '',
    decided_at        timestamptz,
    added_at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_groups ON dead_letters (group_id, tenant_id) INCLUDE (first_failed_at, last_failed_at, replays)
    WHERE state = 'waiting';
CREATE INDEX dead_letters_group ON dead_letters (group_id, last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX dead_letters_waiting ON dead_letters (last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX dead_letters_handler ON dead_letters (handler, last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX dead_letters_tenant ON dead_letters (tenant_id, last_failed_at, seq) WHERE state = 'waiting';
CREATE INDEX dead_letters_event ON dead_letters (event_id);
CREATE INDEX dead_letters_aggregate ON dead_letters (aggregate_id);
CREATE INDEX dead_letters_correlation ON dead_letters (correlation_id);
CREATE INDEX dead_letters_unsettled ON dead_letters (unsettled) WHERE unsettled IS NOT NULL;
CREATE INDEX dead_letters_released ON dead_letters (released_at, turn) WHERE state = 'replaying';
CREATE INDEX dead_letters_decided ON dead_letters (decided_at, seq) WHERE decided_at IS NOT NULL;

-- Who had rights on the old table has them on this one.
DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT DISTINCT grantee, privilege_type
        FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'old_dead_letters'::regclass AND grantee <> 0 AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON dead_letters TO %s', held.privilege_type, held.grantee::regrole);
    END LOOP;
END
$$;
