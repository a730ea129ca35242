package postgres

import (
	"context"
	_ "embed"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/is_restored.sql
	isRestoredSQL string
	//go:embed statements/renumber.sql
	renumberSQL string
)

// CheckRestored is [store.ErrRestored] if the database was restored from a dump of another cluster, and
// [Store.MigrateRestored] has not run since.
func CheckRestored(ctx context.Context, db interface {
	QueryRow(ctx context.Context, statement string, args ...any) pgx.Row
},
) error {
	var restored bool
	err := db.QueryRow(ctx, isRestoredSQL).Scan(&restored)
	if err == nil && restored {
		err = store.ErrRestored
	}
	return fault(ctx, "compare the transaction ids of events and cluster", err)
}

// MigrateRestored replaces the transaction ids of another cluster, from whose dump the database was restored. Nothing
// happens if it was not, or has been done. Readers and writers wait while the rows are rewritten, but not longer than a moment
// for the sessions that this waits for. A relay that runs loses its lease, so that it does not move the position to where
// it would be by the old ids, and goes on by itself.
func (s *Store) MigrateRestored(ctx context.Context) (done store.Renumbered, err error) {
	if err := CheckRestored(ctx, s.pool); !errors.Is(err, store.ErrRestored) {
		return done, err
	}
	err = s.givingWay(ctx, func(ctx context.Context) (err error) {
		done, err = s.renumber(ctx)
		return err
	})
	return done, migrationFault(ctx, "migrate restored", err)
}

func (s *Store) renumber(ctx context.Context) (done store.Renumbered, err error) {
	conn, err := s.connect(ctx) // the pool's connections have timeouts
	if err != nil {
		return done, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// The lease and the row of the position come first, as where the position is moved. Of the two tables only events is
		// locked: readers lock them in either order.
		_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '300ms';
			UPDATE leases SET holder = '', fence = fence + 1 WHERE task = 'relay';
			SELECT FROM relay_position FOR UPDATE;
			LOCK TABLE events`)
		if err != nil {
			return err
		}
		var restored bool // another may have done it meanwhile
		if err := tx.QueryRow(ctx, isRestoredSQL).Scan(&restored); err != nil || !restored {
			return err
		}
		_, err = tx.Exec(ctx, `SET CONSTRAINTS ALL IMMEDIATE;
			ALTER TABLE events DISABLE TRIGGER events_append_only;
			ALTER TABLE events ADD COLUMN renumbered xid8 NOT NULL DEFAULT '0'`)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, renumberSQL).Scan(&done.Events, &done.Waiting, &done.New); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `ALTER TABLE events ENABLE TRIGGER events_append_only;
			ALTER TABLE events DROP COLUMN transaction_id;
			ALTER TABLE events RENAME COLUMN renumbered TO transaction_id;
			ALTER TABLE events ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id();
			CREATE UNIQUE INDEX events_transaction_unique ON events (transaction_id, id);
			CREATE INDEX events_own ON events (transaction_id, id) WHERE own;
			UPDATE relay_position SET transaction_id = '0', id = 9223372036854775807, passed_over = NULL`)
		return err
	})
	return done, err
}
