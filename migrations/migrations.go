// Package migrations holds the schemas of both stores and brings databases from one version to another.
//
// A migration is an SQL file, named by its number, or a Go function where it has to compute; what has been released is never edited, only followed by the next.
package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/healz/worker/internal/store"
)

// Table is the table of the versions that a database has: a row for each, its number in version_id.
const Table = "worker_migrations"

// Status says whether a database has a version of the schema.
type Status struct {
	Version int64 `json:"version"`
	// Name says what the version brings.
	Name string `json:"name"`
	// AppliedAt is when the database got it; zero if it has not.
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// Migrator brings one database from version to version, each in a transaction of its own.
type Migrator struct{ provider *goose.Provider }

func newMigrator(
	dialect goose.Dialect, db *sql.DB, files fs.FS, folder string, options ...goose.ProviderOption,
) (*Migrator, error) {
	files, err := fs.Sub(files, folder)
	if err != nil {
		return nil, err
	}
	options = append(options, goose.WithTableName(Table), goose.WithDisableGlobalRegistry(true))
	provider, err := goose.NewProvider(dialect, db, files, options...)
	if err != nil {
		return nil, fmt.Errorf("load the migrations: %w", err)
	}
	return &Migrator{provider: provider}, nil
}

// Latest is the version that this worker needs.
func (m *Migrator) Latest() int64 {
	sources := m.provider.ListSources()
	return sources[len(sources)-1].Version
}

// Check is [store.ErrNoSchema] or [store.ErrNewerSchema] if a database has another version than this worker needs.
func (m *Migrator) Check(version int64) error {
	switch latest := m.Latest(); {
	case version < latest:
		return fmt.Errorf("version %d of %d: %w", version, latest, store.ErrNoSchema)
	case version > latest:
		return fmt.Errorf("version %d, known are %d: %w", version, latest, store.ErrNewerSchema)
	}
	return nil
}

// Up applies all versions that the database lacks. It is [store.ErrNewerSchema] when it has one that this worker does
// not know.
func (m *Migrator) Up(ctx context.Context) error {
	if _, err := m.version(ctx); err != nil {
		return err
	}
	_, err := m.provider.Up(ctx)
	return err
}

// Down reverts the newest version. It is [store.ErrNoSchema] when there is none.
func (m *Migrator) Down(ctx context.Context) error {
	version, err := m.version(ctx)
	if err != nil {
		return err
	}
	if version == 0 {
		return store.ErrNoSchema
	}
	_, err = m.provider.Down(ctx)
	return err
}

// Status lists the versions that this worker knows, oldest first.
func (m *Migrator) Status(ctx context.Context) ([]Status, error) {
	known, err := m.provider.Status(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Status, len(known))
	for i, k := range known {
		_, name, _ := strings.Cut(strings.TrimSuffix(path.Base(k.Source.Path), ".sql"), "_")
		if k.Source.Type == goose.TypeGo {
			name = lettersName
		}
		list[i] = Status{Version: k.Source.Version, Name: name, AppliedAt: k.AppliedAt}
	}
	return list, nil
}

// version is the newest that the database has, if this worker knows it.
func (m *Migrator) version(ctx context.Context) (int64, error) {
	version, err := m.provider.GetDBVersion(ctx)
	if err == nil && version > m.Latest() {
		err = fmt.Errorf("version %d: %w", version, store.ErrNewerSchema)
	}
	return version, err
}
