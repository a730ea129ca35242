package deadletter

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/store"
)

const (
	// releaseAtOnce is the most letters that a replay releases in one statement.
	releaseAtOnce = 500
	// firstPoll and lastPoll bound the time between two polls for outcomes, which grows while there are none.
	firstPoll = 20 * time.Millisecond
	lastPoll  = 200 * time.Millisecond
	// rateReserve is for how long a replay may make up for what its rate would have allowed.
	rateReserve = 2 * lastPoll
	// leaderInterval is the time between two queries for a leader, while letters are released and not sent.
	leaderInterval = time.Second
	// leaderlessTime is how long the lease must be free at every query, before no worker is said to lead: a relay gives it
	// back for a moment while the bus is away, and so does a worker that is stopped.
	leaderlessTime = 8 * time.Second
)

// Replay releases the letters that f chooses, of those that wait, for the worker that leads to send, and yields each step:
// first Begun, last Done, unless an error ends it, which is yielded with the last counts. Letters of one aggregate and
// handler are released by their versions, all others oldest first. Those that another replay has taken meanwhile are
// [Kept]. When the replay ends, what is released and not sent yet waits again. [ReplayOptions.Check] is called.
func (t *Table) Replay(ctx context.Context, f Filter, o ReplayOptions) iter.Seq2[Progress, error] {
	return func(yield func(Progress, error) bool) {
		r := &run{table: t, options: o, yield: yield, released: map[int64]bool{}, poll: firstPoll}
		err := r.replay(ctx, f)
		if err != nil && !errors.Is(err, errStopped) {
			r.p.Step, r.p.Letter, r.p.Problem = "", Letter{}, nil
			yield(r.p, err)
		}
	}
}

// run is a replay under way. It belongs to one goroutine.
type run struct {
	table   *Table
	options ReplayOptions
	yield   func(Progress, error) bool

	p     Progress
	order []int64 // what is still to be released
	// released are the letters of which the outcome is to come, and whether each is known to be sent.
	released map[int64]bool
	count    int // of those that the rate allowed
	began    time.Time
	news     time.Time
	poll     time.Duration
	// freeSince is the first of the last queries, up to that at asked, at which no worker led; zero if one led.
	freeSince, asked time.Time
	// entry is to be recorded with the first letters that are released; nil once it is.
	entry *audit.Entry
	// noWorker says that no worker has led for leaderlessTime, and said that the step NoWorker was yielded.
	noWorker, said bool
}

// errStopped says that the caller wants no further steps.
var errStopped = errors.New("the replay is no longer watched")

func (r *run) replay(ctx context.Context, f Filter) error {
	var err error
	if r.options, err = r.options.Check(); err != nil {
		return err
	}
	r.p.ReplayID = r.options.Resume
	if r.order, err = r.table.choose(ctx, f, r.options.Resume); err != nil {
		return err
	}
	r.p.Chosen = len(r.order)
	subject := f.Subject().With("replay", r.options.Resume).With("to", cmp.Or(r.options.Handler, string(r.options.To)))
	r.entry = new(r.options.By.Did(audit.Replay, subject, r.p.Chosen))
	r.began, r.news = time.Now(), time.Now()
	if err := r.step(Begun, Letter{}, nil); err != nil {
		return err
	}
	if r.options.DryRun {
		return r.dryRun(ctx)
	}
	err = r.send(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) { // of a statement that was cut off
		err = context.Cause(ctx)
	}
	takeBackErr := r.table.write(context.WithoutCancel(ctx), "end a replay",
		"UPDATE dead_letters SET state = 'waiting', released_at = NULL WHERE seq IN (SELECT seq FROM dead_letters "+
			"WHERE state = 'replaying' AND sent_at IS NULL AND release = ? ORDER BY seq"+r.table.dialect.forUpdate()+")", r.options.Resume)
	if err = errors.Join(err, takeBackErr); err != nil {
		return err
	}
	return r.step(Done, Letter{}, nil)
}

// dryRun shows the letters that would be released.
func (r *run) dryRun(ctx context.Context) error {
	for chunk := range slices.Chunk(r.order, pageRows) {
		letters, err := r.table.lettersOf(ctx, chunk)
		if err != nil {
			return err
		}
		for _, seq := range chunk {
			if l, found := letters[seq]; found {
				r.p.Sent++
				if err := r.step(Sent, l.Letter, nil); err != nil {
					return err
				}
			}
		}
	}
	return r.step(Done, Letter{}, nil)
}

// send releases the letters and waits for what becomes of them.
func (r *run) send(ctx context.Context) error {
	for {
		releasing := r.due()
		if releasing > 0 {
			if err := r.release(ctx, releasing); err != nil {
				return err
			}
		}
		if err := r.outcomes(ctx); err != nil {
			return err
		}
		sent := !slices.Contains(slices.Collect(maps.Values(r.released)), false)
		if sent {
			r.freeSince, r.noWorker = time.Time{}, false
		} else if err := r.findLeader(ctx); err != nil {
			return err
		}
		switch {
		case len(r.order) == 0 && (len(r.released) == 0 || sent && r.options.Patience == 0):
			return nil
		case len(r.order) > 0 && r.due() > 0:
			continue
		case r.options.Patience > 0 && len(r.released) > 0 && time.Since(r.news) > r.options.Patience:
			if len(r.order) == 0 && sent {
				return nil // all are on their way
			}
			if r.noWorker {
				return fmt.Errorf("%w: %w", ErrNoOutcome, errNoWorker)
			}
			return ErrNoOutcome
		}
		timer := time.NewTimer(r.poll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		r.poll = min(2*r.poll, lastPoll)
	}
}

// findLeader shows, once in a replay, that no worker leads.
func (r *run) findLeader(ctx context.Context) error {
	if time.Since(r.asked) < leaderInterval {
		return nil
	}
	r.asked = time.Now()
	if !r.table.leaderless(ctx) {
		r.freeSince, r.noWorker = time.Time{}, false
		return nil
	}
	if r.freeSince.IsZero() {
		r.freeSince = r.asked
	}
	r.noWorker = r.asked.Sub(r.freeSince) >= leaderlessTime
	if !r.noWorker || r.said {
		return nil
	}
	r.said = true
	return r.step(NoWorker, Letter{}, errNoWorker)
}

var errNoWorker = errors.New("no worker leads the relay of this store, so no letter is published until one does")

// leaderless returns whether no worker holds the lease of the relay, whose holder publishes the released letters. It is
// false if that cannot be read, as a replay needs no rights on the leases.
func (t *Table) leaderless(ctx context.Context) bool {
	leaders := 0
	err := t.query(ctx, t.db.DB, "SELECT count(*) FROM leases WHERE task = ? AND holder <> '' AND expires_at > "+t.dialect.now(),
		[]any{store.RelayTask}, func(rows *sql.Rows) error { return rows.Scan(&leaders) })
	return err == nil && leaders == 0
}

// due is how many letters may be released now. They begin with as many as would end the replay if all failed again, and
// become more with each that is handled: if the fault is not mended, no more letters fail than it takes to see that.
func (r *run) due() int {
	room := r.options.Parallel
	if r.options.MaxFailures >= 0 && r.options.Patience > 0 {
		room = min(room, r.options.MaxFailures+1-r.p.FailedAgain+r.p.Handled+r.p.Unknown)
	}
	room -= len(r.released)
	if r.options.Rate > 0 {
		allowed := 1 + int(time.Since(r.began).Seconds()*r.options.Rate) - r.count
		if most := 1 + int(r.options.Rate*rateReserve.Seconds()); allowed > most { // what was not used is not made up for later
			r.count += allowed - most
			allowed = most
		}
		room = min(room, allowed)
	}
	return max(0, min(room, len(r.order), releaseAtOnce))
}

// release marks the next letters as released.
func (r *run) release(ctx context.Context, n int) error {
	chunk := r.order[:n]
	r.order = r.order[n:]
	r.count += n
	if r.options.Handler != "" {
		if err := r.table.retarget(ctx, chunk, r.options.Handler, r.options.Resume, r.entry); err != nil {
			return err
		}
		r.entry = nil
	}
	at := r.began.Add(time.Since(r.began)) // later than that of the chunk before, even if the clock is set back
	released, err := r.table.release(ctx, chunk, r.options.Resume, r.options.To, at, r.entry)
	if err != nil {
		return err
	}
	r.entry = nil
	r.news = time.Now()
	for _, seq := range released {
		r.released[seq] = false
	}
	if len(released) == len(chunk) {
		return nil
	}
	letters, err := r.table.lettersOf(ctx, chunk)
	if err != nil {
		return err
	}
	for _, seq := range chunk {
		l := letters[seq]
		if _, found := r.released[seq]; found {
			continue
		}
		if l.release == r.options.Resume || l.ReplayID == r.options.Resume { // it was sent before this replay was resumed
			r.released[seq] = false
		} else if err := r.keep(l.Letter, errGone); err != nil {
			return err
		}
	}
	return nil
}

var errGone = errors.New("another command or replay has taken it meanwhile")

func (r *run) keep(l Letter, why error) error {
	r.p.Kept++
	return r.step(Kept, l, why)
}

// outcomes polls the outcomes of the released letters.
func (r *run) outcomes(ctx context.Context) error {
	if len(r.released) == 0 {
		return nil
	}
	news, err := r.table.news(ctx, r.released)
	if err != nil || len(news) == 0 {
		return err
	}
	letters, err := r.table.lettersOf(ctx, news)
	if err != nil {
		return err
	}
	for _, seq := range news {
		l, found := letters[seq]
		if !found {
			sent := r.released[seq]
			delete(r.released, seq)
			if r.progress(); sent {
				r.p.Unknown++
			} else {
				err = r.keep(Letter{}, errGone)
			}
		} else {
			err = r.outcome(seq, l)
		}
		if err != nil {
			return err
		}
	}
	if r.options.MaxFailures >= 0 && r.p.FailedAgain > r.options.MaxFailures {
		return fmt.Errorf("%w: %d", ErrTooManyFailures, r.p.FailedAgain)
	}
	return nil
}

// outcome shows what is new of one letter.
func (r *run) outcome(seq int64, l releasedRow) error {
	mine := l.release == r.options.Resume
	failed := l.State == Waiting && l.ReplayID == r.options.Resume
	settled := l.State == Settled && mine
	if !r.released[seq] && (failed || settled || mine && l.sent) && l.problem == "" {
		r.released[seq] = true
		r.p.Sent++
		r.progress()
		if err := r.step(Sent, l.Letter, nil); err != nil {
			return err
		}
	}
	if l.State == Replaying && mine {
		return nil
	}
	sent := r.released[seq]
	delete(r.released, seq)
	r.progress()
	switch {
	case failed:
		r.p.FailedAgain++
		return r.step(FailedAgain, l.Letter, nil)
	case settled && l.Decided.Reason != "":
		r.p.Unknown++
		return nil
	case settled:
		r.p.Handled++
		return r.step(Handled, l.Letter, nil)
	case sent: // it had no outcome for long, or it was decided about meanwhile
		r.p.Unknown++
		return nil
	case l.problem != "":
		return r.keep(l.Letter, errors.New(l.problem))
	default:
		return r.keep(l.Letter, errGone)
	}
}

func (r *run) progress() { r.news, r.poll = time.Now(), firstPoll }

func (r *run) step(s Step, l Letter, problem error) error {
	r.p.Step, r.p.Letter, r.p.Problem = s, l, problem
	if !r.yield(r.p, nil) {
		return errStopped
	}
	return nil
}

// choose returns the letters that a replay is to send, in their order.
func (t *Table) choose(ctx context.Context, f Filter, replayID string) ([]int64, error) {
	f.States = nil
	if f.Limit > 0 || f.Reason != nil || len(f.IDs) > 0 {
		return t.chooseSome(ctx, f, replayID)
	}
	conditions, args := t.conditions(f)
	var s sequence
	err := t.query(ctx, t.db.DB, "SELECT seq, handler, aggregate_id, aggregate_version FROM dead_letters WHERE "+conditions+" AND replay_id <> ?",
		append(args, replayID), func(rows *sql.Rows) error {
			var seq int64
			var handler string
			var aggregate uuid.UUID
			var version int
			err := rows.Scan(&seq, &handler, identifier{&aggregate}, &version)
			s.add(seq, handler, aggregate, version)
			return err
		})
	return s.order(), t.db.Fault(ctx, "choose dead letters", err)
}

// chooseSome is choose for filters that SQL does not know.
func (t *Table) chooseSome(ctx context.Context, f Filter, replayID string) ([]int64, error) {
	var s sequence
	limit := f.Limit
	f.Limit = 0
	for r, err := range t.rows(ctx, f) {
		if err != nil {
			return nil, err
		}
		if r.ReplayID == replayID {
			continue
		}
		s.add(r.seq, r.Handler, r.Event.AggregateID, r.Event.AggregateVersion)
		if len(s.positions) == limit {
			break
		}
	}
	return s.order(), nil
}

// sequence puts letters in the order of a replay: each line, which is those of an aggregate and a handler, by versions,
// where its oldest is among the others. It is in Go, as Postgres takes several times as long.
type sequence struct {
	lines     map[line]int
	first     []int64 // the oldest letter of each line
	positions []position
}

type line struct {
	aggregate uuid.UUID
	handler   string
}

type position struct {
	line, version int
	seq           int64
}

func (s *sequence) add(seq int64, handler string, aggregate uuid.UUID, version int) {
	at, known := s.lines[line{aggregate, handler}]
	if !known {
		at = len(s.first)
		s.first = append(s.first, seq)
		if aggregate != uuid.Nil { // others are lines of their own
			if s.lines == nil {
				s.lines = make(map[line]int)
			}
			s.lines[line{aggregate, handler}] = at
		}
	}
	s.first[at] = min(s.first[at], seq)
	s.positions = append(s.positions, position{at, version, seq})
}

func (s *sequence) order() []int64 {
	slices.SortFunc(s.positions, func(a, b position) int {
		return cmp.Or(cmp.Compare(s.first[a.line], s.first[b.line]), cmp.Compare(a.version, b.version), cmp.Compare(a.seq, b.seq))
	})
	order := make([]int64, len(s.positions))
	for i, p := range s.positions {
		order[i] = p.seq
	}
	return order
}

// news returns those of the released letters that are gone, or of which something is new: each is with whether it was
// known to be sent.
func (t *Table) news(ctx context.Context, released map[int64]bool) ([]int64, error) {
	seqs := slices.Sorted(maps.Keys(released))
	same := make(map[int64]bool, len(seqs))
	err := t.query(ctx, t.db.DB, "SELECT seq, state, sent_at FROM dead_letters WHERE "+t.dialect.in("seq"),
		[]any{list(t.dialect, seqs)}, func(rows *sql.Rows) error {
			var seq int64
			var state State
			var sent moment
			err := rows.Scan(&seq, &state, &sent)
			same[seq] = state == Replaying && released[seq] == !sent.IsZero()
			return err
		})
	return slices.DeleteFunc(seqs, func(seq int64) bool { return same[seq] }), t.db.Fault(ctx, "follow a replay", err)
}

// release marks those of the letters that wait, and have not failed in this replay, as released, in this order, and returns
// them.
func (t *Table) release(
	ctx context.Context, seqs []int64, replayID string, to Destination, at time.Time, e *audit.Entry,
) (released []int64, err error) {
	all := list(t.dialect, seqs)
	err = t.db.Write(ctx, "release dead letters", func(ctx context.Context, tx *sql.Tx) error {
		released = nil
		if e != nil {
			if err := t.record(ctx, tx, *e); err != nil {
				return err
			}
		}
		return t.query(ctx, tx, "UPDATE dead_letters SET state = 'replaying', release = ?, release_to = ?, released_at = ?, "+
			"sent_at = NULL, problem = '', turn = "+t.dialect.position("seq")+
			" WHERE seq IN (SELECT seq FROM dead_letters WHERE state = 'waiting' AND replay_id <> ? AND "+t.dialect.in("seq")+
			t.dialect.skipLocked()+") RETURNING seq", []any{replayID, string(to), t.dialect.at(at), all, replayID, all},
			func(rows *sql.Rows) error {
				var seq int64
				err := rows.Scan(&seq)
				released = append(released, seq)
				return err
			})
	})
	return released, err
}

// retarget makes letters those of another handler, whose name theirs has now.
func (t *Table) retarget(ctx context.Context, seqs []int64, handler, replayID string, e *audit.Entry) error {
	return t.db.Write(ctx, "name another handler", func(ctx context.Context, tx *sql.Tx) error {
		if e != nil {
			if err := t.record(ctx, tx, *e); err != nil {
				return err
			}
		}
		letters, err := t.locked(ctx, tx, seqs, "state = 'waiting'")
		if err != nil {
			return err
		}
		for _, l := range letters {
			if l.Handler == handler {
				continue
			}
			history := l.History.With(Incident{
				Kind: Edited, At: time.Now().UTC().Truncate(time.Second), Reason: fmt.Sprintf("from handler %q to %q", l.Handler, handler),
				ReplayID: replayID,
			})
			group, _ := Fingerprint(nameOf(handler), l.Type, l.Reason)
			_, err := t.exec(ctx, tx, "UPDATE dead_letters SET handler = ?, group_id = ?, history = ? WHERE seq = ?",
				nameOf(handler), group, history.Header(), l.seq)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// releasedRow is a letter, and where its release stands.
type releasedRow struct {
	row

	release, problem string
	to               Destination
	sent             bool
}

// lettersOf reads letters without their messages.
func (t *Table) lettersOf(ctx context.Context, seqs []int64) (map[int64]releasedRow, error) {
	found := make(map[int64]releasedRow, len(seqs))
	err := t.query(ctx, t.db.DB, "SELECT "+lightColumns+", release, release_to, problem, sent_at FROM dead_letters WHERE "+
		t.dialect.in("seq"), []any{list(t.dialect, seqs)},
		func(rows *sql.Rows) error {
			var r releasedRow
			var sent moment
			err := r.scan(rows, &r.release, &r.to, &r.problem, &sent)
			r.sent = !sent.IsZero()
			found[r.seq] = r
			return err
		})
	return found, t.db.Fault(ctx, "follow a replay", err)
}
