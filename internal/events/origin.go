package events

import "github.com/google/uuid"

// Origin is what an event inherits from whatever brought it about: for whom, by whom, and in which chain
// of causes. TenantID is required. A zero CorrelationID begins a new chain.
type Origin struct {
	TenantID      uuid.UUID
	ClinicID      uuid.NullUUID
	UserID        uuid.NullUUID
	CorrelationID uuid.UUID
	// CausationID is the event or command that is the direct cause; null at the beginning of a chain.
	CausationID uuid.NullUUID
}

// CausedBy is the origin of the events that e brings about.
func CausedBy(e Event) Origin {
	return Origin{
		TenantID:      e.TenantID,
		ClinicID:      e.ClinicID,
		UserID:        e.UserID,
		CorrelationID: e.CorrelationID,
		CausationID:   uuid.NullUUID{UUID: e.ID, Valid: true},
	}
}

func (o Origin) withCorrelation() Origin {
	if o.CorrelationID == uuid.Nil {
		o.CorrelationID = NewCorrelationID()
	}
	return o
}
