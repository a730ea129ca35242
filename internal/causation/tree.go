// Package causation shows the trace of a correlation id: a tree of events, each below its cause, with its handlers and its
// dead letters.
//
// A [Tree] is a list in display order, so that a trace of ten thousand events needs no recursion. It contains no event_data
// and no metadata.
package causation

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	// MaxEvents is the maximum size of a tree. It contains the oldest events of the trace.
	MaxEvents = 10_000
	// page is the number of events per query.
	page = 200
)

var (
	// ErrNotFound says that an id is neither the correlation id nor the id of an event.
	ErrNotFound = errors.New("no event has this id as its correlation_id or event_id")
	// ErrLetters says that the dead letters could not be read.
	ErrLetters = errors.New("read the dead letters")
)

// Tree is the trace of one correlation id. It may have several roots.
type Tree struct {
	CorrelationID uuid.UUID
	// Nodes are the events in display order: each event is followed by its effects. Effects of one cause are in the order of
	// time.
	Nodes []Node
	// Truncated is set if the trace has more than [MaxEvents] events: the latest are missing.
	Truncated bool
}

// Node is an event of a tree.
type Node struct {
	// Event is without its Data and Metadata.
	Event events.Event
	// Parent is the index of the cause in Tree.Nodes, -1 for a root. Depth is the number of causes above.
	Parent, Depth int
	// Last is set if no later effect of the same cause follows, or no further root.
	Last bool
	// Cause says whether the event's cause is known.
	Cause Cause
	// Stored is false if the event is known only from a dead letter: it was published and not appended.
	Stored bool
	// Handled are the inbox records of the event, the earliest first. Old records may be pruned.
	Handled []store.Handling
	// Failures are the dead letters of the event, the oldest first, in all states except [deadletter.Settled].
	Failures []Failure
}

// Cause says whether the cause of an event is known.
type Cause string

// The values of Cause.
const (
	// CauseNone: the event has no causation_id.
	CauseNone Cause = "none"
	// CauseKnown: the cause is the parent in the tree.
	CauseKnown Cause = "known"
	// CauseMissing: the causation_id is not of an event of this trace. It may be the id of a command.
	CauseMissing Cause = "missing"
	// CauseCircular: the causation_ids form a cycle. Its earliest event is the root.
	CauseCircular Cause = "circular"
)

// Failure is a dead letter of an event.
type Failure struct {
	// LetterID is the id of the letter.
	LetterID string
	// Replays is the number of replays that failed again.
	Replays int
	State   deadletter.State
	deadletter.Failure
}

// Store is the part of a store from which a tree is read.
type Store interface {
	ByID(ctx context.Context, eventID uuid.UUID) (store.Recorded, error)
	ByCorrelation(ctx context.Context, correlationID uuid.UUID, q store.Query) (store.Page, error)
	HandledOf(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]store.Handling, error)
}

// Letters is the part of a [deadletter.Table] from which a tree is read.
type Letters interface {
	List(ctx context.Context, f deadletter.Filter) iter.Seq2[deadletter.Letter, error]
	Find(ctx context.Context, id string) (deadletter.Letter, error)
}

// notHandled are the states of the letters in a tree.
func notHandled() []deadletter.State {
	return []deadletter.State{deadletter.Waiting, deadletter.Replaying, deadletter.Archived, deadletter.Discarded, deadletter.Superseded}
}

// Load reads the tree of a correlation id or, if no event has it, the tree of the event with that id. The error wraps
// [ErrNotFound] if there is no event, and [ErrLetters] if only the dead letters could not be read.
func Load(ctx context.Context, s Store, id uuid.UUID, letters Letters) (Tree, error) {
	b := builder{index: make(map[uuid.UUID]int)}
	correlationID, err := correlationOf(ctx, s, letters, id)
	if err == nil {
		err = b.read(ctx, s, correlationID)
	}
	if err == nil {
		err = b.addFailures(ctx, letters, correlationID)
	}
	if err == nil && len(b.nodes) == 0 {
		err = ErrNotFound
	}
	if err == nil {
		err = b.addHandled(ctx, s)
	}
	if err != nil {
		return Tree{}, fmt.Errorf("trace %s: %w", id, err)
	}
	return Tree{CorrelationID: correlationID, Nodes: b.arrange(), Truncated: b.truncated}, nil
}

// correlationOf returns id if it is a correlation id, else the correlation id of the event with this id.
func correlationOf(ctx context.Context, s Store, letters Letters, id uuid.UUID) (uuid.UUID, error) {
	first, err := s.ByCorrelation(ctx, id, store.Query{Limit: 1, WithoutData: true})
	if err != nil || len(first.Events) > 0 {
		return id, err
	}
	e, err := s.ByID(ctx, id)
	if !errors.Is(err, store.ErrNoEvent) {
		return e.CorrelationID, err
	}
	for l, err := range letters.List(ctx, deadletter.Filter{IDs: []string{id.String()}, States: notHandled()}) {
		if err != nil {
			return id, fmt.Errorf("%w: %w", ErrLetters, err)
		}
		if l.Event.ID == id && l.Event.CorrelationID != uuid.Nil {
			return l.Event.CorrelationID, nil
		}
	}
	return id, nil
}

// builder collects events by time, and then arranges them as a tree.
type builder struct {
	nodes     []Node
	index     map[uuid.UUID]int // of events by their id
	truncated bool
}

func (b *builder) read(ctx context.Context, s Store, correlationID uuid.UUID) error {
	var after store.Cursor
	for {
		p, err := s.ByCorrelation(ctx, correlationID, store.Query{Limit: page, After: after, WithoutData: true})
		if err != nil {
			return err
		}
		for _, e := range p.Events {
			if !b.add(e, true) {
				return nil
			}
		}
		if p.Next == "" {
			return nil
		}
		after = p.Next
	}
}

// add adds an event, unless the tree is full.
func (b *builder) add(e events.Event, stored bool) bool {
	if len(b.nodes) == MaxEvents {
		b.truncated = true
		return false
	}
	e.Data, e.Metadata = nil, nil
	b.index[e.ID] = len(b.nodes)
	b.nodes = append(b.nodes, Node{Event: e, Stored: stored})
	return true
}

func (b *builder) addFailures(ctx context.Context, letters Letters, correlationID uuid.UUID) error {
	for l, err := range letters.List(ctx, deadletter.Filter{Correlation: correlationID, States: notHandled()}) {
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLetters, err)
		}
		if l.Event.ID == uuid.Nil {
			continue
		}
		if _, known := b.index[l.Event.ID]; !known {
			whole, err := letters.Find(ctx, l.ID)
			if errors.Is(err, deadletter.ErrNotFound) { // it was purged meanwhile
				continue
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrLetters, err)
			}
			if !b.add(whole.Event, false) {
				continue
			}
		}
		n := &b.nodes[b.index[l.Event.ID]]
		n.Failures = append(n.Failures, Failure{LetterID: l.ID, Replays: l.Replays, State: l.State, Failure: l.Failure})
	}
	slices.SortStableFunc(b.nodes, func(x, y Node) int { return x.Event.CreatedAt.Compare(y.Event.CreatedAt) })
	for i, n := range b.nodes {
		b.index[n.Event.ID] = i
	}
	return nil
}

func (b *builder) addHandled(ctx context.Context, s Store) error {
	for part := range slices.Chunk(b.nodes, page) {
		ids := make([]uuid.UUID, len(part))
		for i, n := range part {
			ids[i] = n.Event.ID
		}
		handled, err := s.HandledOf(ctx, ids)
		if err != nil {
			return err
		}
		for i := range part {
			part[i].Handled = handled[part[i].Event.ID]
		}
	}
	return nil
}

// arrange returns the events in display order.
func (b *builder) arrange() []Node {
	var roots []int
	effects := make([][]int, len(b.nodes))
	for i := range b.nodes {
		n := &b.nodes[i]
		switch cause, known := b.cause(i); {
		case known:
			n.Cause = CauseKnown
			effects[cause] = append(effects[cause], i)
			continue
		case n.Event.CausationID.Valid:
			n.Cause = CauseMissing
		default:
			n.Cause = CauseNone
		}
		roots = append(roots, i)
	}
	for _, first := range b.cycles() {
		b.nodes[first].Cause = CauseCircular
		roots = append(roots, first)
	}
	slices.Sort(roots)

	type position struct{ node, parent, depth int }
	arranged := make([]Node, 0, len(b.nodes))
	var open []position // a stack
	push := func(nodes []int, parent, depth int) {
		for i, node := range slices.Backward(nodes) {
			b.nodes[node].Last = i == len(nodes)-1
			open = append(open, position{node, parent, depth})
		}
	}
	for push(roots, -1, 0); len(open) > 0; {
		p := open[len(open)-1]
		open = open[:len(open)-1]
		n := b.nodes[p.node]
		n.Parent, n.Depth = p.parent, p.depth
		arranged = append(arranged, n)
		// The first event of a cycle is a root, not an effect.
		below := slices.DeleteFunc(effects[p.node], func(e int) bool { return b.nodes[e].Cause == CauseCircular })
		push(below, len(arranged)-1, p.depth+1)
	}
	return arranged
}

// cause returns the index of the cause of an event, if it is in the trace.
func (b *builder) cause(i int) (int, bool) {
	id := b.nodes[i].Event.CausationID
	cause, known := b.index[id.UUID]
	return cause, known && id.Valid
}

// cycles returns the earliest event of each cycle of causes. An event has at most one cause, so there is at most one cycle
// above it.
func (b *builder) cycles() []int {
	var cycles []int
	visitedBy := make([]int, len(b.nodes)) // the start, counted from 1, from which a node was visited first
	for start := range b.nodes {
		at, more := start, true
		for more && visitedBy[at] == 0 {
			visitedBy[at] = start + 1
			at, more = b.cause(at)
		}
		if !more || visitedBy[at] != start+1 {
			continue // a root, or visited before
		}
		first, end := at, at
		for at, _ = b.cause(at); at != end; at, _ = b.cause(at) {
			first = min(first, at)
		}
		cycles = append(cycles, first)
	}
	return cycles
}

// isKnown tells whether at is a time that an event can have by the contract. Another program may have written others, such
// as an infinity; offsets and durations do not count from these.
func isKnown(at time.Time) bool { return !at.IsZero() && at.Year() >= 1 && at.Year() <= 9999 }

// Began returns when the earliest event was created.
func (t Tree) Began() time.Time {
	var began time.Time
	for _, n := range t.Nodes {
		if at := n.Event.CreatedAt; isKnown(at) && (began.IsZero() || at.Before(began)) {
			began = at
		}
	}
	return began
}

// Ended returns the time of the last event, handling or failure.
func (t Tree) Ended() time.Time {
	var ended time.Time
	take := func(at time.Time) {
		if at.After(ended) && isKnown(at) {
			ended = at
		}
	}
	for _, n := range t.Nodes {
		take(n.Event.CreatedAt)
		for _, h := range n.Handled {
			take(h.At)
		}
		for _, f := range n.Failures {
			take(f.LastFailed)
		}
	}
	return ended
}

// Failures returns the number of waiting dead letters.
func (t Tree) Failures() int {
	count := 0
	for _, n := range t.Nodes {
		for _, f := range n.Failures {
			if f.State == deadletter.Waiting {
				count++
			}
		}
	}
	return count
}
