-- Lets the batch that is selected in the same transaction be found by an index, however little is known of the table,
-- with a plan that is made once. These are no settings of the session: a pooler would not keep them. And says whether
-- there is a position: without one, no event is behind it.
SELECT
    set_config('plan_cache_mode', 'force_generic_plan', true),
    set_config('enable_seqscan', 'off', true),
    set_config('enable_bitmapscan', 'off', true),
    set_config('jit', 'off', true),
    EXISTS (SELECT FROM relay_position)
