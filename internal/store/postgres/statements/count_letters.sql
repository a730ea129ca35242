-- How many dead letters there are, counted up to $1.
SELECT count(*) FROM (SELECT FROM dead_letters LIMIT $1) AS letters
