package bus

import (
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

// KeyOf is the key in a [KeyedQueue] of a message: its aggregate, or else the message itself, so that no two copies of it
// are in flight at once. UUIDs may be in upper or lower case.
func KeyOf(m *message.Message) string {
	if aggregate := m.Metadata.Get(AggregateIDKey); aggregate != "" {
		return "aggregate " + strings.ToLower(aggregate)
	}
	return "message " + m.UUID
}

// KeyedQueue decides what is handed over next: of each key one item at a time, in the order of arrival. The zero value is
// an empty queue. It is not safe for concurrent use.
type KeyedQueue[T any] struct {
	length   int // waiting or in flight
	inFlight int
	keys     map[string]*key[T]
	ready    []*key[T] // those with items waiting and none in flight
}

type key[T any] struct {
	waiting  []T
	inFlight bool
}

// Empty tells whether nothing waits or is in flight.
func (q *KeyedQueue[T]) Empty() bool { return len(q.keys) == 0 }

// Len is how many items wait or are in flight.
func (q *KeyedQueue[T]) Len() int { return q.length }

// InFlight is how many items are in flight.
func (q *KeyedQueue[T]) InFlight() int { return q.inFlight }

// Add appends an item to those of a key.
func (q *KeyedQueue[T]) Add(name string, item T) {
	k := q.keys[name]
	if k == nil {
		if q.keys == nil {
			q.keys = map[string]*key[T]{}
		}
		k = &key[T]{}
		q.keys[name] = k
	}
	k.waiting = append(k.waiting, item)
	q.length++
	if !k.inFlight && len(k.waiting) == 1 {
		q.ready = append(q.ready, k)
	}
}

// Next is the item to hand over, if there is one.
func (q *KeyedQueue[T]) Next() (item T, found bool) {
	if len(q.ready) == 0 {
		return item, false
	}
	return q.ready[0].waiting[0], true
}

// Take removes Next, which is now in flight.
func (q *KeyedQueue[T]) Take() {
	k := q.ready[0]
	var none T
	q.ready[0], k.waiting[0] = nil, none
	q.ready, k.waiting = q.ready[1:], k.waiting[1:]
	k.inFlight = true
	q.inFlight++
}

// Done notes that the item of a key that was in flight no longer is.
func (q *KeyedQueue[T]) Done(name string) {
	q.length--
	q.inFlight--
	q.keys[name].inFlight = false
	q.update(name)
}

// Again notes that an item is no longer in flight, and makes it the next of its key.
func (q *KeyedQueue[T]) Again(name string, item T) {
	k := q.keys[name]
	k.waiting = append([]T{item}, k.waiting...)
	q.length++
	q.Done(name)
}

func (q *KeyedQueue[T]) update(name string) {
	switch k := q.keys[name]; {
	case k.inFlight:
	case len(k.waiting) > 0:
		q.ready = append(q.ready, k)
	default:
		delete(q.keys, name)
	}
}

// Remove removes and returns the first item that waits behind the one in flight of a key and is the wanted one.
func (q *KeyedQueue[T]) Remove(name string, wanted func(T) bool) (item T, found bool) {
	k := q.keys[name]
	i := slices.IndexFunc(k.waiting, wanted)
	if i < 0 {
		return item, false
	}
	item = k.waiting[i]
	k.waiting = slices.Delete(k.waiting, i, i+1)
	q.length--
	return item, true
}

// RemoveAll removes and returns those that wait and are meant, in the order of each key. What is in flight still blocks its
// key.
func (q *KeyedQueue[T]) RemoveAll(meant func(T) bool) []T {
	var removed []T
	q.ready = nil
	for name, k := range q.keys {
		var rest []T
		for _, item := range k.waiting {
			if meant(item) {
				removed = append(removed, item)
			} else {
				rest = append(rest, item)
			}
		}
		k.waiting = rest
		q.update(name)
	}
	q.length -= len(removed)
	return removed
}
