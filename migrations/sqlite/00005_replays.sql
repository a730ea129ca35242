-- Of which replay a letter's mark is, where it goes, and when it is its turn among the others.

-- +goose Up
ALTER TABLE dead_letters ADD COLUMN replay_id   TEXT    NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN replay_to   TEXT    NOT NULL DEFAULT 'handler';
ALTER TABLE dead_letters ADD COLUMN replay_turn INTEGER NOT NULL DEFAULT 0;
DROP INDEX idx_dead_letters_replay_requested;
CREATE INDEX idx_dead_letters_replay_turn ON dead_letters (replay_turn, id) WHERE replay_requested = 1;

-- +goose Down
DROP INDEX idx_dead_letters_replay_turn;
CREATE INDEX idx_dead_letters_replay_requested ON dead_letters (id) WHERE replay_requested = 1;
ALTER TABLE dead_letters DROP COLUMN replay_id;
ALTER TABLE dead_letters DROP COLUMN replay_to;
ALTER TABLE dead_letters DROP COLUMN replay_turn;
