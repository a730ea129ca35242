-- Cheaper replays and lists of dead letters.

-- +goose Up
-- The worker polls for what is released and not sent. What is sent stays 'replaying' until its outcome is known.
DROP INDEX idx_dead_letters_released;
CREATE INDEX idx_dead_letters_released ON dead_letters (released_at, turn) WHERE state = 'replaying' AND sent_at IS NULL;
CREATE INDEX idx_dead_letters_sent ON dead_letters (sent_at) WHERE state = 'replaying' AND sent_at IS NOT NULL;
-- Archived letters are few among the many that were handled.
CREATE INDEX idx_dead_letters_archived ON dead_letters (decided_at, seq) WHERE state = 'archived';

-- +goose Down
DROP INDEX idx_dead_letters_archived;
DROP INDEX idx_dead_letters_sent;
DROP INDEX idx_dead_letters_released;
CREATE INDEX idx_dead_letters_released ON dead_letters (released_at, turn) WHERE state = 'replaying';
