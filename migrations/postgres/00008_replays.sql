-- Of which replay a letter's mark is, where it goes, and when it is its turn among the others.

-- +goose NO TRANSACTION
-- +goose Up
-- +goose StatementBegin
SET LOCAL lock_timeout = '300ms';
ALTER TABLE dead_letters
    ADD COLUMN IF NOT EXISTS replay_id   text   NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS replay_to   text   NOT NULL DEFAULT 'handler',
    ADD COLUMN IF NOT EXISTS replay_turn bigint NOT NULL DEFAULT 0;
-- +goose StatementEnd
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_replay;
CREATE INDEX CONCURRENTLY dead_letters_replay ON dead_letters (replay_turn, id) WHERE replay_requested_at IS NOT NULL;

-- +goose Down
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_replay;
CREATE INDEX CONCURRENTLY dead_letters_replay ON dead_letters (id) WHERE replay_requested_at IS NOT NULL;
-- +goose StatementBegin
SET LOCAL lock_timeout = '300ms';
ALTER TABLE dead_letters
    DROP COLUMN IF EXISTS replay_id, DROP COLUMN IF EXISTS replay_to, DROP COLUMN IF EXISTS replay_turn;
-- +goose StatementEnd
