package deadletter

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// pageRows and [store.PageBytes] bound what is read or changed at once.
const pageRows = 500

var (
	// ErrNotFound says that there is no such letter.
	ErrNotFound = errors.New("there is no such dead letter")
	// ErrAmbiguous says that an event's id names several letters.
	ErrAmbiguous = errors.New("dead letters are of the event")
)

// Table is the table of dead letters in the store. All methods are safe for concurrent use, by several processes too.
// Errors wrap those of package store.
type Table struct {
	db      store.SQL
	dialect dialect

	mu       sync.Mutex
	settling []*settling   // outcomes that are to be noted
	turn     chan struct{} // held by the caller that notes them
}

// NewTable returns the table of dead letters of a store.
func NewTable(db store.SQL) *Table {
	return &Table{db: db, dialect: dialect(db.Dialect), turn: make(chan struct{}, 1)}
}

// lightColumns are those of a letter without its message.
const lightColumns = `seq, id, state, event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id,
	correlation_id, handler, group_id, reason, attempts, first_failed_at, last_failed_at, replays, replay_id, history,
	source, bytes, decided_by, decided_reason, decided_at`

// row is a letter in the table.
type row struct {
	Letter

	seq int64
}

// scan reads the light columns, and into more what follows them.
func (r *row) scan(rows *sql.Rows, more ...any) error {
	var first, last, decided moment
	var history sql.NullString
	e := &r.Event
	err := rows.Scan(append([]any{
		&r.seq, &r.ID, &r.State,
		identifier{&e.ID},
		&r.Type, &e.AggregateType,
		identifier{&e.AggregateID},
		&e.AggregateVersion,
		identifier{&e.TenantID},
		identifier{&e.CorrelationID},
		&r.Handler, &r.Group, &r.Reason, &r.Attempts, &first, &last,
		&r.Replays, &r.ReplayID, &history, &r.Source, &r.Bytes, &r.Decided.By, &r.Decided.Reason, &decided,
	}, more...)...)
	e.Type = r.Type
	r.FirstFailed, r.LastFailed, r.Decided.At = first.Time, last.Time, decided.Time
	r.History = parseHistory(history.String)
	return err
}

// conditions are the letters that a filter chooses, but for its reason and its limit.
func (t *Table) conditions(f Filter) (string, []any) {
	states := f.States
	if len(states) == 0 {
		states = []State{Waiting}
	}
	var quoted []string
	for _, s := range states { // as literals, by which the databases know the indexes that have only some states
		quoted = append(quoted, "'"+strings.ReplaceAll(string(s), "'", "''")+"'")
	}
	where := []string{"state IN (" + strings.Join(quoted, ", ") + ")"}
	if len(states) == 1 {
		where = []string{"state = " + quoted[0]}
	}
	var args []any
	add := func(set bool, condition string, values ...any) {
		if set {
			where, args = append(where, condition), append(args, values...)
		}
	}
	if len(f.IDs) > 0 {
		var ids, eventIDs []string
		for _, id := range f.IDs {
			ids = append(ids, text(id))
			if parsed, err := uuid.Parse(id); err == nil {
				eventIDs = append(eventIDs, parsed.String())
			}
		}
		add(true, "("+t.dialect.in("id")+" OR "+t.dialect.inIDs("event_id")+")", list(t.dialect, ids), list(t.dialect, eventIDs))
	}
	add(f.Group != "", "group_id = ?", text(f.Group))
	add(f.Type != "", "event_type = ?", nameOf(f.Type))
	add(f.Handler != "", "handler = ?", nameOf(f.Handler))
	add(f.Tenant != uuid.Nil, "tenant_id = ?", f.Tenant.String())
	add(f.Aggregate != uuid.Nil, "aggregate_id = ?", f.Aggregate.String())
	add(f.Correlation != uuid.Nil, "correlation_id = ?", f.Correlation.String())
	add(f.Contains != "", t.dialect.contains("reason"), text(f.Contains))
	add(!f.Since.IsZero(), "last_failed_at >= ?", t.dialect.at(f.Since))
	add(!f.Until.IsZero(), "last_failed_at < ?", t.dialect.at(f.Until))
	return strings.Join(where, " AND "), args
}

// orderColumn is the time by which the letters of a filter are listed: that of the last failure, or of the decision if
// all of them are decided.
func (f Filter) orderColumn() string {
	open := len(f.States) == 0 || slices.ContainsFunc(f.States, func(s State) bool { return s == Waiting || s == Replaying })
	if open {
		return "last_failed_at"
	}
	return "decided_at"
}

// List yields the letters that f chooses without their messages, oldest failure first, or if none of them waits, by when
// that was decided. It reads some at a time, so letters that change while it runs may be missing, but no letter is
// yielded twice.
func (t *Table) List(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		for r, err := range t.rows(ctx, f) {
			if !yield(r.Letter, err) {
				return
			}
		}
	}
}

func (t *Table) rows(ctx context.Context, f Filter) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		found := 0
		for page, err := range t.pages(ctx, f) {
			if err != nil {
				yield(row{}, err)
				return
			}
			for _, r := range page {
				found++
				if !yield(r, nil) || found == f.Limit {
					return
				}
			}
		}
	}
}

// pages yields the rows that f chooses, some at a time.
func (t *Table) pages(ctx context.Context, f Filter) iter.Seq2[[]row, error] {
	return func(yield func([]row, error) bool) {
		order := f.orderColumn()
		size := pageRows
		if f.Limit > 0 && f.Reason == nil {
			size = min(size, f.Limit)
		}
		var after moment
		var afterSeq int64
		for first, left := true, f.Limit; ; first = false {
			statement, args := t.pageStatement(f, first, after.Time, afterSeq)
			var page []row
			read := 0
			err := t.query(ctx, t.db.DB, statement, append(args, size), func(rows *sql.Rows) error {
				var r row
				if err := r.scan(rows); err != nil {
					return err
				}
				read++
				after.Time, afterSeq = r.LastFailed, r.seq
				if order == "decided_at" {
					after.Time = r.Decided.At
				}
				if f.Reason == nil || f.Reason.MatchString(r.Reason) {
					page = append(page, r)
				}
				return nil
			})
			if err != nil {
				yield(nil, t.db.Fault(ctx, "list dead letters", err))
				return
			}
			if f.Limit > 0 {
				page = page[:min(len(page), left)]
				left -= len(page)
			}
			if len(page) > 0 && !yield(page, nil) || read < size || f.Limit > 0 && left == 0 {
				return
			}
		}
	}
}

// Newest returns up to limit letters that f chooses, without their messages, the newest failure first. It begins behind the
// letter with the id after, or at the newest if after is "". f.Reason and f.Limit are not heeded. The error wraps
// [ErrNotFound] if there is no letter with the id.
func (t *Table) Newest(ctx context.Context, f Filter, after string, limit int) ([]Letter, error) {
	conditions, args := t.conditions(f)
	if after != "" {
		last, err := t.find(ctx, after, AllStates())
		if err != nil {
			return nil, err
		}
		conditions += " AND (last_failed_at, seq) < (?, ?)"
		args = append(args, t.dialect.at(last.LastFailed), last.seq)
	}
	var letters []Letter
	err := t.query(ctx, t.db.DB, "SELECT "+lightColumns+" FROM dead_letters WHERE "+conditions+
		" ORDER BY last_failed_at DESC, seq DESC LIMIT ?", append(args, limit), func(rows *sql.Rows) error {
		var r row
		err := r.scan(rows)
		letters = append(letters, r.Letter)
		return err
	})
	return letters, t.db.Fault(ctx, "list dead letters", err)
}

// pageStatement selects the first letters that a filter chooses, or those behind a position. What it lacks is the limit.
func (t *Table) pageStatement(f Filter, first bool, after time.Time, afterSeq int64) (string, []any) {
	conditions, args := t.conditions(f)
	order := f.orderColumn()
	if order == "decided_at" { // the databases know by this that the index has all
		conditions += " AND decided_at IS NOT NULL"
	}
	if !first {
		conditions += " AND (" + order + ", seq) > (?, ?)"
		args = append(args, t.dialect.at(after), afterSeq)
	}
	return "SELECT " + lightColumns + " FROM dead_letters WHERE " + conditions + " ORDER BY " + order + ", seq LIMIT ?", args
}

// Read is as [Table.List], and yields the letters with their messages. It holds no more than some megabytes of them, or
// one message that is larger.
func (t *Table) Read(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		for page, err := range t.pages(ctx, f) {
			if err != nil {
				yield(Letter{}, err)
				return
			}
			for len(page) > 0 {
				n := withinBytes(page)
				whole, err := t.whole(ctx, page[:n])
				if err != nil {
					yield(Letter{}, t.db.Fault(ctx, "read dead letters", err))
					return
				}
				for _, l := range whole {
					if !yield(l, nil) {
						return
					}
				}
				page = page[n:]
			}
		}
	}
}

// withinBytes is how many of the letters, at least one, may be read at once.
func withinBytes(page []row) int {
	size := 0
	for i, r := range page {
		if size += r.Bytes; size > store.PageBytes && i > 0 {
			return i
		}
	}
	return len(page)
}

func bytesOf(page []row) int {
	n := 0
	for _, r := range page {
		n += r.Bytes
	}
	return n
}

// freeLarge collects garbage before or after work with so many bytes of bodies, if they are large. A body is copied several
// times on its way through the drivers, and Go lets as much garbage as memory in use accumulate: a few bodies, one after the
// other, would take several times the memory of one.
func freeLarge(bytes int) {
	if bytes > store.PageBytes/2 {
		runtime.GC()
	}
}

// whole reads the messages of letters. Those that are gone meanwhile are left out.
func (t *Table) whole(ctx context.Context, page []row) ([]Letter, error) {
	place := make(map[int64]int, len(page))
	seqs := make([]int64, len(page))
	for i, r := range page {
		seqs[i], place[r.seq] = r.seq, i
	}
	freeLarge(bytesOf(page))
	found := make([]*Letter, len(page))
	err := t.query(ctx, t.db.DB,
		"SELECT "+lightColumns+", headers, raw, body FROM dead_letters WHERE "+t.dialect.in("seq"), []any{list(t.dialect, seqs)},
		func(rows *sql.Rows) error {
			var r row
			var headers, raw sql.NullString
			if err := r.scan(rows, &headers, &raw, &r.Body); err != nil {
				return err
			}
			if r.Body == nil {
				r.Body = []byte{}
			}
			eventType := r.Event.Type
			r.Event = events.ParsePartial(r.Body)
			if r.Event.Type == "" {
				r.Event.Type = eventType
			}
			if raw.Valid {
				r.Raw = json.RawMessage(raw.String)
				r.Headers = headersOf(r.Raw)
			} else if headers.Valid {
				if err := decode(headers.String, &r.Headers); err != nil {
					return fmt.Errorf("decode the headers of letter %s: %w", r.ID, err)
				}
			}
			found[place[r.seq]] = &r.Letter
			return nil
		})
	letters := make([]Letter, 0, len(found))
	for _, l := range found {
		if l != nil {
			letters = append(letters, *l)
		}
	}
	return letters, err
}

// headersOf reads the headers of a message that came from a broker, which are a list of keys and values in turn. A value
// that is neither a text nor a boolean is an object that names its type. What is no such list has no headers.
func headersOf(raw json.RawMessage) map[string]any {
	var message struct {
		Headers []any `json:"headers"`
	}
	if decode(string(raw), &message) != nil {
		return nil
	}
	headers := make(map[string]any, len(message.Headers)/2)
	for pair := range slices.Chunk(message.Headers, 2) {
		key, isText := pair[0].(string)
		if isText && len(pair) == 2 && !slices.Contains(failureKeys(), key) {
			headers[key] = pair[1]
		}
	}
	return headers
}

// decode reads JSON, and keeps every digit of a number.
func decode(text string, into any) error {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	return decoder.Decode(into)
}

// failureKeys are the headers that tell what a letter's other fields do.
func failureKeys() []string {
	return append(ReplayKeys(),
		ReasonKey, HandlerKey, TopicKey, AttemptsKey, FirstFailedKey, LastFailedKey, IDKey, SourceKey)
}

// Find returns one letter with its message, whatever its state. It is named by its own id, or by that of its event if only
// one letter is of that. The error wraps [ErrNotFound].
func (t *Table) Find(ctx context.Context, id string) (Letter, error) {
	r, err := t.find(ctx, id, AllStates())
	if err != nil {
		return Letter{}, err
	}
	whole, err := t.whole(ctx, []row{r})
	if err != nil {
		return Letter{}, t.db.Fault(ctx, "read a dead letter", err)
	}
	if len(whole) == 0 {
		return Letter{}, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	return whole[0], nil
}

// AllStates are all states of letters.
func AllStates() []State {
	return []State{Waiting, Replaying, Archived, Discarded, Superseded, Settled}
}

func (t *Table) find(ctx context.Context, id string, states []State) (row, error) {
	var found []row
	for r, err := range t.rows(ctx, Filter{IDs: []string{id}, States: states}) {
		if err != nil {
			return row{}, err
		}
		if r.ID == id {
			return r, nil
		}
		found = append(found, r)
	}
	waiting := slices.DeleteFunc(slices.Clone(found), func(r row) bool { return r.State != Waiting })
	switch {
	case len(found) == 0:
		return row{}, fmt.Errorf("%w: %q", ErrNotFound, id)
	case len(found) == 1:
		return found[0], nil
	case len(waiting) == 1:
		return waiting[0], nil
	default:
		return row{}, fmt.Errorf("%d %w %s: name one by its own id, as %s", len(found), ErrAmbiguous, id, found[0].ID)
	}
}

// Count counts the letters that wait, up to [store.MaxCount].
func (t *Table) Count(ctx context.Context) (int, error) { return t.countUpTo(ctx, store.MaxCount) }

func (t *Table) countUpTo(ctx context.Context, most int) (n int, err error) {
	err = t.query(ctx, t.db.DB, "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE state = 'waiting' LIMIT ?) AS waiting",
		[]any{most}, func(rows *sql.Rows) error { return rows.Scan(&n) })
	return n, t.db.Fault(ctx, "count the dead letters", err)
}

// Failed tells which of the events have letters that wait.
func (t *Table) Failed(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID]bool, error) {
	failed := make(map[uuid.UUID]bool)
	ids := make([]string, len(eventIDs))
	for i, id := range eventIDs {
		ids[i] = id.String()
	}
	err := t.query(ctx, t.db.DB, "SELECT DISTINCT event_id FROM dead_letters WHERE state = 'waiting' AND "+t.dialect.inIDs("event_id"),
		[]any{list(t.dialect, ids)}, func(rows *sql.Rows) error {
			var id uuid.UUID
			err := rows.Scan(identifier{&id})
			failed[id] = true
			return err
		})
	return failed, t.db.Fault(ctx, "look up dead letters", err)
}

func groupsStatement(conditions string) string {
	return `SELECT group_id, tenant_id, count(*), min(first_failed_at), max(last_failed_at),
		sum(CASE WHEN replays > 0 THEN 1 ELSE 0 END) FROM dead_letters WHERE ` + conditions + ` GROUP BY group_id, tenant_id`
}

// Groups returns the groups of the letters that f chooses, the one that failed last first. f.Limit is not heeded.
func (t *Table) Groups(ctx context.Context, f Filter) ([]Group, error) {
	f.Limit = 0
	if f.Reason != nil { // which only Go understands
		return groupsOf(t.List(ctx, f))
	}
	conditions, args := t.conditions(f)
	found := map[string]*tally{}
	err := t.query(ctx, t.db.DB, groupsStatement(conditions), args,
		func(rows *sql.Rows) error {
			var g Group
			var tenant uuid.UUID
			var first, last moment
			if err := rows.Scan(&g.ID, identifier{&tenant}, &g.Count, &first, &last, &g.Replayed); err != nil {
				return err
			}
			g.FirstFailed, g.LastFailed = first.Time, last.Time
			if found[g.ID] == nil {
				found[g.ID] = &tally{Group: Group{ID: g.ID, FirstFailed: g.FirstFailed}, tenants: map[uuid.UUID]struct{}{}}
			}
			found[g.ID].merge(g, tenant)
			return nil
		})
	if err == nil {
		err = t.newest(ctx, conditions, args, found)
	}
	if err != nil {
		return nil, t.db.Fault(ctx, "group the dead letters", err)
	}
	return inOrder(found), nil
}

// newest fills in what groups have of the letter that failed last, of those that meet the conditions.
func (t *Table) newest(ctx context.Context, conditions string, args []any, groups map[string]*tally) error {
	ids := slices.Sorted(maps.Keys(groups))
	statement := "SELECT group_id, handler, event_type, reason FROM dead_letters WHERE seq IN (SELECT (SELECT seq FROM dead_letters WHERE " +
		conditions + " AND group_id = g.value ORDER BY last_failed_at DESC, seq DESC LIMIT 1) FROM " + t.dialect.rows("g") + ")"
	return t.query(ctx, t.db.DB, statement, append(slices.Clone(args), list(t.dialect, ids)), func(rows *sql.Rows) error {
		var g Group
		if err := rows.Scan(&g.ID, &g.Handler, &g.Type, &g.Newest); err != nil {
			return err
		}
		newest := groups[g.ID]
		newest.Handler, newest.Type, newest.Newest = g.Handler, g.Type, g.Newest
		_, newest.Pattern = Fingerprint(g.Handler, g.Type, g.Newest)
		return nil
	})
}

// change gives the letters that f chooses, of those in the states from, another state, and returns how many.
func (t *Table) change(ctx context.Context, f Filter, from []State, to State, by audit.Actor) (n int, err error) {
	f.States = from
	doing := "mark dead letters as " + string(to)
	now := t.dialect.at(time.Now())
	reason := by.Reason
	if to == Waiting {
		reason = cmp.Or(reason, "restored")
	}
	states, _ := t.conditions(Filter{States: from})
	for page, err := range t.pages(ctx, f) {
		if err != nil {
			return n, err
		}
		seqs := seqsOf(page)
		changed := 0
		err := t.db.Write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
			var err error
			if to == Waiting {
				err = t.keepDecisions(ctx, tx, seqs, states)
			} else {
				err = t.lock(ctx, tx, seqs, states)
			}
			if err != nil {
				return err
			}
			changed, err = t.exec(ctx, tx, "UPDATE dead_letters SET state = ?, decided_by = ?, decided_reason = ?, decided_at = ? WHERE "+
				states+" AND "+t.dialect.in("seq"), string(to), text(by.By), text(reason), now, list(t.dialect, seqs))
			if err == nil && to == Discarded {
				err = t.unpark(ctx, tx, seqs, Discarded)
			}
			if err == nil && changed > 0 {
				err = t.record(ctx, tx, by.Did(actionOf(to), f.Subject(), changed))
			}
			return err
		})
		if err != nil {
			return n, err
		}
		n += changed
	}
	return n, nil
}

// unpark releases the events that are parked behind those of the letters that are in a state.
func (t *Table) unpark(ctx context.Context, tx *sql.Tx, seqs []int64, state State) error {
	_, err := t.exec(ctx, tx, "DELETE FROM parked WHERE (event_id, handler) IN (SELECT event_id, handler FROM dead_letters WHERE state = ? AND "+
		t.dialect.in("seq")+")", string(state), list(t.dialect, seqs))
	return err
}

// lock locks those of the rows that meet a condition, in the order in which every transaction does, so that no two wait
// for each other.
func (t *Table) lock(ctx context.Context, tx *sql.Tx, seqs []int64, condition string) error {
	if t.dialect.forUpdate() == "" {
		return nil
	}
	_, err := t.exec(ctx, tx, "SELECT FROM dead_letters WHERE "+condition+" AND "+t.dialect.in("seq")+" ORDER BY seq"+t.dialect.forUpdate(), list(t.dialect, seqs))
	return err
}

// locked is as [Table.lock], and returns the rows.
func (t *Table) locked(ctx context.Context, tx *sql.Tx, seqs []int64, condition string) ([]row, error) {
	var found []row
	err := t.query(ctx, tx, "SELECT "+lightColumns+" FROM dead_letters WHERE "+condition+" AND "+t.dialect.in("seq")+" ORDER BY seq"+t.dialect.forUpdate(),
		[]any{list(t.dialect, seqs)}, func(rows *sql.Rows) error {
			var r row
			err := r.scan(rows)
			found = append(found, r)
			return err
		})
	return found, err
}

// keepDecisions locks those of the rows that meet a condition, and adds to their histories who had decided on them, and why.
func (t *Table) keepDecisions(ctx context.Context, tx *sql.Tx, seqs []int64, condition string) error {
	letters, err := t.locked(ctx, tx, seqs, condition)
	for _, l := range letters {
		decision := Incident{Kind: IncidentKind(l.State), At: l.Decided.At, By: l.Decided.By, Reason: l.Decided.Reason}
		if err == nil {
			_, err = t.exec(ctx, tx, "UPDATE dead_letters SET history = ? WHERE seq = ?", l.History.With(decision).Header(), l.seq)
		}
	}
	return err
}

func seqsOf(page []row) []int64 {
	seqs := make([]int64, len(page))
	for i, r := range page {
		seqs[i] = r.seq
	}
	return seqs
}

// PutAside puts the letters aside that wait and that f chooses, as [Archived] or [Discarded], and returns how many.
func (t *Table) PutAside(ctx context.Context, f Filter, as State, by audit.Actor) (int, error) {
	return t.change(ctx, f, []State{Waiting}, as, by)
}

// Restore lets the letters that f chooses, of those in f.States, wait again, as they were, and returns how many. f.States
// are [Archived] if there are none.
func (t *Table) Restore(ctx context.Context, f Filter, by audit.Actor) (int, error) {
	from := f.States
	if len(from) == 0 {
		from = []State{Archived}
	}
	return t.change(ctx, f, from, Waiting, by)
}

// orphanAge is after how long the note of a parked event is taken for one whose letter does not exist.
const orphanAge = 24 * time.Hour

// PurgeWaiting destroys all letters that wait and returns how many. Nothing is parked behind them any longer, nor behind
// older letters that do not exist.
func (t *Table) PurgeWaiting(ctx context.Context, by audit.Actor) (n int, err error) {
	for page, err := range t.pages(ctx, Filter{}) {
		if err != nil {
			return n, err
		}
		deleted := 0
		err := t.db.Write(ctx, "purge dead letters", func(ctx context.Context, tx *sql.Tx) error {
			seqs := seqsOf(page)
			err := t.lock(ctx, tx, seqs, "state = 'waiting'")
			if err == nil {
				err = t.unpark(ctx, tx, seqs, Waiting)
			}
			if err != nil {
				return err
			}
			deleted, err = t.exec(ctx, tx, "DELETE FROM dead_letters WHERE state = 'waiting' AND "+t.dialect.in("seq"), list(t.dialect, seqs))
			if err == nil && deleted > 0 {
				err = t.record(ctx, tx, by.Did(audit.Purge, Filter{}.Subject(), deleted))
			}
			return err
		})
		if err != nil {
			return n, err
		}
		n += deleted
	}
	// Notes of which the letter was lost or purged elsewhere would hold back their aggregate for ever. Those of letters that
	// are still in the broker's queue are younger.
	err = t.write(ctx, "purge dead letters", `DELETE FROM parked WHERE parked_at < ? AND NOT EXISTS (SELECT 1 FROM dead_letters AS l
		WHERE l.event_id = parked.event_id AND l.handler = parked.handler AND l.state IN ('waiting', 'replaying', 'archived'))`,
		t.dialect.at(time.Now().Add(-orphanAge)))
	return n, err
}

const selectDecided = `SELECT seq FROM dead_letters WHERE decided_at < ? AND state IN ('archived', 'discarded', 'edited', 'handled')
	ORDER BY decided_at, seq LIMIT ?`

// PurgeDecided destroys up to limit letters that were archived, discarded, edited or handled before a time, and returns
// how many. Nothing is parked behind the archived ones any longer. What nobody decides, as the retention of a worker, is not
// recorded: by is nil.
func (t *Table) PurgeDecided(ctx context.Context, before time.Time, limit int, by *audit.Actor) (n int, err error) {
	err = t.db.Write(ctx, "purge dead letters", func(ctx context.Context, tx *sql.Tx) error {
		var seqs []int64
		err := t.query(ctx, tx, selectDecided+t.dialect.skipLocked(), []any{t.dialect.at(before), limit},
			func(rows *sql.Rows) error {
				var seq int64
				err := rows.Scan(&seq)
				seqs = append(seqs, seq)
				return err
			})
		if err != nil || len(seqs) == 0 {
			return err
		}
		if err := t.unpark(ctx, tx, seqs, Archived); err != nil {
			return err
		}
		n, err = t.exec(ctx, tx, "DELETE FROM dead_letters WHERE "+t.dialect.in("seq"), list(t.dialect, seqs))
		if err == nil && by != nil {
			err = t.record(ctx, tx, by.Did(audit.Purge, audit.Subject{"decided_before": before.UTC().Format(time.RFC3339)}, n))
		}
		return err
	})
	return n, err
}

// insertColumns are those that a new row has, in the order of [Table.values].
const insertColumns = `id, identity, arrival, unsettled, state, event_id, event_type, aggregate_type, aggregate_id,
	aggregate_version, tenant_id, correlation_id, handler, group_id, reason, attempts, first_failed_at, last_failed_at,
	replays, replay_id, history, source, bytes, decided_by, decided_reason, decided_at, headers, raw, body`

// values are those of [insertColumns].
func (t *Table) values(l Letter, identity, arrival, unsettled string) ([]any, error) {
	var headers, raw, history, waits any
	if l.Raw != nil {
		raw = text(string(l.Raw)) // an imported one may not be UTF-8
	} else if len(l.Headers) > 0 {
		encoded, err := json.Marshal(l.Headers)
		if err != nil {
			return nil, fmt.Errorf("encode the headers of dead letter %s: %w", l.ID, err)
		}
		headers = string(encoded)
	}
	if written := l.History.Header(); written != "" {
		history = written
	}
	if unsettled != "" {
		waits = unsettled
	}
	body := l.Body
	if body == nil {
		body = []byte{}
	}
	e := l.Event
	return []any{
		text(l.ID), identity, arrival, waits, string(l.State),
		identifier{&e.ID},
		text(l.Type), nameOf(e.AggregateType),
		identifier{&e.AggregateID},
		int32Of(e.AggregateVersion),
		identifier{&e.TenantID},
		identifier{&e.CorrelationID},
		text(l.Handler), l.Group, text(l.Reason), l.Attempts, t.dialect.at(l.FirstFailed), t.dialect.at(l.LastFailed),
		l.Replays, text(l.ReplayID), history, text(l.Source), len(body), text(l.Decided.By), text(l.Decided.Reason), t.dialect.at(l.Decided.At),
		headers, raw, body,
	}, nil
}

// insert adds rows, whose values are those of [insertColumns], and returns how many: one whose id or identity is there
// already is not added.
func (t *Table) insert(ctx context.Context, tx *sql.Tx, rows [][]any) (n int, err error) {
	for _, size := range []int{100, 10, 1} { // so that there are few different statements
		for ; len(rows) >= size; rows = rows[size:] {
			one := tuple(len(rows[0]))
			statement := "INSERT INTO dead_letters (" + insertColumns + ") VALUES " + strings.Repeat(one+", ", size-1) + one +
				" ON CONFLICT DO NOTHING"
			added, err := affected(tx.ExecContext(ctx, t.dialect.bind(statement), slices.Concat(rows[:size]...)...)) // any plan will do
			if err != nil {
				return n, err
			}
			n += added
		}
	}
	return n, nil
}

// tuple is so many placeholders in parentheses.
func tuple(n int) string { return "(" + strings.Repeat("?, ", n-1) + "?)" }
