-- The inbox: which handler has handled which event.

-- +goose Up
CREATE TABLE handled (
    event_id    uuid        NOT NULL,
    handler     text        NOT NULL,
    fingerprint bytea       NOT NULL, -- of what the event said
    handled_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, handler)
);

-- +goose Down
DROP TABLE handled;
