-- The contract's table with the contract's indexes.
CREATE TABLE events (
    id                bigserial    PRIMARY KEY,
    event_id          uuid         NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    event_type        varchar(100) NOT NULL,
    aggregate_type    varchar(50)  NOT NULL,
    aggregate_id      uuid         NOT NULL,
    aggregate_version integer      NOT NULL,
    tenant_id         uuid         NOT NULL,
    clinic_id         uuid,
    causation_id      uuid,
    correlation_id    uuid         NOT NULL,
    user_id           uuid,
    created_at        timestamptz  NOT NULL DEFAULT now(),
    event_data        jsonb        NOT NULL,
    metadata          jsonb        DEFAULT '{}'
);
CREATE UNIQUE INDEX events_aggregate_version_unique ON events (aggregate_id, aggregate_version);
CREATE INDEX idx_events_aggregate ON events (aggregate_type, aggregate_id);
CREATE INDEX idx_events_correlation ON events (correlation_id);
CREATE INDEX idx_events_causation ON events (causation_id);
CREATE INDEX idx_events_tenant ON events (tenant_id);
CREATE INDEX idx_events_type ON events (event_type);
CREATE INDEX idx_events_created_at ON events (created_at);
-- An inbox as small as can be.
CREATE TABLE inbox (event_id uuid NOT NULL, handler text NOT NULL, PRIMARY KEY (event_id, handler));
