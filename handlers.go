package worker

import (
	"context"
	"database/sql"
	"encoding/json"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
)

// App is what handlers are registered with: a program has a function of it, which it gives to package service. The function may be
// called more than once, also where there is no store: it only registers. All that is wrong with the registrations is reported
// together when the worker starts; in a test, Check reports it. Names are those of the handlers, and EventTypes the types that each
// of them is for (nil is all).
//
// It is also the [Streams] of the repositories of handlers: its AppendMany and Stream work in a handler, with the context of the
// handler, and nowhere else. In a dry run (`worker dlq try`) they work in the transaction that is rolled back.
type App = handlers.Registry

// Option says something more of a handler; [OutsideEffects] is the only one.
type Option = handlers.Option

// OutsideEffects declares that a handler has effects outside the store's transaction: it sends an e-mail, calls another service
// to change something there, or writes with a database connection of its own. A dry run (`worker dlq try`) does not run it; it
// runs all others.
const OutsideEffects = handlers.OutsideEffects

// On registers a handler for one event type. name tells handlers apart, in the record of what was handled and in dead letters:
// it must be unique, contains no /, and a handler that is renamed handles redelivered events again.
//
// What the worker promises: the events that the handler returns are appended in one transaction with the record that it has
// handled its event, and with the SQL that it has registered ([InTx]), so that each pair of handler and event takes effect in
// the store exactly once, however often the event is delivered. Effects outside the store, such as an e-mail, happen at least
// once. The handlers of an event run one after another in the order of their registration; one that fails neither stops the
// others nor makes them run again.
//
// An error is tried again, with backoff, and then makes the event a dead letter; see [Permanent]. So does a panic. Data that does
// not decode into a T is a permanent failure. The context ends with the handler's timeout and with the worker's grace period.
// The returned events are made by [Follow] or by a [Repository]'s Decide: they must carry e's tenant and correlation, and have
// e as their cause.
func On[T any](
	app *App, eventType, name string, handle func(ctx context.Context, e Event, data T) ([]Event, error), options ...Option,
) {
	handlers.On(app, eventType, name, handle, options...)
}

// OnEach registers a handler for several event types whose data decodes into one type; see [On].
func OnEach[T any](
	app *App, eventTypes []string, name string, handle func(ctx context.Context, e Event, data T) ([]Event, error), options ...Option,
) {
	handlers.OnEach(app, eventTypes, name, handle, options...)
}

// OnAll registers a handler for the events of all types, with their data as it stands; see [On].
func OnAll(
	app *App, name string, handle func(ctx context.Context, e Event, data json.RawMessage) ([]Event, error), options ...Option,
) {
	handlers.OnAll(app, name, handle, options...)
}

// Permanent marks an error that no retry will mend: the event becomes a dead letter at once. nil stays nil.
func Permanent(err error) error { return handlers.Permanent(err) }

// ShowState lets the console show the state of an aggregate after each of its events. Without it the console shows the events
// alone. Each call of empty returns a new aggregate.
func ShowState[A Stateful](app *App, empty func() A) { handlers.ShowState(app, empty) }

// Migrations registers the SQL files of the program's own tables, in the format of goose, as 00001_patients.sql: the statements
// behind "-- +goose Up" bring a version, and those behind "-- +goose Down" take it back. `run` and `migrate up` apply those that
// the database lacks, after the worker's own, one process at a time, and wait a minute for a lock. Their versions are in the
// table NAME_migrations. A file that was released stays as it is.
//
// files is an embed.FS of a folder, say. A program for both databases has folders postgres and sqlite in it. name is of a-z, 0-9
// and _, and the program's own on the database.
func Migrations(app *App, name string, files fs.FS) { handlers.Migrations(app, name, files) }

// InTx registers SQL of a handler's own for the transaction in which the worker records that the handler has handled its event
// and appends what follows. A handler calls it with its context, as often as it likes, on a worker whose store is Postgres;
// anywhere else it is [ErrNoTransaction]. It only registers: once the handler has returned without an error, the transaction
// begins, record and follow-up events are written, and work runs in the order of registration.
//
// An error of the work, or of the commit, rolls everything back and is the handler's: the next attempt runs the handler anew,
// and all that it registers. When the connection is lost, the work alone runs again. Work does not run when another delivery
// of the event was first.
//
// While it runs, the transaction holds back the relay: keep the work to a few fast statements, and do all else in the handler
// itself. It is READ COMMITTED. The work may begin nested transactions, and cannot end the one it is given. It neither appends
// events, which are what the handler returns, nor calls the store: each might wait for the other's connection.
func InTx(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
	return postgres.InTx(ctx, work)
}

// InSQLiteTx is [InTx] on a worker whose store is SQLite. While work runs, no other writer can write to the file. It closes its
// rows before it goes on, passes values as arguments, and does not commit or roll back.
func InSQLiteTx(ctx context.Context, work func(ctx context.Context, tx *sql.Tx) error) error {
	return sqlite.InTx(ctx, work)
}
