package deadletter

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/oklog/ulid/v2"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/store"
)

// Arrival is a message that arrives as a dead letter.
type Arrival struct {
	// Letter is the letter; see [Complete]. Its ID is the one that a worker has given the message, or "".
	Letter
	// Service is the service in which the message failed; its letter is another one than that of the same message elsewhere.
	Service string
	// MessageID is the message's own id, or "".
	MessageID string
	// Redelivered tells that the message was delivered before, so that the table may have it already.
	Redelivered bool
}

// Bounds of texts that messages bring. Postgres can't index longer ones, and lists hold some hundred of each.
const maxNameBytes = 1024

// storable is a letter that both databases can hold, whatever its message says.
func storable(l Letter, now time.Time) Letter {
	for _, id := range []*string{&l.ID, &l.ReplayOf, &l.ReplayID} {
		if *id = text(*id); len(*id) > maxNameBytes {
			*id = digest(*id)
		}
	}
	handler, eventType, reason := l.Handler, l.Type, l.Reason
	l.Handler, l.Type, l.Reason = nameOf(handler), nameOf(eventType), CutReason(text(reason))
	if l.Handler != handler || l.Type != eventType || l.Reason != reason {
		l.Group, _ = Fingerprint(l.Handler, l.Type, l.Reason)
	}
	l.Attempts, l.Replays = int32Of(l.Attempts), int32Of(l.Replays)
	l.LastFailed = timeOr(l.LastFailed, now)
	l.FirstFailed = timeOr(l.FirstFailed, l.LastFailed)
	return l
}

// nameOf is the name of a handler or a type as the table has it.
func nameOf(s string) string { return cutText(text(s), maxNameBytes) }

func int32Of(n int) int { return min(max(n, math.MinInt32), math.MaxInt32) }

// timeOr is a time as the databases keep it, or another if it is none that JSON can write.
func timeOr(t, other time.Time) time.Time {
	if year := t.UTC().Year(); t.IsZero() || year < 1 || year > 9999 {
		t = other
	}
	return t.UTC().Truncate(time.Microsecond)
}

// errRaced says that another has added a letter of the same identity meanwhile.
var errRaced = errors.New("another has added the same dead letter meanwhile")

// Ingest adds letters, all or none. One that is there already is not added again: it is the same if event, handler and
// body are, or if its body is no event, its message's id, handler and body. If its failure is later than the one that
// is known, or comes from a later replay of the letter, the letter waits again, with a longer history.
//
// Messages that have no id at all are compared only if they were delivered before, and only with those that are not
// yet [Table.Acked].
func (t *Table) Ingest(ctx context.Context, arrivals []Arrival) error {
	arrivals = slices.Clone(arrivals)
	size := 0
	for i := range arrivals {
		arrivals[i].Letter = storable(arrivals[i].Letter, time.Now())
		size += len(arrivals[i].Body)
	}
	freeLarge(size)
	defer freeLarge(size)
	for try := 0; ; try++ {
		err := t.db.Write(ctx, "ingest dead letters", func(ctx context.Context, tx *sql.Tx) error {
			if len(arrivals) > 1 {
				if err := t.lockBatches(ctx, tx); err != nil {
					return err
				}
			}
			return t.ingest(ctx, tx, arrivals)
		})
		if !errors.Is(err, errRaced) || try == 3 {
			return err
		}
	}
}

// Acked tells that the broker will not deliver the messages again. Of more letters that are equal, the others are yet to be
// acked.
func (t *Table) Acked(ctx context.Context, arrivals []Arrival) error {
	counts := map[string]int{}
	for _, a := range arrivals {
		if !a.HasIdentity() {
			counts[a.hash()]++
		}
	}
	if len(counts) == 0 {
		return nil
	}
	return t.db.Write(ctx, "note acked dead letters", func(ctx context.Context, tx *sql.Tx) error {
		for _, hash := range slices.Sorted(maps.Keys(counts)) {
			_, err := t.exec(ctx, tx, "UPDATE dead_letters SET unsettled = NULL WHERE seq IN (SELECT seq FROM dead_letters "+
				"WHERE unsettled = ? ORDER BY seq LIMIT ?)", hash, counts[hash])
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// HasIdentity tells whether the message has something by which it is known when it arrives again. One that has not is to be
// [Table.Acked].
func (a Arrival) HasIdentity() bool { return a.Event.ID != uuid.Nil || a.MessageID != "" || a.ID != "" }

// identity is the same for a message that arrives again; "" if it has nothing by which it could be told.
func (a Arrival) identity() string {
	body, handler := sha256.Sum256(a.Body), a.Handler
	if handler == "" {
		handler = OfService(a.Service, "")
	}
	switch {
	case a.Event.ID != uuid.Nil:
		return digest("event", a.Event.ID.String(), handler, string(body[:]))
	case a.MessageID != "":
		return digest("message", a.MessageID, handler, string(body[:]))
	case a.ID != "":
		return digest("letter", a.ID)
	default:
		return ""
	}
}

// hash is of all of the message.
func (a Arrival) hash() string {
	raw, body := sha256.Sum256(a.Raw), sha256.Sum256(a.Body) // which may be too large for a copy
	return digest(string(raw[:]), string(body[:]))
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part) // a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// settleTimeout is after how long a message without an id is no longer taken for one that is not yet [Table.Acked]: if
// the worker died before it could tell, an equal message of a later day would be lost.
const settleTimeout = time.Hour

// known is a letter that is in the table, or about to be.
type known struct {
	Letter

	identity, arrival, unsettled string
	// added tells that it is not in the table yet, and changed that it is to be written again.
	added, changed bool
}

// lockBatches makes batches of new letters wait for each other: two that have the same letters in another order
// would wait for each other.
func (t *Table) lockBatches(ctx context.Context, tx *sql.Tx) error {
	if store.Dialect(t.dialect) == store.SQLite {
		return nil
	}
	_, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext('dead letters'), 'dead_letters'::regclass::oid::integer)")
	return err
}

func (t *Table) ingest(ctx context.Context, tx *sql.Tx, arrivals []Arrival) error {
	byID, byIdentity, unsettled, err := t.knownOf(ctx, tx, arrivals)
	if err != nil {
		return err
	}
	var order []*known
	for _, a := range arrivals {
		k := &known{Letter: a.Letter, identity: a.identity(), arrival: a.ID, added: true}
		k.State = Waiting
		if k.arrival == "" {
			k.arrival = a.hash()
		}
		if k.identity == "" {
			k.unsettled = a.hash()
			if a.Redelivered && unsettled[k.unsettled] > 0 {
				unsettled[k.unsettled]--
				continue
			}
			k.identity = ulid.Make().String()
		}
		there := byIdentity[k.identity]
		if of := byID[a.ReplayOf]; of != nil && of.Handler == a.Handler {
			there = of
		}
		if there != nil {
			if there.again(a, k.arrival) && !there.added && !there.changed {
				there.changed = true
				order = append(order, there)
			}
			continue
		}
		if k.ID == "" || byID[k.ID] != nil {
			k.ID = ulid.Make().String()
		}
		byIdentity[k.identity], byID[k.ID] = k, k
		order = append(order, k)
	}
	return t.store(ctx, tx, order)
}

// again makes the letter what it is when its message arrives once more, and tells whether anything is new.
func (k *known) again(a Arrival, arrival string) bool {
	isOld := a.LastFailed.Before(k.LastFailed) || a.LastFailed.Equal(k.LastFailed) && a.Reason == k.Reason
	if k.arrival == arrival || isOld && a.Replays <= k.Replays { // clocks differ: a later replay's failure is never old
		return false
	}
	id, history := k.ID, a.History
	if a.ReplayOf != k.ID { // its message does not know what befell it before
		history = k.past().With(a.History...)
	}
	k.Letter, k.arrival = a.Letter, arrival
	k.ID, k.State, k.History = id, Waiting, history
	return true
}

// knownOf reads the letters that arrivals may be: by their ids and their identities. unsettled counts those of each hash.
func (t *Table) knownOf(ctx context.Context, tx *sql.Tx, arrivals []Arrival) (
	byID, byIdentity map[string]*known, unsettled map[string]int, err error,
) {
	var ids, identities, hashes []string
	for _, a := range arrivals {
		for _, id := range []string{a.ID, a.ReplayOf} {
			if id != "" {
				ids = append(ids, id)
			}
		}
		if identity := a.identity(); identity != "" {
			identities = append(identities, identity)
		} else if a.Redelivered {
			hashes = append(hashes, a.hash())
		}
	}
	byID, byIdentity, unsettled = map[string]*known{}, map[string]*known{}, map[string]int{}
	err = t.query(ctx, tx, "SELECT "+lightColumns+", identity, arrival FROM dead_letters WHERE "+t.dialect.in("id")+" OR "+
		t.dialect.in("identity")+" ORDER BY seq"+t.dialect.forUpdate(), []any{list(t.dialect, ids), list(t.dialect, identities)},
		func(rows *sql.Rows) error {
			var r row
			k := &known{}
			err := r.scan(rows, &k.identity, &k.arrival)
			k.Letter = r.Letter
			byID[k.ID], byIdentity[k.identity] = k, k
			return err
		})
	if err != nil || len(hashes) == 0 {
		return byID, byIdentity, unsettled, err
	}
	err = t.query(ctx, tx, "SELECT unsettled, count(*) FROM dead_letters WHERE unsettled IS NOT NULL AND "+t.dialect.in("unsettled")+
		" AND added_at > ? GROUP BY unsettled", []any{list(t.dialect, hashes), t.dialect.at(time.Now().Add(-settleTimeout))},
		func(rows *sql.Rows) error {
			var hash string
			var n int
			err := rows.Scan(&hash, &n)
			unsettled[hash] = n
			return err
		})
	return byID, byIdentity, unsettled, err
}

// store writes letters that are new or have changed.
func (t *Table) store(ctx context.Context, tx *sql.Tx, letters []*known) error {
	var added [][]any
	for _, k := range letters {
		values, err := t.values(k.Letter, k.identity, k.arrival, k.unsettled)
		if err != nil {
			return err
		}
		if k.added {
			added = append(added, values)
			continue
		}
		_, err = t.exec(ctx, tx, "UPDATE dead_letters SET ("+insertColumns+") = "+tuple(len(values))+", release = '', released_at = NULL, sent_at = NULL, problem = '' WHERE id = ?",
			append(values, k.ID)...)
		if err != nil {
			return err
		}
	}
	n, err := t.insert(ctx, tx, added)
	if err == nil && n < len(added) {
		err = errRaced
	}
	return err
}

// Put implements [Sink]: without a broker, and for what a broker refuses, a message becomes a letter at once.
func (t *Table) Put(ctx context.Context, m *message.Message, f Failure) error {
	source := message.SubscribeTopicFromCtx(m.Context()) //nolint:contextcheck // the topic is in the message's own context
	l := Letter{ID: ulid.Make().String(), Failure: f, Source: source, Headers: make(map[string]any, len(m.Metadata)), Body: m.Payload}
	for key, value := range m.Metadata {
		if key != bus.ReplayHandlerKey || value != f.Handler { // a replay sets it again
			l.Headers[key] = value
		}
	}
	return t.Ingest(ctx, []Arrival{{Letter: Complete(l), MessageID: m.UUID}})
}

// Adopt adds letters of an earlier version of the table, in the states that they have. It is for the migration.
func (t *Table) Adopt(ctx context.Context, tx *sql.Tx, letters []Letter) error {
	for _, l := range letters {
		l = storable(l, time.Now())
		k := known{Letter: l, identity: importIdentity(l)}
		for {
			values, err := t.values(k.Letter, k.identity, "", "")
			if err != nil {
				return err
			}
			n, err := t.insert(ctx, tx, [][]any{values})
			if err != nil {
				return err
			}
			if n == 1 {
				break
			}
			k.ID, k.identity = ulid.Make().String(), ulid.Make().String() // better twice than not at all
		}
	}
	return nil
}
