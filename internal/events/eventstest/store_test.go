package eventstest_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/events/eventstest"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
)

var errNoName = errors.New("no name")

// countPatients is a handler with SQL of its own.
func countPatients(ctx context.Context, e events.Event, p clinic.PatientRegistered) ([]events.Event, error) {
	err := sqlite.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO patients VALUES (?)", e.AggregateID.String()); err != nil {
			return err
		}
		if p.Name == "" {
			return errNoName
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return events.Follow(e, CardPrinted(p))
}

func TestAHandlerOnARealStore(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	s, err := sqlite.Open(t.Context(), path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	db, err := sql.Open("sqlite", path+"?_busy_timeout=10000")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	_, err = db.ExecContext(t.Context(), "CREATE TABLE patients (id TEXT)")
	require.NoError(t, err)

	eventstest.Handler(t, countPatients).On(s).When(clinic.PatientRegistered{}).ThenError(errNoName)
	eventstest.Handler(t, countPatients).On(s).When(clinic.PatientRegistered{Name: "Ana"}).Then(CardPrinted{Name: "Ana"})
	eventstest.Handler(t, countPatients).When(clinic.PatientRegistered{Name: "Ana"}).ThenError(store.ErrNoTransaction)

	var count int
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM patients").Scan(&count))
	require.Equal(t, 1, count)
	page, err := s.ByType(t.Context(), CardPrinted{}.EventType(), store.Query{})
	require.NoError(t, err)
	require.Len(t, page.Events, 1)
}
