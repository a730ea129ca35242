package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/test/wait"
)

const (
	// patience bounds one try to write.
	patience = 15 * time.Second
	// confirmLimit bounds the wait for one confirm.
	confirmLimit = 10 * time.Second
	// sharedStreams is how many aggregates all writers compete for.
	sharedStreams = 5
	// openStreams is how many of its own aggregates a writer goes on with.
	openStreams = 20
)

// load is the traffic: writers of all kinds, each at its own pace.
type load struct {
	seed    uint64
	ledger  *ledger
	store   *postgres.Store // as the worker's role
	service *pgxpool.Pool   // as another program's role
	broker  string
	program string
	env     []string
	log     *os.File // of the commands
	shared  []*stream

	// gate lets each write through, and none while it is locked.
	gate sync.RWMutex
}

// run writes until ctx ends.
func (l *load) run(ctx context.Context) {
	shared := newAuthor(l.seed, "shared")
	for range sharedStreams {
		l.shared = append(l.shared, &stream{aggregateType: "Patient", id: shared.id(), tenant: shared.id()})
	}
	var writers sync.WaitGroup
	write := func(name string, least, most time.Duration, act func(context.Context, *author, *shelf)) {
		writers.Go(func() {
			a, own := newAuthor(l.seed, name), &shelf{}
			for wait.Sleep(ctx, a.between(least, most)) {
				l.gate.RLock()
				act(context.WithoutCancel(ctx), a, own)
				l.gate.RUnlock()
			}
		})
	}
	write("store 1", 50*time.Millisecond, 250*time.Millisecond, l.append)
	write("store 2", 50*time.Millisecond, 250*time.Millisecond, l.append)
	write("command", time.Second, 3*time.Second, l.command)
	write("sql 1", 50*time.Millisecond, 500*time.Millisecond, l.insert)
	write("sql 2", 50*time.Millisecond, 500*time.Millisecond, l.insert)
	p := &publisher{url: l.broker}
	write("amqp", 50*time.Millisecond, 300*time.Millisecond, func(ctx context.Context, a *author, own *shelf) { l.publish(ctx, a, own, p) })
	writers.Wait()
	p.close()
}

// shelf is the aggregates that one writer goes on with.
type shelf struct{ open []*stream }

// take returns a stream, old or new, and takes it off the shelf.
func (s *shelf) take(a *author) *stream {
	if len(s.open) == 0 || len(s.open) < openStreams && a.chance(0.5) {
		return a.newStream()
	}
	i := a.IntN(len(s.open))
	taken := s.open[i]
	s.open[i] = s.open[len(s.open)-1]
	s.open = s.open[:len(s.open)-1]
	return taken
}

// giveBack puts a stream that n events were added to back, for some time.
func (s *shelf) giveBack(taken *stream, n int) {
	if taken.version += n; taken.version < 20 {
		s.open = append(s.open, taken)
	}
}

// append appends a batch to one or two aggregates through the store API.
func (l *load) append(ctx context.Context, a *author, own *shelf) {
	if a.chance(0.1) {
		l.appendOnce(ctx, a.reply(), a.chance(0.7))
		return
	}
	streams := []*stream{own.take(a)}
	if a.chance(0.3) {
		streams = append(streams, a.newStream())
	}
	if a.chance(0.15) {
		shared := *l.shared[a.IntN(len(l.shared))]
		bounded, cancel := context.WithTimeout(ctx, patience)
		version, err := l.store.Version(bounded, shared.aggregateType, shared.id)
		cancel()
		if err == nil {
			shared.version = version
			streams = []*stream{&shared}
			own = &shelf{}
		}
	}
	var batch []entry
	sizes := make([]int, len(streams))
	for i, s := range streams {
		sizes[i] = a.number(1, 5)
		batch = append(batch, a.some(s, sizes[i])...)
	}
	if l.appendOnce(ctx, batch, a.chance(0.7)) != kept {
		return
	}
	for i, s := range streams {
		own.giveBack(s, sizes[i])
	}
}

// appendOnce appends a batch and notes the outcome. One that is unknown it finds out, if it is to, by appending again.
func (l *load) appendOnce(ctx context.Context, batch []entry, findOut bool) outcome {
	l.ledger.note(byStore, unknown, batch...)
	o := unknown
	for try := 0; o == unknown && (try == 0 || findOut && try < 20); try++ {
		bounded, cancel := context.WithTimeout(ctx, patience)
		err := l.store.AppendMany(bounded, eventsOf(batch))
		cancel()
		_, duplicate := errors.AsType[*store.DuplicateError](err)
		switch {
		case err == nil, duplicate && try > 0:
			o = kept
		case errors.Is(err, store.ErrUnknownOutcome):
		case try == 0:
			o = refused
		case !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
			return unknown // another writer was first, after a first try that failed or before
		}
		if try > 0 && o == unknown {
			wait.Sleep(ctx, time.Second)
		}
	}
	l.ledger.note(byStore, o, batch...)
	return o
}

// command appends through `worker append`, which it kills now and then.
func (l *load) command(ctx context.Context, a *author, _ *shelf) {
	var lines bytes.Buffer
	var batch []entry
	out := json.NewEncoder(&lines)
	for range a.number(1, 3) {
		s := a.newStream()
		if a.chance(0.2) {
			s = l.shared[a.IntN(len(l.shared))]
		}
		for _, e := range a.some(s, a.number(1, 4)) {
			line := struct {
				ID        uuid.UUID       `json:"event_id"`
				Type      string          `json:"event_type"`
				Kind      string          `json:"aggregate_type"`
				Aggregate uuid.UUID       `json:"aggregate_id"`
				Tenant    uuid.UUID       `json:"tenant_id"`
				Data      json.RawMessage `json:"event_data"`
				Metadata  json.RawMessage `json:"metadata"`
			}{e.event.ID, e.event.Type, e.event.AggregateType, e.event.AggregateID, e.event.TenantID, e.event.Data, e.event.Metadata}
			if out.Encode(line) != nil {
				return
			}
			batch = append(batch, e)
		}
	}
	size, killAfter := a.number(1, 6), time.Minute
	if a.chance(0.15) {
		killAfter = a.between(5*time.Millisecond, 300*time.Millisecond)
	}
	l.ledger.note(byCommand, unknown, batch...)

	ctx, cancel := context.WithTimeout(ctx, killAfter)
	defer cancel()
	c := l.worker(ctx, "append", "--format=json", fmt.Sprintf("--batch=%d", size))
	var printed, complaint bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = &lines, &printed, io.MultiWriter(&complaint, l.log)
	err := c.Run()

	rest := refused
	switch {
	case err == nil:
		rest = kept
	case ctx.Err() != nil || strings.Contains(complaint.String(), store.ErrUnknownOutcome.Error()):
		rest = unknown
	}
	taken := idsOf(printed.Bytes())
	for _, e := range batch {
		if _, was := taken[e.event.ID]; was {
			l.ledger.note(byCommand, kept, e)
		} else {
			l.ledger.note(byCommand, rest, e)
		}
	}
}

// worker is a command of the worker's, with its complaints in the log.
func (l *load) worker(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, l.program, args...)
	c.Env, c.Dir, c.Stderr = l.env, filepath.Dir(l.log.Name()), l.log
	return c
}

// usageCode is the exit code of a command that was called wrongly.
const usageCode = 2

// replay replays all dead letters, until ctx ends. Killed or not, nothing is lost; it is an error only if it was called
// wrongly.
func (l *load) replay(ctx context.Context) error {
	c := l.worker(ctx, "dlq", "replay", "--all", "--max-failures=-1")
	if err := c.Run(); c.ProcessState.ExitCode() == usageCode {
		return fmt.Errorf("replay the dead letters: %w", err)
	}
	return nil
}

// idsOf reads the ids of the events that a command has printed; the last may be cut off.
func idsOf(printed []byte) map[uuid.UUID]struct{} {
	ids := map[uuid.UUID]struct{}{}
	for line := range bytes.Lines(printed) {
		var e struct {
			ID uuid.UUID `json:"event_id"`
		}
		if json.Unmarshal(line, &e) == nil {
			ids[e.ID] = struct{}{}
		}
	}
	return ids
}

// insertSQL names the contract's columns, and so knows nothing of the worker.
const insertSQL = `INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id,
	clinic_id, correlation_id, user_id, created_at, event_data, metadata)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`

// insert writes as another program does: in a transaction that may stay open for a while, and that may go on with an
// aggregate whose earlier events are of younger transactions than itself.
func (l *load) insert(ctx context.Context, a *author, own *shelf) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var hold time.Duration
	if a.chance(0.3) {
		hold = a.between(100*time.Millisecond, 3*time.Second)
	}
	s := own.take(a)
	batch := a.some(s, a.number(1, 4))
	competes, shared := a.chance(0.25), *l.shared[a.IntN(len(l.shared))]

	o := refused
	n := len(batch)
	committing := false
	err := pgx.BeginFunc(ctx, l.service, func(tx pgx.Tx) error {
		if err := insertAll(ctx, tx, batch); err != nil {
			return err
		}
		wait.Sleep(ctx, hold)
		if competes {
			err := tx.QueryRow(ctx, "SELECT coalesce(max(aggregate_version), 0) FROM events WHERE aggregate_id = $1", shared.id).
				Scan(&shared.version)
			if err != nil {
				return err
			}
			more := a.some(&shared, 1)
			batch = append(batch, more...)
			if err := insertAll(ctx, tx, more); err != nil {
				return err
			}
			wait.Sleep(ctx, hold/4)
		}
		l.ledger.note(bySQL, unknown, batch...)
		committing = true
		return nil
	})
	_, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		o = kept
		own.giveBack(s, n)
	case committing && !answered && !errors.Is(err, pgx.ErrTxCommitRollback):
		o = unknown
	}
	l.ledger.note(bySQL, o, batch...)
}

func insertAll(ctx context.Context, tx pgx.Tx, batch []entry) error {
	for _, one := range batch {
		e := one.event
		_, err := tx.Exec(ctx, insertSQL, e.ID, e.Type, e.AggregateType, e.AggregateID, e.AggregateVersion, e.TenantID, e.ClinicID,
			e.CorrelationID, e.UserID, e.CreatedAt, string(e.Data), string(e.Metadata))
		if err != nil {
			return err
		}
	}
	return nil
}

// publish publishes as another program does: without headers, an aggregate's events one after another, each again until
// it is confirmed. Now and then it gives up, or sends what is no event.
func (l *load) publish(ctx context.Context, a *author, own *shelf, p *publisher) {
	if a.chance(0.02) {
		one := entry{fate: failing}
		one.event.ID = a.id()
		l.send(ctx, a, p, one, amqp091.Publishing{
			MessageId: one.event.ID.String(), ContentType: "application/json", Body: []byte(`{"no event":"` + a.planted + `"`),
		})
		return
	}
	s := own.take(a)
	n := a.number(1, 4)
	for _, one := range a.some(s, n) {
		body, err := one.event.MarshalJSON()
		if err != nil || !l.send(ctx, a, p, one, amqp091.Publishing{ContentType: "application/json", Body: body}) {
			return
		}
	}
	own.giveBack(s, n)
}

func (l *load) send(ctx context.Context, a *author, p *publisher, one entry, m amqp091.Publishing) bool {
	m.DeliveryMode = amqp091.Persistent
	l.ledger.note(byPublisher, unknown, one)
	givesUp := a.chance(0.1)
	for range 60 {
		if p.publish(ctx, one.event.Type, m) == nil {
			l.ledger.note(byPublisher, kept, one)
			return true
		}
		if givesUp || !wait.Sleep(ctx, time.Second) {
			break
		}
	}
	return false
}

// publisher is a foreign program's connection to the broker.
type publisher struct {
	url     string
	conn    *amqp091.Connection
	channel *amqp091.Channel
}

// publish returns nil when the broker has confirmed the message.
func (p *publisher) publish(ctx context.Context, key string, m amqp091.Publishing) error {
	if p.channel == nil || p.channel.IsClosed() {
		p.close()
		if err := p.open(); err != nil {
			p.close()
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	confirm, err := p.channel.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, m)
	if err == nil {
		var confirmed bool
		if confirmed, err = confirm.WaitContext(ctx); err == nil && !confirmed {
			err = errors.New("refused by the broker")
		}
	}
	if err != nil {
		p.close()
	}
	return err
}

func (p *publisher) open() (err error) {
	p.conn, err = amqp091.DialConfig(p.url, amqp091.Config{Heartbeat: 5 * time.Second, Dial: amqp091.DefaultDial(5 * time.Second)})
	if err != nil {
		return err
	}
	if p.channel, err = p.conn.Channel(); err != nil {
		return err
	}
	return p.channel.Confirm(false)
}

func (p *publisher) close() {
	if p.conn != nil {
		_ = p.conn.CloseDeadline(time.Now().Add(time.Second))
	}
	p.conn, p.channel = nil, nil
}
