package workertest_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/workertest"
)

var errNoName = errors.New("no name")

// countPatients is a handler with SQL of its own.
func countPatients(ctx context.Context, e worker.Event, p clinic.PatientRegistered) ([]worker.Event, error) {
	err := worker.InSQLiteTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
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
	return worker.Follow(e, CardPrinted(p))
}

func TestAHandlerOnARealStore(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	s, err := worker.OpenStore(t.Context(), worker.StoreConfig{SQLitePath: path})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	db, err := sql.Open("sqlite", path+"?_busy_timeout=10000")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	_, err = db.ExecContext(t.Context(), "CREATE TABLE patients (id TEXT)")
	require.NoError(t, err)

	workertest.Handler(t, countPatients).On(s).When(clinic.PatientRegistered{}).ThenError(errNoName)
	workertest.Handler(t, countPatients).On(s).When(clinic.PatientRegistered{Name: "Ana"}).Then(CardPrinted{Name: "Ana"})
	workertest.Handler(t, countPatients).When(clinic.PatientRegistered{Name: "Ana"}).ThenError(worker.ErrNoTransaction)

	var count int
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM patients").Scan(&count))
	require.Equal(t, 1, count)
	page, err := s.ByType(t.Context(), CardPrinted{}.EventType(), worker.Query{})
	require.NoError(t, err)
	require.Len(t, page.Events, 1)
}
