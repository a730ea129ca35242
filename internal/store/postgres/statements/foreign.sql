-- In what a table events of another program differs from that of the contract, as the first migration would find it; NULL
-- if in nothing.
SELECT string_agg(problem, '; ' ORDER BY place)
FROM (
    SELECT wanted.place, format('%I is %s, not %s', wanted.name, coalesce(found.type, 'missing'), wanted.type) AS problem
    FROM (VALUES
        (1,  'id',                'bigint not null'),
        (2,  'event_id',          'uuid not null'),
        (3,  'event_type',        'character varying(100) not null'),
        (4,  'aggregate_type',    'character varying(50) not null'),
        (5,  'aggregate_id',      'uuid not null'),
        (6,  'aggregate_version', 'integer not null'),
        (7,  'tenant_id',         'uuid not null'),
        (8,  'clinic_id',         'uuid'),
        (9,  'causation_id',      'uuid'),
        (10, 'correlation_id',    'uuid not null'),
        (11, 'user_id',           'uuid'),
        (12, 'created_at',        'timestamp with time zone not null'),
        (13, 'event_data',        'jsonb not null'),
        (14, 'metadata',          'jsonb')
    ) AS wanted (place, name, type)
    LEFT JOIN LATERAL (
        SELECT format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END AS type
        FROM pg_attribute
        WHERE attrelid = to_regclass('events') AND attname = wanted.name AND NOT attisdropped
    ) AS found ON true
    WHERE found.type IS DISTINCT FROM wanted.type
    UNION ALL
    SELECT 15, 'event_id is not unique'
    WHERE NOT EXISTS (
        SELECT FROM pg_index
        JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        WHERE indrelid = to_regclass('events') AND attname = 'event_id'
            AND indisunique AND indnkeyatts = 1 AND indpred IS NULL
    )
) AS problems
