-- Who does what one worker does alone: a row for each task, once somebody has held its lease.

-- +goose Up
CREATE TABLE leases (
    task       text        PRIMARY KEY,
    holder     text        NOT NULL, -- '' if it was given back
    fence      bigint      NOT NULL, -- grows with each change of the holder
    expires_at timestamptz NOT NULL
);

-- Whoever may move the relay's position may take leases: a worker with few rights would else relay nothing after this.
-- +goose StatementBegin
DO $$
DECLARE
    mover oid;
BEGIN
    FOR mover IN
        SELECT DISTINCT grantee
        FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'relay_position'::regclass AND privilege_type = 'UPDATE' AND grantee <> 0 AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON leases TO %s', mover::regrole);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE leases;
