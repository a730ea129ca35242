-- The inbox is pruned from its old end.

-- +goose NO TRANSACTION
-- +goose Up
SET lock_timeout = '1min';
CREATE INDEX CONCURRENTLY IF NOT EXISTS handled_age ON handled (handled_at);
SET lock_timeout = '300ms';

-- +goose Down
DROP INDEX IF EXISTS handled_age;
