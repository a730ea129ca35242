package deadletter

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/healz/worker/internal/audit"
)

// record records an action in its transaction.
func (t *Table) record(ctx context.Context, tx *sql.Tx, e audit.Entry) error {
	return audit.Write(ctx, tx, t.db.Dialect, e)
}

// Subject is what is recorded of an action on the letters of f. A text that the reason of a letter contains may be about a
// patient, and is left out.
func (f Filter) Subject() audit.Subject {
	s := audit.Subject{}
	states := make([]string, len(f.States))
	for i, state := range f.States {
		states[i] = string(state)
	}
	s.WithList("states", states).WithList("ids", f.IDs).With("group", f.Group).With("type", f.Type).With("handler", f.Handler).
		WithID("tenant", f.Tenant).WithID("aggregate", f.Aggregate).WithID("correlation", f.Correlation).
		WithTime("since", f.Since).WithTime("until", f.Until)
	if f.Contains != "" || f.Reason != nil {
		s["failure"] = "(not recorded)"
	}
	if f.Limit > 0 {
		s["limit"] = strconv.Itoa(f.Limit)
	}
	if f.IsZero() {
		s["all"] = true
	}
	return s
}

// actionOf is the action that gives letters a state.
func actionOf(to State) audit.Action {
	switch to {
	case Archived:
		return audit.Archive
	case Discarded:
		return audit.Discard
	default:
		return audit.Restore
	}
}
