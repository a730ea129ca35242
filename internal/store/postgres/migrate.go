package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

// Migrate brings the schema up to date; nothing happens when it is. It adopts a table events that another service has
// made, with its rows, if they are those of the contract; else it is [store.ErrForeignTable] or [store.ErrUnfitTable]. What was
// interrupted is resumed by the next call.
func (s *Store) Migrate(ctx context.Context) error {
	const doing = "migrate up"
	if err := s.checkAdoption(ctx); err != nil {
		return fault(ctx, doing, err)
	}
	err := s.givingWay(ctx, s.migrator.Up)
	if pgErr, found := errors.AsType[*pgconn.PgError](err); found && pgErr.Code == uniqueViolation { // inserted meanwhile
		err = errors.Join(s.checkAdoption(ctx), err)
	}
	return migrationFault(ctx, doing, err)
}

// WithMigrations calls do with the migrator of a set.
func (s *Store) WithMigrations(ctx context.Context, set migrations.Set, do func(context.Context, *migrations.Migrator) error) error {
	m, err := s.migrator.Of(set)
	if err == nil {
		err = do(ctx, m)
	}
	return fault(ctx, "migrations of "+set.Name, err)
}

// How long locks of others are waited for, in short attempts, and how long writers have between two of them.
const (
	lockPatience = 10 * time.Second
	lockPause    = 700 * time.Millisecond
)

// endVacuumSQL ends an automatic vacuum of the events, which can take hours. The server does that for who has waited for its
// deadlock_timeout, 1 s, longer than an attempt does. Readers and writers do not wait behind this lock.
const endVacuumSQL = `SET LOCAL lock_timeout = '2s'; LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE`

// givingWay calls migrate again while it fails as it waited too long for a lock. Others that want the lock, as every
// writer does, queue behind a migration that waits for it, so each attempt is short.
func (s *Store) givingWay(ctx context.Context, migrate func(context.Context) error) error {
	for deadline := time.Now().Add(lockPatience); ; {
		watched, stop := context.WithCancel(ctx)
		found := make(chan string)
		go func() { found <- s.blockers(watched) }()
		err := migrate(ctx)
		stop()
		blockers := <-found
		if pgErr, answered := errors.AsType[*pgconn.PgError](err); !answered || pgErr.Code != lockNotAvailable {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: another session holds a lock that the migration needs, and it was not applied: %s",
				store.ErrUnavailable, blockers)
		}
		select {
		case <-time.After(lockPause):
			_, _ = s.pool.Exec(ctx, endVacuumSQL) // if it fails, the next attempt says why
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

//go:embed statements/blockers.sql
var blockersSQL string

// blockers names those sessions that a migration waited for last, until ctx ends.
func (s *Store) blockers(ctx context.Context) (last string) {
	last = "it is not known which"
	for poll := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			poll.Stop()
			return last
		case <-poll.C:
			var now *string
			// To cancel a statement can end a pgbouncer of version 1.18, and the last one is cancelled with each migration.
			if err := s.pool.QueryRow(context.WithoutCancel(ctx), blockersSQL).Scan(&now); err == nil && now != nil {
				last = *now
			}
		}
	}
}

// checkAdoption is [CheckAdoption] on a connection of its own, on which it may take long.
func (s *Store) checkAdoption(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return CheckAdoption(ctx, conn)
}

var (
	//go:embed statements/foreign.sql
	foreignSQL string
	//go:embed statements/unfit.sql
	unfitSQL string
)

// CheckAdoption is an error if there is a table events of another service that cannot be adopted: [store.ErrForeignTable]
// for its columns, [store.ErrUnfitTable], with the ids of the first rows, for its rows or indexes.
func CheckAdoption(ctx context.Context, db interface {
	Query(ctx context.Context, statement string, args ...any) (pgx.Rows, error)
},
) error {
	// The trigger is the last that an adoption adds.
	rows, _ := db.Query(ctx, `SELECT to_regclass('events') IS NOT NULL AND (to_regclass($1) IS NULL
		OR NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('events') AND tgname = 'events_inserted'))`, migrations.Table)
	foreign, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool]) // or the error of the query
	if err != nil || !foreign {
		return err
	}
	rows, _ = db.Query(ctx, foreignSQL)
	if columns, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[*string]); err != nil {
		return err
	} else if columns != nil {
		return fmt.Errorf("%w: %s", store.ErrForeignTable, *columns)
	}
	rows, _ = db.Query(ctx, unfitSQL)
	var problem string
	var count int
	var ids []*int64
	var problems []string
	_, err = pgx.ForEachRow(rows, []any{&problem, &count, &ids}, func() error {
		if count > 0 {
			problem += fmt.Sprintf(": %d (id", count)
			for _, id := range ids {
				problem += fmt.Sprintf(" %d", *id)
			}
			problem += map[bool]string{false: ")", true: " …)"}[count > len(ids)]
		}
		problems = append(problems, problem)
		return nil
	})
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%w: %s", store.ErrUnfitTable, strings.Join(problems, "; "))
	}
	return err
}

// MigrateDown reverts the newest version of the schema, and never destroys events. It is [store.ErrNoSchema] when
// there is none, and [store.ErrWouldLose] when anything would be lost.
func (s *Store) MigrateDown(ctx context.Context) error {
	return migrationFault(ctx, "migrate down", s.givingWay(ctx, s.migrator.Down))
}

// MigrationStatus lists the versions of the schema, oldest first.
func (s *Store) MigrationStatus(ctx context.Context) ([]migrations.Status, error) {
	status, err := s.migrator.Status(ctx)
	return status, migrationFault(ctx, "read the migrations", err)
}

// migrationFault leaves out the statement, which goose adds to the server's message.
func migrationFault(ctx context.Context, doing string, err error) error {
	pgErr, found := errors.AsType[*pgconn.PgError](err)
	if !found {
		return fault(ctx, doing, err)
	}
	if pgErr.Code == objectInUse {
		return fmt.Errorf("%s: %w (%s)", doing, store.ErrWouldLose, pgErr.Message)
	}
	if pgErr.Code == datatypeMismatch {
		return fmt.Errorf("%s: %s", doing, pgErr.Message)
	}
	return fault(ctx, doing, pgErr)
}

// objectInUse is how the migrations refuse to lose anything.
const objectInUse = "55006"

// datatypeMismatch is how the migrations refuse a table that is not the contract's.
const datatypeMismatch = "42804"
