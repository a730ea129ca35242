-- Fails if the text is not for a jsonb column.
SELECT FROM (SELECT $1::text::jsonb) AS parsed (value) WHERE value IS NULL
