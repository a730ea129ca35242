-- Who has done what by the console and the command line, see package audit.

-- +goose Up
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS worker_audit (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    action  text        NOT NULL,
    done_by text        NOT NULL,
    source  text        NOT NULL, -- the console or the command line, and from where
    subject jsonb       NOT NULL, -- what it is about: ids and conditions, nothing of a patient
    count   integer,              -- NULL if it is not known
    reason  text        NOT NULL
);

CREATE OR REPLACE FUNCTION worker_audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'worker_audit is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
DROP TRIGGER IF EXISTS worker_audit_append_only ON worker_audit;
CREATE TRIGGER worker_audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON worker_audit
    FOR EACH STATEMENT EXECUTE FUNCTION worker_audit_refuse_change();

-- Whoever may change dead letters may record it: a worker with few rights could else no longer do so after this.
DO $$
DECLARE
    changer oid;
BEGIN
    FOR changer IN
        SELECT DISTINCT grantee
        FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'dead_letters'::regclass AND privilege_type = 'UPDATE' AND grantee <> 0 AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT ON worker_audit TO %s', changer::regrole);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- What was recorded stays.
-- +goose Down
SELECT 1;
