package worker_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/internal/test/testservers"
)

func TestMain(m *testing.M) { testservers.Main(m) }

func TestOpenStoreOnPostgres(t *testing.T) {
	t.Parallel()
	url := testservers.Postgres(t)
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	first, err := worker.OpenStore(t.Context(), worker.StoreConfig{DatabaseURL: url})
	require.NoError(t, err)
	require.ErrorIs(t, first.Ping(t.Context()), worker.ErrNoSchema)
	require.NoError(t, first.Migrate(t.Context()))
	require.NoError(t, first.Close())
	for name, config := range map[string]worker.StoreConfig{
		"URL": {DatabaseURL: url, MaxConns: 2}, "pool": {Pool: pool},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := worker.OpenStore(t.Context(), config)
			require.NoError(t, err)
			defer func() { require.NoError(t, store.Close()) }()
			require.NoError(t, store.Ping(t.Context()))
			tenant, bed := worker.Origin{TenantID: uuid.New()}, uuid.New()
			beds := worker.NewRepository(store, NewBed)
			b, err := beds.Execute(t.Context(), tenant, bed, func(b *Bed) error { return b.Occupy("Ana") })
			require.NoError(t, err)

			next, err := worker.NewEvent(tenant, "Bed", bed, b.Version()+1, BedOccupied{Patient: "Ben"})
			require.NoError(t, err)
			require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				return store.AppendTx(t.Context(), tx, next)
			}))
			b, err = beds.Load(t.Context(), tenant, bed)
			require.NoError(t, err)
			require.Equal(t, 2, b.Version())
			read, err := store.ByID(t.Context(), next.ID)
			require.NoError(t, err)
			require.JSONEq(t, `{"patient":"Ben"}`, string(read.Data))
			for _, list := range []func() (worker.Page, error){
				func() (worker.Page, error) { return store.ByAggregate(t.Context(), "Bed", bed, worker.Query{}) },
				func() (worker.Page, error) { return store.ByTenant(t.Context(), tenant.TenantID, worker.Query{}) },
			} {
				page, err := list()
				require.NoError(t, err)
				require.Len(t, page.Events, 2)
			}
			for _, list := range []func() (worker.Page, error){
				func() (worker.Page, error) { return store.ByType(t.Context(), "BedOccupied", worker.Query{Limit: 10}) },
				func() (worker.Page, error) {
					return store.ByCorrelation(t.Context(), next.CorrelationID, worker.Query{})
				},
			} {
				page, err := list()
				require.NoError(t, err)
				require.True(t, slices.ContainsFunc(page.Events, func(e worker.Event) bool { return e.ID == next.ID }))
			}
			_, err = store.ByID(t.Context(), uuid.New())
			require.ErrorIs(t, err, worker.ErrNoEvent)
		})
	}
}

func TestOpenStoreOnSQLite(t *testing.T) {
	t.Parallel()
	store, err := worker.OpenStore(t.Context(), worker.StoreConfig{SQLitePath: filepath.Join(t.TempDir(), "new.db")})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	require.NoError(t, store.Ping(t.Context()), "a new file has the schema")
	require.ErrorContains(t, store.AppendTx(t.Context(), nil), "the store is SQLite")
}

func TestOpenStoreRefusesWhatIsNotOneStore(t *testing.T) {
	t.Parallel()
	for _, config := range []worker.StoreConfig{
		{},
		{MaxConns: 4},
		{DatabaseURL: "postgres://secret", SQLitePath: "a.db"},
		{SQLitePath: "a.db", MaxConns: 3},
		{DatabaseURL: "postgres://secret:secret@:port/"},
		{Pool: &pgxpool.Pool{}, DatabaseURL: "postgres://secret"},
	} {
		_, err := worker.OpenStore(t.Context(), config)
		require.ErrorContains(t, err, "open")
		require.NotContains(t, err.Error(), "secret")
	}
	_, err := worker.OpenStore(t.Context(), worker.StoreConfig{DatabaseURL: "postgres://127.0.0.1:1/none"})
	require.ErrorIs(t, err, worker.ErrUnavailable)
}
