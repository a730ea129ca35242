package deadletter

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// settling is the outcome of a replayed message, which is to be noted. err is valid once noted is true.
type settling struct {
	letterID, replayID string
	handlers           []string
	all                bool

	noted bool
	err   error
}

// Settled notes what a replayed message has come to, once the inbox has it: by which handlers it was handled, and whether
// these are all that it was for. It is called for messages that carry [ReplayOfKey] before they are acked. Concurrent calls
// share a transaction: the calls that arrive while one runs are noted by the next.
//
// A letter whose handler was not among all that its message was for has failed again, as no such handler is registered.
func (t *Table) Settled(ctx context.Context, letterID, replayID string, handlers []string, all bool) error {
	s := &settling{letterID: text(letterID), replayID: text(replayID), handlers: handlers, all: all}
	t.mu.Lock()
	t.settling = append(t.settling, s)
	t.mu.Unlock()
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done(): // another call may note it all the same
		return context.Cause(ctx)
	}
	defer func() { <-t.turn }()
	if s.noted {
		return s.err
	}
	t.mu.Lock()
	batch := t.settling
	t.settling = nil
	t.mu.Unlock()
	err := errNotSettled // if settle panics
	defer func() {
		for _, other := range batch {
			other.noted, other.err = true, err
		}
	}()
	err = t.settle(ctx, batch)
	return err
}

var errNotSettled = errors.New("note handled dead letters: not finished")

// settledStatement has the time and a list of letter, replay and handler as its arguments.
func (t *Table) settledStatement() string {
	lock := t.dialect.forUpdate()
	if lock != "" {
		lock += " OF l"
	}
	return "UPDATE dead_letters SET state = 'handled', decided_by = 'replay ' || mine.replay, decided_reason = '', decided_at = ?, " +
		"release = mine.replay FROM (SELECT l.seq, s.value ->> 1 AS replay FROM " + t.dialect.tuples("s") + " JOIN dead_letters AS l " +
		"ON l.id = s.value ->> 0 AND l.handler = s.value ->> 2 WHERE l.state IN ('waiting', 'replaying') ORDER BY l.seq" + lock +
		") AS mine WHERE dead_letters.seq = mine.seq RETURNING id"
}

func (t *Table) settle(ctx context.Context, batch []*settling) error {
	var tuples [][3]string // letter, replay, handler
	for _, s := range batch {
		for _, handler := range append(slices.Clone(s.handlers), "") { // a letter of no handler is done once it is handed on
			tuples = append(tuples, [3]string{s.letterID, s.replayID, nameOf(handler)})
		}
	}
	encoded, err := json.Marshal(tuples)
	if err != nil {
		return err
	}
	handled := map[string]bool{}
	err = t.db.Write(ctx, "note handled dead letters", func(ctx context.Context, tx *sql.Tx) error {
		clear(handled)
		return t.query(ctx, tx, t.settledStatement(), []any{t.dialect.at(time.Now()), string(encoded)}, func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id)
			handled[id] = true
			return err
		})
	})
	for _, s := range batch {
		if err == nil && s.all && !handled[s.letterID] {
			// In a transaction of its own, which locks no other row: others lock several in the order of seq.
			err = t.db.Write(ctx, "return a dead letter", func(ctx context.Context, tx *sql.Tx) error { return t.unregistered(ctx, tx, s) })
		}
	}
	return err
}

// unregistered lets a letter wait again whose message has reached all handlers that there are for it, and not its own.
func (t *Table) unregistered(ctx context.Context, tx *sql.Tx, s *settling) error {
	var found []row
	err := t.query(ctx, tx, "SELECT "+lightColumns+" FROM dead_letters WHERE id = ? AND state = 'replaying' AND release = ?"+t.dialect.forUpdate(),
		[]any{s.letterID, s.replayID}, func(rows *sql.Rows) error {
			var r row
			err := r.scan(rows)
			found = append(found, r)
			return err
		})
	if err != nil || len(found) == 0 {
		return err
	}
	l, now := found[0].Letter, time.Now().UTC()
	history := l.past().With(Incident{Kind: Replayed, At: now.Truncate(time.Second), ReplayID: s.replayID})
	reason := fmt.Sprintf("handler %q is not registered for %s: all others have handled it; replay the letter with --to NAME, or discard it", l.Handler, l.Type)
	l.Reason = CutReason(reason)
	group, _ := Fingerprint(l.Handler, l.Type, l.Reason)
	_, err = t.exec(ctx, tx, "UPDATE dead_letters SET state = 'waiting', reason = ?, group_id = ?, attempts = 0, first_failed_at = ?, "+
		"last_failed_at = ?, replays = replays + 1, replay_id = ?, history = ? WHERE seq = ?",
		l.Reason, group, t.dialect.at(now), t.dialect.at(now), s.replayID, history.Header(), found[0].seq)
	return err
}
