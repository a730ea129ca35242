-- Gives the events of a restored database a transaction_id of this cluster, in the new column renumbered, which has 0 for
-- what was relayed or passed over. What was not gets 1, and so the order of the ids: they were given to the versions of an
-- aggregate one after the other. What was appended since the restore keeps its transaction, which is behind these.
-- Returns how many events were restored, how many of them were not relayed, and how many were appended since.
--
-- An event was appended since the restore if the transaction that has written the row is the one it names, or a
-- subtransaction of it. That tells nothing after a rewrite of the table; but the ids behind the last restored one then do.
WITH next AS (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS id
),
position AS MATERIALIZED (
    SELECT
        transaction_id, relay_position.id, passed_over,
        (next.id - mod(next.id - xmin::text::bigint + 4294967296, 4294967296))::text::xid8 AS written
    FROM relay_position, next
),
stored AS NOT MATERIALIZED (
    SELECT
        events.id, transaction_id,
        (next.id - mod(next.id - xmin::text::bigint + 4294967296, 4294967296))::text::xid8 AS written
    FROM events, next
),
restore AS MATERIALIZED (
    SELECT
        least(min(written::text::bigint), (SELECT written::text::bigint FROM position))::text::xid8 AS began,
        max(id) FILTER (WHERE transaction_id > written) AS last_id
    FROM stored
),
judged AS (
    SELECT
        stored.id, transaction_id,
        transaction_id BETWEEN '3' AND written AND (transaction_id >= began OR coalesce(stored.id > last_id, false)) AS is_new,
        (transaction_id, stored.id) <= (
            coalesce((SELECT transaction_id FROM position), '0'),
            coalesce((SELECT position.id FROM position), 9223372036854775807)
        )
            OR coalesce(pg_visible_in_snapshot(transaction_id, (SELECT passed_over FROM position)), false) AS is_relayed
    FROM stored, restore
),
waiting AS (
    UPDATE events
    SET renumbered = CASE WHEN is_new THEN judged.transaction_id ELSE '1' END
    FROM judged
    WHERE events.id = judged.id AND (is_new OR NOT is_relayed)
    RETURNING renumbered
)
SELECT
    (SELECT count(*) FROM events) - count(*) FILTER (WHERE renumbered > '1'),
    count(*) FILTER (WHERE renumbered = '1'),
    count(*) FILTER (WHERE renumbered > '1')
FROM waiting
