package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	// writeAttempts is how often a unit is written that collides with other writers though it should succeed.
	writeAttempts = 10
	// eventsKey is the constraint of the id column. Its sequence may be behind the ids that another program has set: each
	// attempt takes the next one.
	eventsKey = "events_pkey"
	// maxSmall is the most events of a unit that shares statements. A larger one would save little, and others would wait
	// for it.
	maxSmall = 16
	// maxShared and maxSharedBytes are the most events of a shared statement, and about the most bytes of their data.
	maxShared, maxSharedBytes = 256, 1 << 20
)

var (
	//go:embed statements/write.sql
	writeSQL string
	//go:embed statements/append_one.sql
	appendOneSQL string
)

// unit is what is written all or not at all: a batch of events, or a record with what follows.
type unit struct {
	batch  []events.Event
	record *record
	// written is whether the statement has written it.
	written bool
}

// record is that a handler has handled an event.
type record struct {
	handler     string
	event       events.Event
	fingerprint [sha256.Size]byte
}

func recordOf(handler string, e events.Event, followUps []events.Event) *unit {
	return &unit{batch: followUps, record: &record{handler: handler, event: e, fingerprint: e.Fingerprint()}}
}

// write runs a statement that writes a unit or does not. If it did not, or failed with an error that other writers may
// cause, explain finds the reason; without one the collision is over and the statement runs again.
func (s *Store) write(ctx context.Context, doing string, u *unit, q querier, statement func() error) error {
	var err error
	var pgErr *pgconn.PgError
	for range writeAttempts {
		var answered bool
		err = writeFault(ctx, doing, statement())
		if err == nil && u.written {
			return nil
		}
		pgErr, answered = errors.AsType[*pgconn.PgError](err)
		switch {
		case err == nil, answered && isCollision(pgErr.Code):
			if reason := u.explain(ctx, q); reason != nil {
				return reason
			}
		case answered && isUnfitJSON(pgErr.Code):
			if reason := findUnfitJSON(ctx, q, u.batch); reason != nil {
				return reason
			}
			return err
		default:
			return err
		}
	}
	switch _, refused := errors.AsType[*store.RefusedError](err); {
	case err == nil && u.record == nil && len(u.batch) == 1:
		return fmt.Errorf("%s: %w", doing, &store.RefusedError{By: leftOut})
	case refused && pgErr.ConstraintName != eventsKey: // by a unique index of others
		return err
	}
	return fmt.Errorf("%s: %w: %d attempts collided with other writers: %w", doing, store.ErrUnavailable, writeAttempts, cmp.Or(err, errNotWritten))
}

// errNotWritten is the error of a statement that did not fail and did not write, for no reason that was found.
var errNotWritten = errors.New("nothing was written")

// explain finds why the unit cannot be written as the store is now. It is nil if it can.
func (u *unit) explain(ctx context.Context, q querier) error {
	if r := u.record; r != nil {
		names, err := queries{q}.Handled(ctx, r.event)
		if err != nil {
			return err
		}
		if slices.Contains(names, r.handler) {
			return fmt.Errorf("event %s, handler %q: %w", r.event.ID, r.handler, store.ErrHandled)
		}
	}
	return explain(ctx, q, u.batch)
}

func isCollision(code string) bool {
	return code == uniqueViolation || code == serializationFailure || code == deadlockDetected
}

// writeShared writes a unit in a batch. When the server refuses a shared statement, because of one unit or because one
// has to wait for another program, each caller then writes its own unit alone. So it does when the end of another caller's
// context has ended the wait for a connection.
func (s *Store) writeShared(ctx context.Context, u *unit) error {
	if len(u.batch) > maxSmall || u.bytes() > maxSharedBytes {
		return s.writeTogether(ctx, []*unit{u})
	}
	shared, err := s.writes.do(ctx, u)
	_, answered := serverError(err)
	canceled := errors.Is(err, context.Canceled) && pgconn.SafeToRetry(err) && ctx.Err() == nil
	if shared && (answered || canceled || errors.Is(err, errPanicked)) {
		return s.writeTogether(ctx, []*unit{u})
	}
	return err
}

func (s *Store) writeTogether(ctx context.Context, units []*unit) error {
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error { return writeUnits(ctx, conn, units) })
}

// onConnection distinguishes a connection that could not be acquired from one that broke.
func (s *Store) onConnection(ctx context.Context, do func(*pgxpool.Conn) error) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return unsentError{err}
	}
	defer conn.Release()
	return do(conn)
}

// fitWrites bounds the batch, and keeps out a unit that depends on another one of the batch: the next event of an
// aggregate, or the same event for the same handler.
func fitWrites(first *unit) func(*unit) bool {
	taken := make(map[uuid.UUID]struct{})
	count, bytes := 0, 0
	add := func(u *unit) {
		for _, id := range u.touches() {
			taken[id] = struct{}{}
		}
		count, bytes = count+len(u.batch), bytes+u.bytes()
	}
	add(first)
	return func(u *unit) bool {
		if count+len(u.batch) > maxShared || bytes+u.bytes() > maxSharedBytes {
			return false
		}
		for _, id := range u.touches() {
			if _, found := taken[id]; found {
				return false
			}
		}
		add(u)
		return true
	}
}

// touches are the ids of the aggregates that the unit appends to and of the event that it is the record of.
func (u *unit) touches() []uuid.UUID {
	ids := make([]uuid.UUID, 0, len(u.batch)+1)
	for _, e := range u.batch {
		ids = append(ids, e.AggregateID)
	}
	if u.record != nil {
		ids = append(ids, u.record.event.ID)
	}
	return ids
}

func (u *unit) bytes() int {
	n := 0
	for _, e := range u.batch {
		n += len(e.Data) + len(e.Metadata)
	}
	return n
}

// writeUnits runs the statement that writes the units, and sets which of them it has written. It fails, and writes none,
// when a trigger leaves out a row of several; and with several units when it has to wait for another program for longer
// than [statementTimeout].
func writeUnits(ctx context.Context, q querier, units []*unit) error {
	if u := units[0]; len(units) == 1 && len(u.batch) == 1 && u.record == nil {
		tag, err := q.Exec(ctx, appendOneSQL, values(u.batch[0])...)
		u.written = tag.RowsAffected() == 1
		return err
	}
	lockTimeout := 0
	if len(units) > 1 {
		lockTimeout = int(statementTimeout.Milliseconds())
	}
	rows, _ := q.Query(ctx, writeSQL, append(columns(units), lockTimeout)...) // ForEachRow returns the error
	for _, u := range units {
		u.written = true
	}
	var refused int
	_, err := pgx.ForEachRow(rows, []any{&refused}, func() error {
		units[refused].written = false
		return nil
	})
	return err
}

// values are the event's parameters in append_one.sql.
func values(e events.Event) []any {
	return []any{
		uuidOf(e.ID), e.Type, e.AggregateType, uuidOf(e.AggregateID), int32(e.AggregateVersion), uuidOf(e.TenantID),
		nullable(e.ClinicID), nullable(e.CausationID), uuidOf(e.CorrelationID), nullable(e.UserID), e.CreatedAt,
		string(e.Data), metadataOf(e),
	}
}

// columns are the units' parameters in write.sql: an array for each column of their events, and of their records.
func columns(units []*unit) []any {
	var (
		ids, aggregateIDs, tenantIDs, correlationIDs []pgtype.UUID
		clinicIDs, causationIDs, userIDs             []pgtype.UUID
		types, aggregateTypes, data                  []string
		versions                                     []int32
		times                                        []time.Time
		metadata                                     []pgtype.Text
		isFirst                                      []bool
		unitOfEvent                                  []int32

		handlers     []string
		handled      []pgtype.UUID
		fingerprints [][]byte
		unitOfRecord []int32
	)
	for i, u := range units {
		begins := firsts(u.batch)
		for k, e := range u.batch {
			ids, types = append(ids, uuidOf(e.ID)), append(types, e.Type)
			aggregateTypes, aggregateIDs = append(aggregateTypes, e.AggregateType), append(aggregateIDs, uuidOf(e.AggregateID))
			versions, tenantIDs = append(versions, int32(e.AggregateVersion)), append(tenantIDs, uuidOf(e.TenantID))
			clinicIDs, causationIDs = append(clinicIDs, nullable(e.ClinicID)), append(causationIDs, nullable(e.CausationID))
			correlationIDs, userIDs = append(correlationIDs, uuidOf(e.CorrelationID)), append(userIDs, nullable(e.UserID))
			times, data, metadata = append(times, e.CreatedAt), append(data, string(e.Data)), append(metadata, metadataOf(e))
			begin := len(begins) > 0 && begins[0] == k
			if begin {
				begins = begins[1:]
			}
			isFirst, unitOfEvent = append(isFirst, begin), append(unitOfEvent, int32(i))
		}
		if r := u.record; r != nil {
			handlers, handled = append(handlers, r.handler), append(handled, uuidOf(r.event.ID))
			fingerprints, unitOfRecord = append(fingerprints, r.fingerprint[:]), append(unitOfRecord, int32(i))
		}
	}
	return []any{
		ids, types, aggregateTypes, aggregateIDs, versions, tenantIDs, clinicIDs, causationIDs, correlationIDs, userIDs,
		times, data, metadata, isFirst, unitOfEvent, unitOfRecord, handlers, handled, fingerprints,
	}
}

// uuidOf saves pgx the conversion of the id to text.
func uuidOf(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func nullable(id uuid.NullUUID) pgtype.UUID { return pgtype.UUID{Bytes: id.UUID, Valid: id.Valid} }

func metadataOf(e events.Event) pgtype.Text {
	return pgtype.Text{String: string(e.Metadata), Valid: len(e.Metadata) > 0}
}

// firsts are the indexes in the batch at which its aggregates begin.
func firsts(batch []events.Event) []int {
	var indexes []int
	seen := make(map[uuid.UUID]struct{})
	for i, e := range batch {
		if _, found := seen[e.AggregateID]; !found {
			seen[e.AggregateID] = struct{}{}
			indexes = append(indexes, i)
		}
	}
	return indexes
}
