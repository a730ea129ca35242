-- Least privilege, for the owner of the schema to grant. This is no migration: the role is the site's.
--
-- A worker that runs as this role cannot change or delete an event. Only `worker migrate` needs the owner, to whom the
-- triggers refuse it too.
--
--     psql -v ON_ERROR_STOP=1 -v worker=healz_worker -f roles.sql
-- In a schema other than public the role needs USAGE on it besides.
GRANT SELECT, INSERT ON events TO :"worker";
GRANT USAGE ON SEQUENCE events_id_seq TO :"worker";
GRANT SELECT, INSERT, DELETE ON handled TO :"worker";
GRANT SELECT, INSERT, DELETE ON parked TO :"worker";
GRANT SELECT, INSERT, UPDATE ON relay_position TO :"worker";
GRANT SELECT, INSERT, UPDATE ON leases TO :"worker";
GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letters TO :"worker";
GRANT SELECT, INSERT ON worker_audit TO :"worker";
GRANT SELECT ON worker_migrations TO :"worker";
