-- The last of the first @reach rows of a scan of search.sql, none if there are fewer.
SELECT created_at, id
FROM events
WHERE {{condition}}
ORDER BY {{order}}
OFFSET @reach - 1
LIMIT 1
