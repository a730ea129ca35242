-- Messages that no handler could handle, when there is no broker that keeps them.

-- +goose Up
CREATE TABLE dead_letters (
    id                  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    body                bytea       NOT NULL,
    headers             json        NOT NULL, -- not jsonb, which refuses \u0000
    source              text        NOT NULL,
    reason              text        NOT NULL,
    handler             text        NOT NULL,
    attempts            integer     NOT NULL,
    first_failed_at     timestamptz NOT NULL,
    last_failed_at      timestamptz NOT NULL,
    replay_requested_at timestamptz
);
CREATE INDEX dead_letters_replay ON dead_letters (id) WHERE replay_requested_at IS NOT NULL;

-- +goose Down
-- +goose StatementBegin
DO $$
BEGIN
    LOCK TABLE dead_letters;
    IF EXISTS (SELECT FROM dead_letters) THEN
        RAISE EXCEPTION 'dead_letters holds dead letters' USING ERRCODE = 'object_in_use';
    END IF;
END
$$;
-- +goose StatementEnd
DROP TABLE dead_letters;
