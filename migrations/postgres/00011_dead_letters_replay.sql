-- Cheaper replays, counts and lists of dead letters.

-- +goose NO TRANSACTION
-- +goose Up
-- The worker polls for what is released and not sent. What is sent stays 'replaying' until its outcome is known.
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_released;
CREATE INDEX CONCURRENTLY dead_letters_released ON dead_letters (released_at, turn)
    WHERE state = 'replaying' AND sent_at IS NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_sent ON dead_letters (sent_at)
    WHERE state = 'replaying' AND sent_at IS NOT NULL;
-- Archived letters are few among the many that were handled.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_archived ON dead_letters (decided_at, seq) WHERE state = 'archived';
-- Counting the letters of groups reads an index alone where a vacuum has been. By default that is after a fifth of the table.
ALTER TABLE dead_letters SET (
    autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05
);

-- +goose Down
ALTER TABLE dead_letters RESET (
    autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor
);
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_archived;
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_sent;
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_released;
CREATE INDEX CONCURRENTLY dead_letters_released ON dead_letters (released_at, turn) WHERE state = 'replaying';
