-- Least privilege, for the owner of the schema to grant. This is no migration: names and passwords are the site's.
--
-- The worker runs as a role that cannot change or delete an event; only `worker migrate` needs the owner. The triggers
-- refuse it to the owner too.
--
--     psql -v worker=healz_worker -v schema=public -f roles.sql
GRANT USAGE ON SCHEMA :"schema" TO :"worker";
SET search_path TO :"schema";

GRANT SELECT, INSERT ON events TO :"worker";
GRANT USAGE ON SEQUENCE events_id_seq TO :"worker";

GRANT SELECT, INSERT ON handled TO :"worker";
GRANT SELECT, INSERT, UPDATE ON relay_position TO :"worker";
GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letters TO :"worker";
GRANT SELECT ON worker_migrations TO :"worker";
