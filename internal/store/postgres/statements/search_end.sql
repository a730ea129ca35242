-- The last of the @reach rows that come first in a walk of search.sql, none if there are fewer.
SELECT created_at, id
FROM events
WHERE {{walk}}
ORDER BY {{order}}
OFFSET @reach - 1
LIMIT 1
