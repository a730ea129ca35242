-- Of which replay a letter's mark is, where it goes, and when it is its turn among the others.

-- +goose Up
ALTER TABLE dead_letters
    ADD COLUMN replay_id   text   NOT NULL DEFAULT '',
    ADD COLUMN replay_to   text   NOT NULL DEFAULT 'handler',
    ADD COLUMN replay_turn bigint NOT NULL DEFAULT 0;
DROP INDEX dead_letters_replay;
CREATE INDEX dead_letters_replay ON dead_letters (replay_turn, id) WHERE replay_requested_at IS NOT NULL;

-- +goose Down
DROP INDEX dead_letters_replay;
CREATE INDEX dead_letters_replay ON dead_letters (id) WHERE replay_requested_at IS NOT NULL;
ALTER TABLE dead_letters DROP COLUMN replay_id, DROP COLUMN replay_to, DROP COLUMN replay_turn;
