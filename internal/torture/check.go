package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
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

// letters counts dead letters by the event they are of.
type letters map[uuid.UUID]int

// readLetters reads the dead letters that lie in their queue, and takes them out if it is to.
func (r *rig) readLetters(take bool) (letters, error) {
	found := letters{}
	err := r.onBroker(func(channel *amqp091.Channel) error {
		var last uint64
		for {
			d, ok, err := channel.Get(failedQueue, false)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			last = d.DeliveryTag
			id := idOf(d)
			found[id]++
			r.readLetter(id, d)
		}
		if take && last > 0 {
			return channel.Ack(last, true)
		}
		return nil // those that were not acked go back when the channel ends
	})
	return found, err
}

func (r *rig) readLetter(id uuid.UUID, d amqp091.Delivery) {
	reason, _ := d.Headers[deadletter.ReasonKey].(string)
	if reason == "" {
		r.blame("P5", "the dead letter of event %s has no reason", id)
	}
	if strings.Contains(fmt.Sprint(d.Headers), r.planted) {
		r.blame("P11", "a header of the dead letter of event %s tells what it must not", id)
	}
}

// idOf is the id of the event in a delivery, or that of a message that is none.
func idOf(d amqp091.Delivery) uuid.UUID {
	e, _ := events.Parse(d.Body) // what cannot be read stays zero
	if e.ID == uuid.Nil {
		e.ID, _ = uuid.Parse(d.MessageId)
	}
	return e.ID
}

// verdict is what the traces say.
type verdict struct {
	appended     map[writer]int
	unknown      int
	refused      int
	delivered    int
	duplicates   int
	letters      int
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
	dead, err := r.readLetters(false)
	if err != nil {
		return verdict{}, fmt.Errorf("read the dead letters: %w", err)
	}
	for id, n := range r.taken {
		dead[id] += n
	}
	return judge(rows, dead, r.ledger.all(), r.witness.testify()), nil
}

func judge(rows []row, dead letters, written map[uuid.UUID]entry, seen testimony) verdict {
	v := verdict{
		appended: map[writer]int{}, delivered: len(seen.seen), duplicates: seen.duplicates, misordered: seen.misordered,
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
			if len(follow) > 0 || dead[id] > 0 {
				breach("P3", "event %s, which has no handler, has %d effects and %d dead letters", id, len(follow), dead[id])
			}
		case handled:
			if len(follow) == 0 {
				lose("P5: event %s was not handled (dead letters: %d)", id, dead[id])
			}
			if dead[id] > 0 {
				breach("P5", "event %s became a dead letter, though its handler would have handled it", id)
			}
		case failing:
			if dead[id] == 0 {
				lose("P5: event %s fails and is not among the dead letters", id)
			}
			if len(follow) > 0 {
				breach("P3", "event %s, whose handler fails, has effects", id)
			}
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
	for id := range dead {
		v.letters++
		if _, was := written[id]; !was {
			breach("P5", "there is a dead letter of event %s, which nobody wrote", id)
		}
	}
	return v
}

// handledOutOfOrder counts the events that took effect before an earlier one of their aggregate did. It is no fault
// where several workers take from one queue.
func handledOutOfOrder(rows []row, stored map[uuid.UUID]row, written map[uuid.UUID]entry) int {
	last, n := map[uuid.UUID]int{}, 0
	for _, row := range rows {
		if !row.Cause.Valid {
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
