-- Gives back the lease of the task $1 that the holder $2 has.
UPDATE leases SET holder = '' WHERE task = $1 AND holder = $2
