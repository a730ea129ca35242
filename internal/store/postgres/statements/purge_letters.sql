-- Destroys all dead letters, and with them what waits behind them.
WITH unparked AS (
    DELETE FROM parked
)
DELETE FROM dead_letters
