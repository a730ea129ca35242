INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id,
                    causation_id, correlation_id, user_id, created_at, event_data, metadata, own)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)
