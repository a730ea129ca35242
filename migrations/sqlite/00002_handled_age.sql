-- The inbox is pruned from its old end.

-- +goose Up
CREATE INDEX idx_handled_age ON handled (handled_at);

-- +goose Down
DROP INDEX idx_handled_age;
