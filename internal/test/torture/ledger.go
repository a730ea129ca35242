package torture

import (
	"maps"
	"sync"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// writer is a way for events to come in.
type writer string

const (
	byStore     writer = "store API"
	byCommand   writer = "worker append"
	bySQL       writer = "plain INSERT"
	byPublisher writer = "foreign AMQP"
)

// outcome is what its writer was told of an event.
type outcome int

const (
	// unknown: the connection or the process ended before there was an answer.
	unknown outcome = iota
	// kept: it was written.
	kept
	// refused: it was not.
	refused
)

// entry is an event that somebody set out to write.
type entry struct {
	event   events.Event
	fate    fate
	writer  writer
	outcome outcome
}

// ledger notes what was written, from the writers' side. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	entries map[uuid.UUID]entry
}

func newLedger() *ledger { return &ledger{entries: map[uuid.UUID]entry{}} }

// note notes what became of entries so far.
func (l *ledger) note(w writer, o outcome, entries ...entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		e.writer, e.outcome = w, o
		e.event.Data, e.event.Metadata = nil, nil
		l.entries[e.event.ID] = e
	}
}

func (l *ledger) all() map[uuid.UUID]entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.entries)
}

func eventsOf(entries []entry) []events.Event {
	batch := make([]events.Event, len(entries))
	for i, e := range entries {
		batch[i] = e.event
	}
	return batch
}
