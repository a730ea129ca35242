-- The inbox is pruned from its old end.

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX CONCURRENTLY IF NOT EXISTS handled_age ON handled (handled_at);

-- +goose Down
DROP INDEX CONCURRENTLY IF EXISTS handled_age;
