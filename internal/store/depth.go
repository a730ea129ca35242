package store

import (
	"cmp"
	"time"
)

// MaxCount is where a store stops counting a backlog, which bounds the cost of a count.
const MaxCount = 100_000

// Backlog is what the relay has not published yet.
type Backlog struct {
	// Events is how many there are, at most [MaxCount].
	Events int
	// Position is up to where all is published, and Last is where the last event is that is not.
	Position, Last Position
}

// IsBehind tells whether p comes after q in commit order.
func (p Position) IsBehind(q Position) bool {
	return cmp.Or(cmp.Compare(p.Transaction, q.Transaction), cmp.Compare(p.ID, q.ID)) > 0
}

// Pool is the state of a store's connections.
type Pool struct {
	Name             string
	InUse, Idle, Max int
	// Waits counts the calls that had to wait for a connection, Waited is for how long, together.
	Waits  int64
	Waited time.Duration
}
