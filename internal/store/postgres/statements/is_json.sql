-- Fails if a jsonb column cannot hold the text.
SELECT FROM (SELECT $1::text::jsonb) AS parsed (value) WHERE value IS NULL
