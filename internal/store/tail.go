package store

import (
	"context"
	"errors"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
)

// TailConfig says what of a store the relay reads.
type TailConfig struct {
	// BatchSize is the most events that one message of the tail carries. Required.
	BatchSize int
	// Start is where a relay begins that has never run on this database. Later starts go on where it was.
	Start Start
	// OnlyOwn passes over the rows that other programs have inserted, for sites where those publish by themselves.
	OnlyOwn bool
}

// Start is where a relay's first run begins.
type Start string

// The beginnings of a first run.
const (
	// StartAuto begins behind the rows that were in the table when the migrations adopted it, and so at the first row
	// of a table that they made.
	StartAuto Start = "auto"
	// StartBeginning begins at the first row there is.
	StartBeginning Start = "beginning"
	// StartEnd begins behind the last row there is.
	StartEnd Start = "end"
)

// ErrNotLeader is what Tail.DB returns while another process gets the messages. It is no fault: the next poll may win.
var ErrNotLeader = errors.New("another worker tails the store")

// Tail is a store's side of the relay: the parts from which watermill-sql's subscriber is built. Each message that the
// subscriber yields carries a batch: its payload is a JSON array of events as they go over the wire, in commit order,
// with the versions of each aggregate ascending; at least one, at most TailConfig.BatchSize. (Lower versions that would
// follow behind the batch are put into it besides, and come again: only a program that writes in long transactions
// brings that about.) Acking it moves the position behind the batch. Only one subscriber over all processes gets
// messages at a time; when its process dies, another's next poll takes over.
type Tail struct {
	DB      wsql.Beginner
	Schema  wsql.SchemaAdapter
	Offsets wsql.OffsetsAdapter
	// Wake receives a value soon after something was appended, by this process or, where the database can tell, by
	// another; many appends may give one value, and some may be missed: a poll is still needed. It is never closed.
	Wake <-chan struct{}
	// Backlog looks at what the relay has before it. It waits for no lock, whoever relays.
	Backlog func(ctx context.Context) (Backlog, error)
	// Close releases what the tail holds. The store must be closed after it.
	Close func() error
}
