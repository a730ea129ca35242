package store

import (
	"context"
	"errors"
	"time"
)

// TailConfig says what of a store the relay reads.
type TailConfig struct {
	// BatchSize is the most events that one batch of the tail carries. Required.
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

// ErrNotLeader says that another worker holds the lease that is needed.
var ErrNotLeader = errors.New("another worker is the leader")

// RelayTask is the task whose leader moves the position of the tail.
const RelayTask = "relay"

// Fence is a fencing token: it names one period in which one holder has held a lease. The numbers of a task only grow.
type Fence struct {
	Holder string
	Number int64
}

// Batch is a number of events in commit order.
type Batch struct {
	// Events is a JSON array of events as they go over the wire, with the versions of each aggregate ascending: at most
	// TailConfig.BatchSize. (On Postgres, lower versions that follow behind the batch are added to it, and come again: only a
	// program that reads and writes an aggregate in a transaction that was at work before causes that.) It is nil if there is no event.
	Events []byte
	// Position is behind the batch.
	Position Position
}

// Tail is a store's side of the relay, and of the leases of package lease. No transaction is open while a batch is handled,
// however long that takes.
//
// On Postgres it has connections of its own, so that a busy store does not delay it; only Backlog uses those of the store.
// Each call is one transaction and leaves no state in a session, so that a pooler in transaction mode may stand between. On
// SQLite it has a connection of its own to read a batch; Move and the leases wait for the one writer.
type Tail struct {
	// Next reads the batch behind the position, or behind another one, if after is not nil: that of a batch that was read
	// before. It is [ErrNoPosition] if the position was deleted, and [ErrRestored] if the database was restored from a dump of
	// another cluster.
	Next func(ctx context.Context, after *Position) (Batch, error)
	// Move moves the position. It is [ErrNotLeader] if the lease of [RelayTask] has another holder or fence meanwhile: a
	// former leader, which may have been frozen at any point, moves nothing; and if the position was deleted.
	Move func(ctx context.Context, behind Position, fence Fence) error
	// TakeLease takes or renews the lease of a task for as long as ttl, by the clock of the database. It is
	// [ErrNotLeader] while another holds it.
	TakeLease func(ctx context.Context, task, holder string, ttl time.Duration) (Fence, error)
	// GiveLease lets others take the lease at once, if the holder has it.
	GiveLease func(ctx context.Context, task, holder string) error
	// Wake receives a value soon after something was appended, by this process or, where the database can tell, by
	// another; many appends may give one value, and some may be missed: a poll is still needed. It is never closed.
	Wake <-chan struct{}
	// Backlog tells what the relay has not published yet. It waits for no lock. The errors are those of Next.
	Backlog func(ctx context.Context) (Backlog, error)
	// Close releases what the tail holds. The store must be closed after it.
	Close func() error
}
