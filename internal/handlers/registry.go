// Package handlers is where users say what happens when an event arrives: a handler is a name, the event types it is
// for, and a function of the event and its decoded data that returns the events that follow.
//
//	handlers.On(reg, "PatientRegistered", "welcome-patient",
//		func(ctx context.Context, e events.Event, p PatientRegistered) ([]events.Event, error) {
//			if p.Name == "" {
//				return nil, handlers.Permanent(errors.New("patient has no name"))
//			}
//			return events.Follow(e, WelcomeMessageRequested{…})
//		})
//
// A handler with SQL of its own registers it with the store's InTx (of package postgres or sqlite), and it is done in
// the very transaction of the follow-up events:
//
//	err := postgres.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
//		_, err := tx.Exec(ctx, "UPDATE patients SET welcomed = true WHERE id = $1", e.AggregateID)
//		return err
//	})
//
// What the worker promises of it: the follow-up events are appended in one transaction with the record that this
// handler has handled this event and with the SQL that it has registered, so each (handler, event) takes effect in the store exactly once, however often the
// event is delivered. Effects outside the store (an e-mail, say) happen at least once. The handlers of an event run one
// after another in the order of their registration; one that fails neither stops the others nor makes them run again.
package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/migrations"
)

// Registry holds the handlers of a worker, in the order of their registration. It is filled before the worker starts and
// not safe for concurrent use until then. What is wrong with a registration is reported by [NewDispatcher].
//
// It is also the [events.Streams] of the handlers' repositories: within a handler, with its context, those of the store or of
// the dry run that it runs for. So handlers may be registered several times, and run at once.
type Registry struct {
	handlers []handler
	shown    []func() events.Stateful
	sets     []migrations.Set
	problems []error
}

type streamsKey struct{}

// withStreams is the context of a handler whose repositories use s.
func withStreams(ctx context.Context, s events.Streams) context.Context {
	return context.WithValue(ctx, streamsKey{}, s)
}

var errNoStreams = errors.New("a repository on an app works in handlers alone, with the context of the handler")

// AppendMany implements [events.Streams].
func (reg *Registry) AppendMany(ctx context.Context, batch []events.Event) error {
	streams, found := ctx.Value(streamsKey{}).(events.Streams)
	if !found {
		return errNoStreams
	}
	return streams.AppendMany(ctx, batch)
}

// Stream implements [events.Streams].
func (reg *Registry) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	streams, found := ctx.Value(streamsKey{}).(events.Streams)
	if !found {
		return func(yield func(events.Event, error) bool) { yield(events.Event{}, errNoStreams) }
	}
	return streams.Stream(ctx, aggregateType, aggregateID, afterVersion)
}

// BelongTo makes the handlers registered so far those of a service: their names begin with its own. "" is none.
func BelongTo(reg *Registry, service string) {
	for i, h := range reg.handlers {
		h.name = deadletter.OfService(service, h.name)
		if len(h.name) > maxNameLength {
			reg.problems = append(reg.problems, fmt.Errorf("handler %q: its name with that of the service is longer than %d bytes", h.name, maxNameLength))
		}
		reg.handlers[i] = h
	}
}

// Types are the event types that handlers are for; all is true if one is for those of all types.
func Types(reg *Registry) (types []string, all bool) {
	for _, h := range reg.handlers {
		types, all = append(types, h.types...), all || h.types == nil
	}
	slices.Sort(types)
	return slices.Compact(types), all
}

// Names are those of the handlers, in the order of their registration.
func (reg *Registry) Names() []string {
	names := make([]string, len(reg.handlers))
	for i, h := range reg.handlers {
		names[i] = h.name
	}
	return names
}

// EventTypes returns by handler the event types it is for; nil is all.
func (reg *Registry) EventTypes() map[string][]string {
	types := map[string][]string{}
	for _, h := range reg.handlers {
		types[h.name] = h.types
	}
	return types
}

// Most is the largest number of handlers that one event has.
func Most(reg *Registry) int {
	counts, ofAll := map[string]int{}, 0
	for _, h := range reg.handlers {
		if h.types == nil {
			ofAll++
		}
		for _, eventType := range h.types {
			counts[eventType]++
		}
	}
	return ofAll + slices.Max(append(slices.Collect(maps.Values(counts)), 0))
}

// Check names all that is wrong with the registrations.
func (reg *Registry) Check() error {
	if len(reg.problems) > 0 {
		return fmt.Errorf("register handlers: %w", errors.Join(reg.problems...))
	}
	return nil
}

// checked returns the handlers, each with its logger, or [Registry.Check].
func (reg *Registry) checked(logger *slog.Logger) ([]handler, error) {
	if err := reg.Check(); err != nil {
		return nil, err
	}
	all := slices.Clone(reg.handlers)
	for i := range all {
		all[i].logger = logger.With("handler", all[i].name)
	}
	return all, nil
}

// handler is a registration without its data type.
type handler struct {
	name string
	// types are the event types it is for; nil is all.
	types   []string
	call    func(context.Context, events.Event) ([]events.Event, error)
	options []Option
	logger  *slog.Logger
}

// isFor tells whether the handler is for events of a type, and the one that is wanted; "" wants all.
func (h handler) isFor(eventType, wanted string) bool {
	return (h.types == nil || slices.Contains(h.types, eventType)) && (wanted == "" || wanted == h.name)
}

// ShowState lets the console show the state of an aggregate after each of its events. Without it the console shows the events
// alone. Each call of empty returns a new aggregate.
func ShowState[A events.Stateful](reg *Registry, empty func() A) {
	reg.shown = append(reg.shown, func() events.Stateful { return empty() })
}

// Shown make the aggregates whose state is shown.
func Shown(reg *Registry) []func() events.Stateful { return reg.shown }

// Migrations registers the SQL files of a program's own tables; see [migrations.Set].
func Migrations(reg *Registry, name string, files fs.FS) {
	switch {
	case !setName.MatchString(name) || name == "worker":
		reg.problems = append(reg.problems, fmt.Errorf(
			"migrations %q: the name must be of 1 to 40 of a-z, 0-9 and _, begin with a letter, and not be worker", name))
	case files == nil:
		reg.problems = append(reg.problems, fmt.Errorf("migrations %q: the files are nil", name))
	case slices.ContainsFunc(reg.sets, func(other migrations.Set) bool { return other.Name == name }):
		reg.problems = append(reg.problems, fmt.Errorf("migrations %q: the name is registered twice", name))
	}
	reg.sets = append(reg.sets, migrations.Set{Name: name, Files: files})
}

var setName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// MigrationsOf are those that are registered, in their order.
func MigrationsOf(reg *Registry) []migrations.Set { return reg.sets }

// Option says something more of a handler.
type Option string

// OutsideEffects declares that a handler has effects outside the store's transaction: it sends an e-mail, calls another
// service to change something there, or writes with a database connection of its own. Whether it would pass cannot be
// told without those effects, so a [DryRun] does not run it; it runs all others.
const OutsideEffects Option = "outside effects"

// On registers a handler for one event type. name tells handlers apart, in the record of what was handled and in dead
// letters: it must be unique, contains no /, and renaming a handler makes it handle redelivered events again.
//
// Data that does not decode into a T is a permanent failure. The context ends with the handler's timeout and with the
// worker's grace period. The returned events are made by [events.Follow] or by an aggregate; they must carry e's tenant
// and correlation and have e as their cause. One that has effects outside the store says so: [OutsideEffects].
func On[T any](
	reg *Registry, eventType, name string, handle func(context.Context, events.Event, T) ([]events.Event, error), options ...Option,
) {
	OnEach(reg, []string{eventType}, name, handle, options...)
}

// OnEach registers a handler for several event types whose data decodes into one type; see [On].
func OnEach[T any](
	reg *Registry, eventTypes []string, name string, handle func(context.Context, events.Event, T) ([]events.Event, error), options ...Option,
) {
	if len(eventTypes) == 0 || slices.Contains(eventTypes, "") {
		reg.problems = append(reg.problems, fmt.Errorf("handler %q: an event type is missing", name))
	}
	for _, eventType := range eventTypes {
		if err := events.CheckType(eventType); err != nil && eventType != "" {
			reg.problems = append(reg.problems, fmt.Errorf("handler %q: event type %+q %w", name, eventType, err))
		}
	}
	reg.add(handler{name: name, types: slices.Clone(eventTypes), call: typed(handle), options: options}, handle == nil)
}

// OnAll registers a handler for the events of all types, with their data as it stands; see [On].
func OnAll(
	reg *Registry, name string, handle func(context.Context, events.Event, json.RawMessage) ([]events.Event, error), options ...Option,
) {
	call := func(ctx context.Context, e events.Event) ([]events.Event, error) { return handle(ctx, e, e.Data) }
	reg.add(handler{name: name, call: call, options: options}, handle == nil)
}

func typed[T any](handle func(context.Context, events.Event, T) ([]events.Event, error)) func(context.Context, events.Event) ([]events.Event, error) {
	return func(ctx context.Context, e events.Event) ([]events.Event, error) {
		data, err := events.DataOf[T](e)
		if err != nil {
			return nil, Permanent(err)
		}
		return handle(ctx, e, data)
	}
}

func (reg *Registry) add(h handler, missing bool) {
	switch err := events.CheckVisible(h.name); {
	case h.name == "":
		reg.problems = append(reg.problems, errors.New("a handler has no name"))
	case err != nil:
		reg.problems = append(reg.problems, fmt.Errorf("handler %+q: its name %w", h.name, err))
	case strings.Contains(h.name, "/"):
		reg.problems = append(reg.problems, fmt.Errorf("handler %q: its name contains /, which ends the name of a service", h.name))
	case len(h.name) > maxNameLength:
		reg.problems = append(reg.problems, fmt.Errorf("handler %q: its name is longer than %d bytes", h.name, maxNameLength))
	case slices.ContainsFunc(h.options, func(o Option) bool { return o != OutsideEffects }):
		reg.problems = append(reg.problems, fmt.Errorf("handler %q: its options are %q, of which not all are known", h.name, h.options))
	case missing:
		reg.problems = append(reg.problems, fmt.Errorf("handler %q: its function is nil", h.name))
	case slices.ContainsFunc(reg.handlers, func(other handler) bool { return other.name == h.name }):
		reg.problems = append(reg.problems, fmt.Errorf("handler %q: the name is registered twice", h.name))
	}
	reg.handlers = append(reg.handlers, h)
}

// maxNameLength is what the inbox's column holds.
const maxNameLength = 200

// Permanent marks an error that no retry will mend: the event goes to the dead letters at once. nil stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return backoff.Permanent(err)
}

// IsPermanent tells whether err is, or wraps, an error marked by [Permanent].
func IsPermanent(err error) bool { return middleware.IsPermanent(err) }
