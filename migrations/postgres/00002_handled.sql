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
-- Without it what is delivered again would be handled again.
-- +goose StatementBegin
DO $$
BEGIN
    LOCK TABLE handled;
    IF EXISTS (SELECT FROM handled) THEN
        RAISE EXCEPTION 'handled holds the record of what was handled' USING ERRCODE = 'object_in_use';
    END IF;
END
$$;
-- +goose StatementEnd
DROP TABLE handled;
