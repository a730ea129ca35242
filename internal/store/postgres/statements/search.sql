-- The events that a search chooses among the first @reach of an index scan, newest first.
--
-- {{condition}} and {{order}} are those of an index, so that the planner takes it: see by_type.sql. The other conditions
-- are checked on the rows of the scan, so a page never takes longer than @reach rows do.
SELECT
    event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, correlation_id,
    causation_id, user_id, created_at, event_data, metadata, transaction_id, id
FROM (SELECT * FROM events WHERE {{condition}} ORDER BY {{order}} LIMIT @reach) AS examined
WHERE (@causation::uuid IS NULL OR causation_id = @causation)
    AND (@aggregate::uuid IS NULL OR aggregate_id = @aggregate)
    AND (@correlation::uuid IS NULL OR correlation_id = @correlation)
    AND (@tenant::uuid IS NULL OR tenant_id = @tenant)
    AND (@type::text IS NULL OR event_type = @type)
ORDER BY {{order}}
LIMIT @limit
