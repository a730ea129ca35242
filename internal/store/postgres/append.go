package postgres

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/known_ids.sql
	knownIDsSQL string
	//go:embed statements/heads.sql
	headsSQL string
	//go:embed statements/is_json.sql
	isJSONSQL string
)

// Append appends one event; see [store.Store].
func (s *Store) Append(ctx context.Context, e events.Event) error {
	return s.AppendMany(ctx, []events.Event{e})
}

// AppendMany appends all events or none; see [store.Store].
func (s *Store) AppendMany(ctx context.Context, batch []events.Event) error {
	if len(batch) == 0 {
		return nil
	}
	if err := store.CheckBatch(batch); err != nil {
		return err
	}
	u := &unit{batch: batch}
	return s.write(ctx, "append", u, s.pool, func() error { return s.writeShared(ctx, u) })
}

// AppendWith is [Store.AppendMany], with a statement in the same transaction; see [store.Store].
func (s *Store) AppendWith(ctx context.Context, batch []events.Event, statement string, args ...any) error {
	if len(batch) == 0 {
		return nil
	}
	if err := store.CheckBatch(batch); err != nil {
		return err
	}
	u := &unit{batch: batch}
	return s.write(ctx, "append", u, s.pool, func() error {
		return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
			tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
			if err != nil {
				return err
			}
			defer tx.Rollback(context.WithoutCancel(ctx)) // after a commit it does nothing
			if err := writeUnits(ctx, tx, []*unit{u}); err != nil || !u.written {
				return err
			}
			if _, err := tx.Exec(ctx, statement, args...); err != nil {
				return err
			}
			return commitFault(tx.Commit(ctx))
		})
	})
}

// explain finds why the batch cannot be appended as the store is now. It is nil if it can.
func explain(ctx context.Context, q querier, batch []events.Event) error {
	ids := make([]uuid.UUID, len(batch))
	for i, e := range batch {
		ids[i] = e.ID
	}
	rows, _ := q.Query(ctx, knownIDsSQL, ids) // CollectRows returns the error
	known, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fault(ctx, "check for duplicates", err)
	}
	for i, e := range batch {
		if slices.Contains(known, e.ID) {
			return store.InBatch(batch, i, &store.DuplicateError{EventID: e.ID})
		}
	}

	begins := firsts(batch)
	ids = ids[:0]
	for _, i := range begins {
		ids = append(ids, batch[i].AggregateID)
	}
	heads, err := headsOf(ctx, q, ids)
	if err != nil {
		return fault(ctx, "read the aggregates' versions", err)
	}
	for _, i := range begins {
		if err := store.CheckNext(heads[batch[i].AggregateID], batch[i]); err != nil {
			return store.InBatch(batch, i, err)
		}
	}
	return nil
}

// headsOf are the last events of those aggregates that have any, with what [store.CheckNext] needs of them.
func headsOf(ctx context.Context, q querier, aggregateIDs []uuid.UUID) (map[uuid.UUID]*events.Event, error) {
	rows, _ := q.Query(ctx, headsSQL, aggregateIDs) // ForEachRow returns the error
	heads := make(map[uuid.UUID]*events.Event)
	var e events.Event
	_, err := pgx.ForEachRow(rows, []any{&e.AggregateID, &e.AggregateType, &e.TenantID, &e.AggregateVersion}, func() error {
		heads[e.AggregateID] = new(e)
		return nil
	})
	return heads, err
}

// isUnfitJSON reports whether the server refused valid JSON that jsonb cannot hold.
func isUnfitJSON(code string) bool { return unfitness(code) != "" }

func unfitness(code string) string {
	switch code {
	case numericOutOfRange:
		return "contains a number that the store cannot hold"
	case statementTooComplex:
		return "is nested too deeply for the store"
	case programLimitExceeded:
		return "is too large for the store"
	case invalidText, untranslatable:
		return "is JSON that the store cannot hold"
	}
	return ""
}

// findUnfitJSON finds the event that the server could not take, or nil.
func findUnfitJSON(ctx context.Context, q querier, batch []events.Event) error {
	for i, e := range batch {
		for _, field := range []struct {
			name string
			json json.RawMessage
		}{{"event_data", e.Data}, {"metadata", e.Metadata}} {
			if len(field.json) == 0 {
				continue
			}
			err := pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, isJSONSQL, string(field.json))
				return err
			})
			if err == nil {
				continue
			}
			pgErr, answered := errors.AsType[*pgconn.PgError](err)
			if !answered || !isUnfitJSON(pgErr.Code) {
				return fault(ctx, "check the JSON of the batch", err)
			}
			return store.InBatch(batch, i, &events.InvalidError{
				Fields: []events.FieldError{{Field: field.name, Problem: unfitness(pgErr.Code)}},
			})
		}
	}
	return nil
}
