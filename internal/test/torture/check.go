package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/healz/worker/internal/deadletter"
)

// row is an event as the table has it.
type row struct {
	Event, Aggregate    uuid.UUID
	Version             int
	Type                string
	Tenant, Correlation uuid.UUID
	Cause               uuid.NullUUID
}

// rowsSQL selects all events in the order in which they were committed.
const rowsSQL = `SELECT event_id, aggregate_id, aggregate_version, event_type, tenant_id, correlation_id, causation_id
	FROM events ORDER BY transaction_id, id`

// insufficientPrivilege is Postgres's code for a lack of rights.
const insufficientPrivilege = "42501"

// letter is a dead letter as the table has it.
type letter struct {
	// Event is the id of its event, or that of a message that is none.
	Event               uuid.UUID
	ID, Handler, Reason string
	State               deadletter.State
	Message             string // all of it but the body
}

// lettersSQL selects all dead letters.
const lettersSQL = `SELECT coalesce(event_id, (raw ->> 'message_id')::uuid), id, handler, reason, state, coalesce(raw, headers, '{}')::text
	FROM dead_letters`

// letters are dead letters by the event they are of.
type letters map[uuid.UUID][]letter

// readLetters reads the dead letters in the table. What is still in their queue is not among them.
func (r *rig) readLetters(ctx context.Context) (letters, error) {
	var all []letter
	err := r.waiting(ctx, func(ctx context.Context) error {
		found, err := r.admin.Query(ctx, lettersSQL)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(found, pgx.RowToStructByPos[letter])
		return err
	})
	found := letters{}
	for _, l := range all {
		found[l.Event] = append(found[l.Event], l)
		r.readLetter(l)
	}
	return found, err
}

// readLetter blames what is wrong with a letter by itself, once.
func (r *rig) readLetter(l letter) {
	before, known := r.known[l.ID]
	r.known[l.ID] = l
	if known && before == l {
		return
	}
	if l.Reason == "" {
		r.blame("P5", "the dead letter of event %s has no reason", l.Event)
	}
	if strings.Contains(l.Message+l.Reason, r.planted) {
		r.blame("P11", "a header of the dead letter of event %s tells what it must not", l.Event)
	}
	if known && (before.Event != l.Event || before.Handler != l.Handler) {
		r.blame("P5", "dead letter %s was of event %s, and is of event %s", l.ID, before.Event, l.Event)
	}
}

// verdict is what the traces say.
type verdict struct {
	appended     map[writer]int
	unknown      int
	refused      int
	delivered    int
	duplicates   int
	letters      map[deadletter.State]int
	unmended     int // events that a replay is to handle, and that were not handled yet or have a letter that says so
	handledOrder int // events that were handled before an earlier one of their aggregate
	lost         []string
	doubled      []string
	misordered   []string
	other        []violation
}

// judge compares what the writers noted with the table, the witness and the dead letters. While there is traffic, what
// it calls lost may only be under way.
func (r *rig) judge(ctx context.Context) (verdict, error) {
	var rows []row
	err := r.waiting(ctx, func(ctx context.Context) error {
		found, err := r.admin.Query(ctx, rowsSQL)
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(found, pgx.RowToStructByPos[row])
		return err
	})
	if err != nil {
		return verdict{}, fmt.Errorf("read the events: %w", err)
	}
	dead, err := r.readLetters(ctx)
	if err != nil {
		return verdict{}, fmt.Errorf("read the dead letters: %w", err)
	}
	for id, before := range r.known {
		if !slices.ContainsFunc(dead[before.Event], func(l letter) bool { return l.ID == id }) {
			delete(r.known, id)
			r.blame("P5", "dead letter %s of event %s is gone", id, before.Event)
		}
	}
	return judge(rows, dead, r.ledger.all(), r.witness.testify()), nil
}

func judge(rows []row, dead letters, written map[uuid.UUID]entry, seen testimony) verdict {
	v := verdict{
		appended: map[writer]int{}, delivered: len(seen.seen), duplicates: seen.duplicates, misordered: seen.misordered,
		letters: map[deadletter.State]int{},
	}
	lose := func(format string, args ...any) { v.lost = append(v.lost, fmt.Sprintf(format, args...)) }
	breach := func(promise, format string, args ...any) {
		v.other = append(v.other, violation{promise, fmt.Sprintf(format, args...)})
	}

	stored := make(map[uuid.UUID]row, len(rows))
	followers := map[uuid.UUID][]row{}
	for _, row := range rows {
		stored[row.Event] = row
		if row.Cause.Valid {
			followers[row.Cause.UUID] = append(followers[row.Cause.UUID], row)
		}
		if _, was := seen.seen[row.Event]; !was {
			lose("P1: %s %s of aggregate %s is in the table and never came to the bus", row.Type, row.Event, row.Aggregate)
		}
		if _, was := written[row.Event]; !was && !row.Cause.Valid {
			breach("P2", "%s %s is in the table, and nobody wrote it", row.Type, row.Event)
		}
	}
	v.handledOrder = handledOutOfOrder(rows, stored, written)

	for id, e := range written {
		row, isStored := stored[id]
		_, wasSeen := seen.seen[id]
		switch e.outcome {
		case kept:
			v.appended[e.writer]++
			if e.writer != byPublisher && !isStored {
				lose("P1: event %s was appended (%s) and is not in the table", id, e.writer)
			}
			if !wasSeen {
				lose("P1: event %s was taken (%s) and never came to the bus", id, e.writer)
			}
		case unknown:
			v.unknown++
		case refused:
			v.refused++
			if isStored {
				breach("P2", "event %s was refused (%s) and is in the table", id, e.writer)
			}
		}
		if !wasSeen {
			continue
		}
		follow := followers[id]
		switch e.fate {
		case unhandled:
			if len(follow) > 0 || len(dead[id]) > 0 {
				breach("P3", "event %s, which has no handler, has %d effects and %d dead letters", id, len(follow), len(dead[id]))
			}
		case handled:
			if len(follow) == 0 {
				lose("P5: event %s was not handled (dead letters: %d)", id, len(dead[id]))
			}
			if len(dead[id]) > 0 {
				breach("P5", "event %s became a dead letter, though its handler would have handled it", id)
			}
		case failing:
			if len(dead[id]) == 0 {
				lose("P5: event %s fails and is not among the dead letters", id)
			}
			for _, l := range dead[id] {
				if l.State != deadletter.Waiting {
					lose("P6: event %s fails, and its dead letter %s is %s", id, l.ID, l.State)
				}
			}
			if len(follow) > 0 {
				breach("P3", "event %s, whose handler fails, has effects", id)
			}
		case mended:
			if len(follow) == 0 && len(dead[id]) == 0 {
				lose("P5: event %s was not handled and is not among the dead letters", id)
			}
			if len(follow) == 0 || slices.ContainsFunc(dead[id], func(l letter) bool { return l.State != deadletter.Settled }) {
				v.unmended++
			}
		}
		if len(dead[id]) > 1 { // an event of the traffic has no more than one handler
			breach("P5", "event %s has %d dead letters", id, len(dead[id]))
		}
		if len(follow) > 1 {
			v.doubled = append(v.doubled, fmt.Sprintf("P3: event %s took effect %d times", id, len(follow)))
		}
		cause := e.event
		if isStored {
			cause.TenantID, cause.CorrelationID = row.Tenant, row.Correlation
		}
		for _, f := range follow {
			if f.Tenant != cause.TenantID || f.Correlation != cause.CorrelationID {
				breach("P7", "event %s has another tenant or correlation than its cause %s", f.Event, id)
			}
		}
	}
	for cause := range followers {
		if _, was := written[cause]; !was {
			breach("P7", "an event has the cause %s, which nobody wrote", cause)
		}
	}
	for id, all := range dead {
		for _, l := range all {
			v.letters[l.State]++
		}
		if _, was := written[id]; !was {
			breach("P5", "there is a dead letter of event %s, which nobody wrote", id)
		}
	}
	return v
}

// handledOutOfOrder counts the events that took effect before an earlier one of their aggregate did, but for those that a
// replay is to handle.
func handledOutOfOrder(rows []row, stored map[uuid.UUID]row, written map[uuid.UUID]entry) int {
	last, n := map[uuid.UUID]int{}, 0
	for _, row := range rows {
		if !row.Cause.Valid || written[row.Cause.UUID].fate == mended {
			continue
		}
		aggregate, version := written[row.Cause.UUID].event.AggregateID, written[row.Cause.UUID].event.AggregateVersion
		if cause, is := stored[row.Cause.UUID]; is {
			aggregate, version = cause.Aggregate, cause.Version
		}
		if version < last[aggregate] {
			n++
		}
		last[aggregate] = max(last[aggregate], version)
	}
	return n
}

// checkRights tries to change history in the worker's role.
func (r *rig) checkRights(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, r.databaseURL(workerRole))
	if err != nil {
		return fmt.Errorf("connect as the worker: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range []string{"UPDATE events SET event_type = ''", "DELETE FROM events", "TRUNCATE events"} {
		_, err := conn.Exec(ctx, statement)
		refusal, refused := errors.AsType[*pgconn.PgError](err)
		if !refused || refusal.Code != insufficientPrivilege {
			r.blame("P12", "%q in the worker's role: %v", statement, err)
		}
	}
	return nil
}

// checkLogs looks for planted values and for data races in all that the workers have written.
func (r *rig) checkLogs() error {
	logs, err := filepath.Glob(filepath.Join(r.folder, "*.log"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		name := filepath.Base(log)
		if !strings.HasPrefix(name, "worker-") && name != "commands.log" {
			continue
		}
		text, err := os.ReadFile(log)
		if err != nil {
			return fmt.Errorf("read a log: %w", err)
		}
		if n := bytes.Count(text, []byte(r.planted)); n > 0 {
			r.blame("P11", "%s tells %d times what it must not", name, n)
		}
		for _, bad := range []string{"DATA RACE", "panic:", "panic occurred"} {
			if bytes.Contains(text, []byte(bad)) {
				r.blame("P10", "%s has %q", name, bad)
			}
		}
	}
	return nil
}

// appendedInAll is the number of events that were taken, whoever wrote them.
func (v verdict) appendedInAll() int {
	all := 0
	for _, n := range v.appended {
		all += n
	}
	return all
}
