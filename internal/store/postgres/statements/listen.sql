-- Listens to what the trigger on events tells. LISTEN takes no expression.
DO $$ BEGIN EXECUTE format('LISTEN %I', 'events_' || 'events'::regclass::oid); END $$
