-- The inbox is pruned from its old end.

-- +goose Up
CREATE INDEX handled_age ON handled (handled_at);

-- +goose Down
DROP INDEX handled_age;
