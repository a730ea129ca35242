package store

import "time"

// MaxCount is where a store stops counting a backlog, which bounds the cost of a count.
const MaxCount = 100_000

// Backlog is what the relay has not published yet.
type Backlog struct {
	// Events is how many there are, at most [MaxCount].
	Events int
	// Age is the age of the first of them, by its created_at and the store's clock; 0 if there is none.
	Age time.Duration
}

// Pool is the state of a store's connections.
type Pool struct {
	Name             string
	InUse, Idle, Max int
	// Waits counts the calls that had to wait for a connection, Waited is for how long, together.
	Waits  int64
	Waited time.Duration
}
