// Package migrations holds the schemas of both stores and brings databases from one version to another.
//
// A migration is an SQL file, named by its number, or a Go function where it has to compute. What has been released keeps
// its number and its effect.
//
// On Postgres other programs write to the tables meanwhile, and must not wait for longer than a second. So a migration of
// a table that has rows has no transaction (-- +goose NO TRANSACTION), builds and drops indexes CONCURRENTLY, adds a column
// with a constant default only, and takes a strong lock by statements that begin with SET LOCAL lock_timeout = '300ms'. Each
// of its statements may run again.
//
// Programs of an older version go on with the schema of a newer one, so that workers can be updated, and rolled back, one
// after the other. A migration with which they could not work says so in the database, as they do not know its file:
// number N runs COMMENT ON TABLE worker_migrations IS 'breaking: N' on Postgres, PRAGMA user_version = N on SQLite. Its
// way down puts back the number that was there.
package migrations

import (
	"context"
	"database/sql"
	"errors"
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

// Set is the migrations of a program that builds on the worker: SQL files for tables of its own.
type Set struct {
	// Name names the table of their versions, NAME_migrations.
	Name string
	// Files are NNNNN_what.sql, in the folders postgres and sqlite where there are such. All may be in one folder.
	Files fs.FS
}

// Status says whether a database has a version of the schema.
type Status struct {
	// Of is the name of the [Set]; "" is the worker's own schema.
	Of      string `json:"of,omitempty"`
	Version int64  `json:"version"`
	// Name says what the version brings.
	Name string `json:"name"`
	// AppliedAt is when the database got it; zero if it has not.
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// Schema is what a database says of its schema.
type Schema struct {
	// Version is the newest migration that was applied.
	Version int64
	// Breaking is the newest migration that a program has to know; 0 if there is none.
	Breaking int64
}

// The statements that select the two numbers of a [Schema].
const (
	SelectPostgres = "SELECT coalesce(max(version_id), 0), coalesce(substring(obj_description('" + Table +
		"'::regclass, 'pg_class') FROM 'breaking: ([0-9]+)')::bigint, 0) FROM " + Table + " WHERE is_applied"
	SelectSQLite = "SELECT coalesce(max(version_id), 0), (SELECT user_version FROM pragma_user_version) FROM " + Table +
		" WHERE is_applied"
)

// Migrator brings one database from version to version.
type Migrator struct {
	provider *goose.Provider
	db       *sql.DB
	dialect  goose.Dialect
	of       string // the name of a set; "" is the worker's own schema
}

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
	return &Migrator{provider: provider, db: db, dialect: dialect}, nil
}

// Of returns the migrator of a set on the same database.
func (m *Migrator) Of(s Set) (*Migrator, error) {
	folder := map[goose.Dialect]string{goose.DialectPostgres: "postgres", goose.DialectSQLite3: "sqlite"}[m.dialect]
	options := []goose.ProviderOption{goose.WithTableName(s.Name + "_migrations"), goose.WithDisableGlobalRegistry(true)}
	if m.dialect == goose.DialectPostgres {
		options = append(options, goose.WithSessionLocker(&locker{db: m.db}))
	}
	files, err := under(s.Files, folder)
	if err != nil {
		return nil, fmt.Errorf("load the migrations of %s: %w", s.Name, err)
	}
	provider, err := goose.NewProvider(m.dialect, m.db, files, options...)
	if err != nil {
		return nil, fmt.Errorf("load the migrations of %s: %w", s.Name, err)
	}
	return &Migrator{provider, m.db, m.dialect, s.Name}, nil
}

// under returns the files of a database: those in the folder of its name, if there are folders of databases. A single other folder
// is gone into, as files that are embedded are in one.
func under(files fs.FS, database string) (fs.FS, error) {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		switch {
		case e.IsDir() && (e.Name() == "postgres" || e.Name() == "sqlite"):
			return fs.Sub(files, database)
		case e.IsDir() && len(entries) == 1:
			sub, err := fs.Sub(files, e.Name())
			if err != nil {
				return nil, err
			}
			return under(sub, database)
		}
	}
	return files, nil
}

// Latest is the version that this worker needs, and the newest that it knows.
func (m *Migrator) Latest() int64 {
	sources := m.provider.ListSources()
	return sources[len(sources)-1].Version
}

// Latest returns the newest versions that this program knows, of Postgres and of SQLite.
func Latest() (onPostgres, onSQLite int64, err error) {
	onPostgres, err = latest(postgres, "postgres", postgresLettersVersion)
	if err != nil {
		return 0, 0, err
	}
	onSQLite, err = latest(sqlite, "sqlite", sqliteLettersVersion)
	return onPostgres, onSQLite, err
}

func latest(files fs.FS, folder string, inGo int64) (int64, error) {
	names, err := fs.Glob(files, folder+"/0*.sql")
	if err != nil {
		return 0, err
	}
	newest := inGo
	for _, name := range names {
		n, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		newest = max(newest, n)
	}
	return newest, nil
}

// Check is [store.ErrNoSchema] if the schema lacks a version that this worker needs, and [store.ErrNewerSchema] if it is
// one of a newer worker with which this one cannot work.
func (m *Migrator) Check(s Schema) error {
	switch latest := m.Latest(); {
	case s.Version == 0:
		return fmt.Errorf("the database has no schema, and this worker needs version %d: %w", latest, store.ErrNoSchema)
	case s.Version < latest:
		return fmt.Errorf("the schema has version %d, and this worker needs version %d: %w", s.Version, latest, store.ErrNoSchema)
	case s.Breaking > latest:
		return fmt.Errorf("version %d, known are %d: %w", s.Version, latest, store.ErrNewerSchema)
	}
	return nil
}

// Up applies all versions that the database lacks; a newer schema is left as it is. It is [store.ErrNewerSchema] when
// this worker cannot work with that.
func (m *Migrator) Up(ctx context.Context) error {
	version, err := m.provider.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if version <= m.Latest() {
		_, err = m.provider.Up(ctx)
		if failed, isPartial := errors.AsType[*goose.PartialError](err); isPartial {
			return fmt.Errorf("version %d: %w", failed.Failed.Source.Version, failed.Err)
		}
		return err
	}
	if m.of != "" { // which a newer version of the program has brought further
		return nil
	}
	statement := SelectPostgres
	if m.dialect == goose.DialectSQLite3 {
		statement = SelectSQLite
	}
	var s Schema
	if err := m.db.QueryRowContext(ctx, statement).Scan(&s.Version, &s.Breaking); err != nil {
		return err
	}
	return m.Check(s)
}

// Down reverts the newest version. It is [store.ErrNoSchema] when there is none, and [store.ErrNewerSchema] when this
// worker does not know it.
func (m *Migrator) Down(ctx context.Context) error {
	version, err := m.provider.GetDBVersion(ctx)
	switch {
	case err != nil:
		return err
	case version == 0:
		return store.ErrNoSchema
	case version > m.Latest():
		return fmt.Errorf("version %d: %w", version, store.ErrNewerSchema)
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
		list[i] = Status{Of: m.of, Version: k.Source.Version, Name: name, AppliedAt: k.AppliedAt}
	}
	return list, nil
}
