package deadletter

import (
	"slices"

	"github.com/google/uuid"
)

// Plan is the order in which letters are sent: those of one aggregate and handler by their versions, whatever their order
// in the queue, which is another once some were replayed alone and failed again.
type Plan struct {
	letters map[string]*line
	lines   map[lineKey]*line
}

type lineKey struct {
	aggregate uuid.UUID
	handler   string
}

// line are the letters of one aggregate and handler, in the order in which they are sent.
type line struct {
	waiting []place
	// held are those of waiting that were met in the queue before their turn.
	held map[string]func() error
}

type place struct {
	id      string
	version int
}

// NewPlan returns a plan of no letters.
func NewPlan() *Plan { return &Plan{letters: map[string]*line{}, lines: map[lineKey]*line{}} }

// Add adds a letter, in the order of the queue.
func (p *Plan) Add(l Letter) {
	key := lineKey{l.Event.AggregateID, l.Handler}
	ln := p.lines[key]
	if ln == nil || l.Event.AggregateID == uuid.Nil {
		ln = &line{held: map[string]func() error{}}
		p.lines[key] = ln
	}
	p.letters[l.ID] = ln
	at, _ := slices.BinarySearchFunc(ln.waiting, l.Event.AggregateVersion+1, func(e place, v int) int { return e.version - v })
	ln.waiting = slices.Insert(ln.waiting, at, place{l.ID, l.Event.AggregateVersion})
}

// Len is how many letters are still to be sent.
func (p *Plan) Len() int { return len(p.letters) }

// Has tells whether a letter is still to be sent.
func (p *Plan) Has(id string) bool { return p.letters[id] != nil }

// Meet is called with each letter of the plan as it is met in the queue. It calls send when it is the letter's turn: at
// once, or when those before it have been met, which are sent then.
func (p *Plan) Meet(id string, send func() error) error {
	ln := p.letters[id]
	ln.held[id] = send
	for len(ln.waiting) > 0 {
		next := ln.waiting[0].id
		send, met := ln.held[next]
		if !met {
			return nil
		}
		ln.waiting = ln.waiting[1:]
		delete(ln.held, next)
		delete(p.letters, next)
		if err := send(); err != nil {
			return err
		}
	}
	return nil
}

// Forget lets all letters that were met and not sent be met again.
func (p *Plan) Forget() {
	for _, ln := range p.letters {
		clear(ln.held)
	}
}
