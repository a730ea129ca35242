// Package causation shows a chain of causes as a tree: which event brought about which, who has handled each and when,
// and what of it failed and lies in the dead letters.
//
// A [Tree] is a list, in the order in which it is drawn, so that a chain of ten thousand events needs no recursion. It
// holds nothing of event_data or metadata.
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
	// MaxEvents is how many events of a chain, the oldest, a tree has at the most.
	MaxEvents = 10_000
	// page is how many events are read at once.
	page = 200
)

var (
	// ErrNotFound says that an id is neither the correlation of an event nor an event's own.
	ErrNotFound = errors.New("no event has this id as its correlation_id or event_id")
	// ErrLetters says that the dead letters could not be read.
	ErrLetters = errors.New("read the dead letters")
)

// Tree is what followed from what in one chain. It is a forest: a chain may have several beginnings.
type Tree struct {
	CorrelationID uuid.UUID
	// Nodes are the events in the order of drawing: each is followed by what it caused, effects of one cause by their
	// time.
	Nodes []Node
	// Truncated tells that the chain has more than [MaxEvents] events, of which the latest are missing.
	Truncated bool
}

// Node is an event in its place in a tree.
type Node struct {
	// Event is without its Data and Metadata.
	Event events.Event
	// Parent is the index of the cause in Tree.Nodes, -1 for a root, and Depth how many causes are above.
	Parent, Depth int
	// Last tells that no later effect of the same cause follows, or no further root.
	Last bool
	// Cause says whether the event's cause is known.
	Cause Cause
	// Stored is false of an event that is known from a dead letter alone: it was published and not appended.
	Stored bool
	// Handled are those who have handled the event, the earliest first, as far as the inbox still remembers.
	Handled []store.Handling
	// Failures are the event's dead letters, whatever their state but [deadletter.Settled], the oldest first.
	Failures []Failure
}

// Cause says what is known of the cause of an event.
type Cause string

// What may be known of a cause.
const (
	// CauseNone: the event began the chain.
	CauseNone Cause = "none"
	// CauseKnown: it is the event's parent in the tree.
	CauseKnown Cause = "known"
	// CauseMissing: no event of the chain has the causation_id, as it is a command's, or one of another chain.
	CauseMissing Cause = "missing"
	// CauseCircular: the event is, over whatever steps, the cause of its own cause. Its tree begins with the earliest
	// event of the circle.
	CauseCircular Cause = "circular"
)

// Failure is a dead letter of an event.
type Failure struct {
	// LetterID is what the commands on dead letters take.
	LetterID string
	// Replays is how often the letter was replayed, and failed again.
	Replays int
	// State says what has become of the letter.
	State deadletter.State
	deadletter.Failure
}

// Store is what a tree is read from.
type Store interface {
	ByID(ctx context.Context, eventID uuid.UUID) (store.Recorded, error)
	ByCorrelation(ctx context.Context, correlationID uuid.UUID, q store.Query) (store.Page, error)
	HandledOf(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]store.Handling, error)
}

// Letters are where dead letters are looked up; a [deadletter.Table] is one.
type Letters interface {
	List(ctx context.Context, f deadletter.Filter) iter.Seq2[deadletter.Letter, error]
	Find(ctx context.Context, id string) (deadletter.Letter, error)
}

// notHandled are the states of the letters that a tree tells of.
func notHandled() []deadletter.State {
	return []deadletter.State{deadletter.Waiting, deadletter.Replaying, deadletter.Archived, deadletter.Discarded, deadletter.Superseded}
}

// Load reads the tree of a chain: of the correlation id or, if no event has it, of the event with that id. With nil
// letters the tree tells of no failures. The error wraps [ErrNotFound] when there is no event, and [ErrLetters] when only they could not be read.
func Load(ctx context.Context, s Store, id uuid.UUID, letters Letters) (Tree, error) {
	correlationID, err := correlationOf(ctx, s, letters, id)
	if err != nil {
		return Tree{}, fmt.Errorf("trace %s: %w", id, err)
	}
	b := builder{index: make(map[uuid.UUID]int)}
	if err := b.read(ctx, s, correlationID); err != nil {
		return Tree{}, fmt.Errorf("trace %s: %w", id, err)
	}
	if err := b.fail(ctx, letters, correlationID); err != nil {
		return Tree{}, fmt.Errorf("trace %s: %w", id, err)
	}
	if len(b.nodes) == 0 {
		return Tree{}, fmt.Errorf("trace %s: %w", id, ErrNotFound)
	}
	if err := b.handle(ctx, s); err != nil {
		return Tree{}, fmt.Errorf("trace %s: %w", id, err)
	}
	return Tree{CorrelationID: correlationID, Nodes: b.arrange(), Truncated: b.truncated}, nil
}

// correlationOf is the correlation id itself, or that of the event with the id.
func correlationOf(ctx context.Context, s Store, letters Letters, id uuid.UUID) (uuid.UUID, error) {
	first, err := s.ByCorrelation(ctx, id, store.Query{Limit: 1})
	if err != nil || len(first.Events) > 0 {
		return id, err
	}
	e, err := s.ByID(ctx, id)
	if !errors.Is(err, store.ErrNoEvent) {
		return e.CorrelationID, err
	}
	if letters == nil {
		return id, nil
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

// builder collects events in the order of time and then arranges them.
type builder struct {
	nodes     []Node
	index     map[uuid.UUID]int // of events by their id
	truncated bool
}

// read reads the chain's events.
func (b *builder) read(ctx context.Context, s Store, correlationID uuid.UUID) error {
	var after store.Cursor
	for {
		p, err := s.ByCorrelation(ctx, correlationID, store.Query{Limit: page, After: after})
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

// add takes an event in, unless the tree is full.
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

// fail notes what lies in the dead letters.
func (b *builder) fail(ctx context.Context, letters Letters, correlationID uuid.UUID) error {
	if letters == nil {
		return nil
	}
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

// handle notes who has handled what.
func (b *builder) handle(ctx context.Context, s Store) error {
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

// arrange brings the events into the order of drawing.
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
	for _, first := range b.circles() {
		b.nodes[first].Cause = CauseCircular
		roots = append(roots, first)
	}
	slices.Sort(roots)

	type place struct{ node, parent, depth int }
	arranged := make([]Node, 0, len(b.nodes))
	var open []place // a stack
	push := func(nodes []int, parent, depth int) {
		for i, node := range slices.Backward(nodes) {
			b.nodes[node].Last = i == len(nodes)-1
			open = append(open, place{node, parent, depth})
		}
	}
	for push(roots, -1, 0); len(open) > 0; {
		p := open[len(open)-1]
		open = open[:len(open)-1]
		n := b.nodes[p.node]
		n.Parent, n.Depth = p.parent, p.depth
		arranged = append(arranged, n)
		// What begins a circle is a root, and not an effect as well.
		below := slices.DeleteFunc(effects[p.node], func(e int) bool { return b.nodes[e].Cause == CauseCircular })
		push(below, len(arranged)-1, p.depth+1)
	}
	return arranged
}

// cause is the cause of an event, if it is in the chain.
func (b *builder) cause(i int) (int, bool) {
	id := b.nodes[i].Event.CausationID
	cause, known := b.index[id.UUID]
	return cause, known && id.Valid
}

// circles are the events that have no beginning above them: of each circle of causes the earliest. An event has one
// cause at the most, so above each there is one circle or none.
func (b *builder) circles() []int {
	var circles []int
	walk := make([]int, len(b.nodes)) // the walk, counted from 1, in which a node was first come by
	for start := range b.nodes {
		at, more := start, true
		for more && walk[at] == 0 {
			walk[at] = start + 1
			at, more = b.cause(at)
		}
		if !more || walk[at] != start+1 {
			continue // a beginning, or what an earlier walk has seen
		}
		first, end := at, at
		for at, _ = b.cause(at); at != end; at, _ = b.cause(at) {
			first = min(first, at)
		}
		circles = append(circles, first)
	}
	return circles
}

// Began is when the earliest event of the chain was created, and Ended when the last thing known of it happened: an
// event, its handling or its failure.
func (t Tree) Began() time.Time {
	var began time.Time
	for _, n := range t.Nodes {
		if at := n.Event.CreatedAt; !at.IsZero() && (began.IsZero() || at.Before(began)) {
			began = at
		}
	}
	return began
}

// Ended is described with [Tree.Began].
func (t Tree) Ended() time.Time {
	var ended time.Time
	take := func(at time.Time) {
		if at.After(ended) {
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

// Failures is how many dead letters the chain has, without those that are archived.
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
