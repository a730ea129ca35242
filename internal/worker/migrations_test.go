package worker_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
	"github.com/healz/worker/migrations"
)

// A program's own tables go from version to version, whatever becomes of the worker's.
func TestMigrationsOfTheProgram(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]func(*testing.T) worker.Settings{
		"SQLite": func(t *testing.T) worker.Settings {
			t.Helper()
			return worker.Settings{SQLitePath: filepath.Join(t.TempDir(), "own.db")}
		},
		"Postgres": func(t *testing.T) worker.Settings {
			t.Helper()
			return worker.Settings{DatabaseURL: testservers.Postgres(t), MaxConns: 4}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := settings(t).OpenStore(t.Context())
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			require.NoError(t, s.Migrate(t.Context()))
			file := func(up, down string) *fstest.MapFile {
				return &fstest.MapFile{Data: []byte("-- +goose Up\n" + up + ";\n-- +goose Down\n" + down + ";\n")}
			}
			patients := file("CREATE TABLE patients (id integer)", "DROP TABLE patients")
			older := migrations.Set{Name: "billing", Files: fstest.MapFS{"00001_patients.sql": patients}}
			newer := migrations.Set{Name: "billing", Files: fstest.MapFS{
				"postgres/00001_patients.sql": patients, "postgres/00002_bills.sql": file("CREATE TABLE bills (id uuid)", "DROP TABLE bills"),
				"sqlite/00001_patients.sql": patients, "sqlite/00002_bills.sql": file("CREATE TABLE bills (id text)", "DROP TABLE bills"),
			}}
			step := func(set migrations.Set, do func(*migrations.Migrator, context.Context) error) error {
				return s.WithMigrations(t.Context(), set, func(ctx context.Context, m *migrations.Migrator) error { return do(m, ctx) })
			}
			applied := func(set migrations.Set) (names []string) {
				require.NoError(t, step(set, func(m *migrations.Migrator, ctx context.Context) error {
					list, err := m.Status(ctx)
					for _, v := range list {
						require.Equal(t, "billing", v.Of)
						if !v.AppliedAt.IsZero() {
							names = append(names, v.Name)
						}
					}
					return err
				}))
				return names
			}
			require.Empty(t, applied(newer))
			require.NoError(t, step(older, (*migrations.Migrator).Up))
			require.Equal(t, []string{"patients"}, applied(newer))
			var starts errgroup.Group // of several processes
			for range 4 {
				starts.Go(func() error { return step(newer, (*migrations.Migrator).Up) })
			}
			require.NoError(t, starts.Wait())
			require.Equal(t, []string{"patients", "bills"}, applied(newer))
			require.NoError(t, step(older, (*migrations.Migrator).Up), "an older program goes on with the tables of a newer one")
			require.ErrorIs(t, step(older, (*migrations.Migrator).Down), store.ErrNewerSchema)
			require.NoError(t, step(newer, (*migrations.Migrator).Down))
			require.Equal(t, []string{"patients"}, applied(newer))

			bad := migrations.Set{Name: "billing", Files: fstest.MapFS{"00001_patients.sql": patients, "00002_bad.sql": file("CREATE TABEL", "")}}
			require.ErrorContains(t, step(bad, (*migrations.Migrator).Up), "version 2: ")
			require.Equal(t, []string{"patients"}, applied(newer))
			require.ErrorContains(t, step(migrations.Set{Name: "none", Files: fstest.MapFS{}}, (*migrations.Migrator).Up), "migrations of none")
			require.NoError(t, s.Ping(t.Context()))
			require.ErrorIs(t, takeBack(t, s), store.ErrNoSchema, "the worker's own schema is another matter")
			require.Equal(t, []string{"patients"}, applied(newer))
		})
	}
}

// takeBack takes back as many versions as it can, and returns the error that ended it, after all were applied again.
func takeBack(t *testing.T, s worker.Backend) error {
	t.Helper()
	var refused error
	for refused == nil {
		refused = s.MigrateDown(t.Context())
	}
	require.NoError(t, s.Migrate(t.Context()))
	return refused
}
