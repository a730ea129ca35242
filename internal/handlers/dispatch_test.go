package handlers_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
)

type registered struct {
	Name string `json:"name"`
}

func (registered) EventType() string { return "Registered" }

type welcomed struct{}

func (welcomed) EventType() string     { return "Welcomed" }
func (welcomed) AggregateType() string { return "Message" }

type billed struct{}

func (billed) EventType() string     { return "Billed" }
func (billed) AggregateType() string { return "Bill" }

// faulty is a store that fails as often as it has errors left, which a real one cannot be made to do at a given moment.
type faulty struct {
	*sqlite.Store
	handled, record []error
}

func (f *faulty) Handled(ctx context.Context, e events.Event) ([]string, error) {
	if len(f.handled) > 0 {
		err := f.handled[0]
		f.handled = f.handled[1:]
		return nil, err
	}
	return f.Store.Handled(ctx, e)
}

func (f *faulty) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	if len(f.record) > 0 {
		err := f.record[0]
		f.record = f.record[1:]
		return err
	}
	return f.Store.Record(ctx, handler, e, followUps)
}

// faultyLetters is a table of dead letters that fails as often as it has errors left.
type faultyLetters struct {
	*deadletter.Table
	settled []error
}

func (f *faultyLetters) Settled(ctx context.Context, letterID, replayID string, handlers []string, reached bool) error {
	if len(f.settled) > 0 {
		err := f.settled[0]
		f.settled = f.settled[1:]
		return err
	}
	return f.Table.Settled(ctx, letterID, replayID, handlers, reached)
}

// bench is a dispatcher on a real store, behind the router's Retry, with its log.
type bench struct {
	t         *testing.T
	path      string
	store     *faulty
	letters   *faultyLetters
	log       *bytes.Buffer
	outages   middleware.Outages
	observers observe.All // one, which a test may replace
	handle    message.HandlerFunc
}

func (b *bench) Handle(m *message.Message) error {
	_, err := b.handle(m)
	return err
}

func newBench(t *testing.T, register func(*handlers.Registry)) *bench {
	t.Helper()
	return newBenchAfter(t, handlers.Continue, register)
}

func newBenchAfter(t *testing.T, after handlers.AfterDeadLetter, register func(*handlers.Registry)) *bench {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	opened, err := sqlite.Open(t.Context(), path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, opened.Close()) })
	require.NoError(t, opened.Migrate(t.Context()))
	s := &faulty{Store: opened}
	reg := &handlers.Registry{}
	register(reg)
	log := &bytes.Buffer{}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	letters := &faultyLetters{Table: deadletter.NewTable(opened.SQL())}
	b := &bench{t: t, path: path, store: s, letters: letters, log: log, observers: observe.All{observe.None{}}}
	retry := middleware.Retry{
		Attempts: 3, Initial: time.Millisecond, Max: 2 * time.Millisecond, Logger: logger, Outages: &b.outages,
	}
	d, err := handlers.NewDispatcher(reg, handlers.Config{
		Inbox: s, Letters: letters, After: after, Retry: retry, Timeout: 50 * time.Millisecond, MaxMessage: 1 << 20,
		Observer: b.observers, Logger: logger,
	})
	require.NoError(t, err)
	b.handle = retry.Middleware(func(m *message.Message) ([]*message.Message, error) { return nil, d.Handle(m) })
	return b
}

// execute runs statements as another program does.
func (b *bench) execute(statements string) {
	b.t.Helper()
	db, err := sql.Open("sqlite", "file:"+b.path+"?_busy_timeout=10000")
	require.NoError(b.t, err)
	_, err = db.ExecContext(b.t.Context(), statements)
	require.NoError(b.t, errors.Join(err, db.Close()))
}

func newEvent(t *testing.T, data events.Data) events.Event {
	t.Helper()
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, data)
	require.NoError(t, err)
	return e
}

// deliver hands e to the dispatcher as the bus would.
func (b *bench) deliver(e events.Event) error {
	b.t.Helper()
	return b.replay(e, "")
}

// replay delivers e for one handler alone; "" is all.
func (b *bench) replay(e events.Event, handler string) error {
	b.t.Helper()
	body, err := json.Marshal(e)
	require.NoError(b.t, err)
	m := bus.NewMessage(body)
	if handler != "" {
		m.Metadata.Set(bus.ReplayHandlerKey, handler)
	}
	m.SetContext(b.t.Context())
	return b.Handle(m)
}

// followUps are the events of e's chain.
func (b *bench) followUps(e events.Event) []string {
	b.t.Helper()
	page, err := b.store.ByCorrelation(b.t.Context(), e.CorrelationID, store.Query{})
	require.NoError(b.t, err)
	var types []string
	for _, f := range page.Events {
		require.Equal(b.t, e.TenantID, f.TenantID)
		require.Equal(b.t, e.ID, f.CausationID.UUID)
		types = append(types, f.Type)
	}
	return types
}

func failures(t *testing.T, err error) []deadletter.Failure {
	t.Helper()
	require.Error(t, err)
	require.NotErrorIs(t, err, middleware.ErrStopping)
	return middleware.FailuresOf(err)
}

func welcome(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
	return events.Follow(e, welcomed{})
}

func bill(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
	return events.Follow(e, billed{})
}

func TestHandlersRunInOrderAndTakeEffectOnce(t *testing.T) {
	t.Parallel()
	var order []string
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			order = append(order, "welcome "+p.Name)
			return welcome(ctx, e, p)
		})
		handlers.OnAll(reg, "audit", func(_ context.Context, e events.Event, data json.RawMessage) ([]events.Event, error) {
			order = append(order, "audit "+e.Type+" "+string(data))
			return nil, nil
		})
		handlers.OnEach(reg, []string{"Other", "Registered"}, "bill", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			order = append(order, "bill")
			return bill(ctx, e, p)
		})
		handlers.On(reg, "Other", "other", welcome)
	})
	e := newEvent(t, registered{Name: "Ana"})
	require.NoError(t, b.deliver(e))
	require.NoError(t, b.deliver(e), "a redelivery")
	require.Equal(t, []string{"welcome Ana", `audit Registered {"name":"Ana"}`, "bill"}, order)
	require.Equal(t, []string{"Welcomed", "Billed"}, b.followUps(e))
}

func TestAFailingHandlerStopsNoOther(t *testing.T) {
	t.Parallel()
	ran := map[string]int{}
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "transient", func(context.Context, events.Event, registered) ([]events.Event, error) {
			ran["transient"]++
			return nil, errors.New("no paper")
		})
		handlers.On(reg, "Registered", "permanent", func(context.Context, events.Event, registered) ([]events.Event, error) {
			ran["permanent"]++
			return nil, handlers.Permanent(errors.New("no name"))
		})
		handlers.On(reg, "Registered", "welcome", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			if ran["welcome"]++; ran["welcome"] < 3 {
				return nil, errors.New("not yet")
			}
			return welcome(ctx, e, p)
		})
	})
	e := newEvent(t, registered{Name: "Ana"})
	failed := failures(t, b.deliver(e))
	require.Equal(t, map[string]int{"transient": 3, "permanent": 1, "welcome": 3}, ran)
	require.Len(t, failed, 2)
	require.Equal(t, []string{"transient", "no paper"}, []string{failed[0].Handler, failed[0].Reason})
	require.Equal(t, []string{"permanent", "no name"}, []string{failed[1].Handler, failed[1].Reason})
	require.Equal(t, []int{3, 1}, []int{failed[0].Attempts, failed[1].Attempts})
	require.False(t, failed[0].LastFailed.Before(failed[0].FirstFailed))
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))

	require.Error(t, b.deliver(e), "a redelivery")
	require.Equal(t, 3, ran["welcome"], "what succeeded does not run again")
}

func TestAReplayRunsOnlyItsHandler(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", welcome)
		handlers.On(reg, "Registered", "bill", bill)
	})
	e := newEvent(t, registered{Name: "Ana"})
	body, err := json.Marshal(e)
	require.NoError(t, err)
	m := bus.NewMessage(body)
	m.Metadata.Set(bus.ReplayHandlerKey, "bill")
	m.SetContext(t.Context())
	require.NoError(t, b.Handle(m))
	require.Equal(t, []string{"Billed"}, b.followUps(e))

	m.Metadata.Set(bus.ReplayHandlerKey, "gone")
	failed := failures(t, b.Handle(m))
	require.Equal(t, "gone", failed[0].Handler, "its letter stays one of that handler")
	require.Contains(t, failed[0].Reason, `handler "gone" is not registered for Registered: if it has another name now, replay the letter with --to`)
}

func TestFailures(t *testing.T) {
	t.Parallel()
	other := events.Origin{TenantID: uuid.New()}
	for name, test := range map[string]struct {
		handle   func(context.Context, events.Event, registered) ([]events.Event, error)
		attempts int
		reason   string
	}{
		"a panic": {func(context.Context, events.Event, registered) ([]events.Event, error) {
			panic("at the disco")
		}, 3, "panic: at the disco"},
		"a bug": {func(context.Context, events.Event, registered) ([]events.Event, error) {
			none := func() []string { return nil }
			return nil, errors.New(none()[0])
		}, 3, "panic: runtime error: index out of range [0] with length 0"},
		"too slow": {func(ctx context.Context, _ events.Event, _ registered) ([]events.Event, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, 3, "timed out after 50ms: context deadline exceeded"},
		"quotes the event": {func(_ context.Context, _ events.Event, p registered) ([]events.Event, error) {
			return nil, fmt.Errorf("no place for %s", p.Name)
		}, 3, "no place for ‹name›"},
		"another tenant's event": {func(context.Context, events.Event, registered) ([]events.Event, error) {
			e, err := events.New(other, "Message", uuid.New(), 1, welcomed{})
			return []events.Event{e}, err
		}, 1, "follow-up event Welcomed has another tenant_id than its cause: make it with events.Follow or events.CausedBy"},
		"a broken chain": {func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
			f, err := events.New(events.Origin{TenantID: e.TenantID}, "Message", uuid.New(), 1, welcomed{})
			return []events.Event{f}, err
		}, 1, "follow-up event Welcomed has another correlation_id than its cause: make it with events.Follow or events.CausedBy"},
		"an invalid event": {func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
			f, err := events.Follow(e, welcomed{})
			f[0].AggregateType = ""
			return f, err
		}, 1, "aggregate_type is missing"},
		"a gap in versions": {func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
			f, err := events.New(events.CausedBy(e), "Message", uuid.New(), 7, welcomed{})
			return []events.Event{f}, err
		}, 3, "gap in versions"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(reg *handlers.Registry) { handlers.On(reg, "Registered", "h", test.handle) })
			e := newEvent(t, registered{Name: "Ana Kovač"})
			failed := failures(t, b.deliver(e))
			require.Len(t, failed, 1)
			require.Contains(t, failed[0].Reason, test.reason)
			require.Equal(t, test.attempts, failed[0].Attempts)
			require.Equal(t, "h", failed[0].Handler)
			require.Empty(t, b.followUps(e))
			require.NotContains(t, b.log.String(), "Kovač")
		})
	}
}

func TestAPanicsStackGoesToTheLogAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "h", func(context.Context, events.Event, registered) ([]events.Event, error) {
			panic("at the disco")
		})
	})
	failed := failures(t, b.deliver(newEvent(t, registered{})))
	require.NotContains(t, failed[0].Reason, "dispatch_test.go")
	require.Contains(t, b.log.String(), "dispatch_test.go")
}

func welcoming(t *testing.T) *bench {
	t.Helper()
	return newBench(t, func(reg *handlers.Registry) { handlers.On(reg, "Registered", "welcome", welcome) })
}

func TestWhatIsNoEventReachesNoHandler(t *testing.T) {
	t.Parallel()
	m := message.NewMessage("1", []byte(`{"event_type":7}`))
	m.SetContext(t.Context())
	failed := failures(t, welcoming(t).Handle(m))
	require.Empty(t, failed[0].Handler)
	require.Contains(t, failed[0].Reason, "event_type is a JSON number, not a string")
	require.Contains(t, failed[0].Reason, "tenant_id is missing")
	require.Equal(t, 1, failed[0].Attempts)
}

func TestAnEventWithoutAHandlerIsDoneWith(t *testing.T) {
	t.Parallel()
	require.NoError(t, welcoming(t).deliver(newEvent(t, welcomed{})))
}

func TestDataOfAnotherShapeFailsForGood(t *testing.T) {
	t.Parallel()
	e := newEvent(t, registered{})
	e.Data = json.RawMessage(`{"name":{"first":"Ana Kovač"}}`)
	failed := failures(t, welcoming(t).deliver(e))
	require.Equal(t, 1, failed[0].Attempts, "no retry will mend it")
	require.Contains(t, failed[0].Reason, "field name: a JSON object does not fit into string")
}

func TestTheSameIDWithAnotherBodyIsRefused(t *testing.T) {
	t.Parallel()
	b := welcoming(t)
	e := newEvent(t, registered{Name: "Ana"})
	require.NoError(t, b.deliver(e))
	e.Data = json.RawMessage(`{"name":"Ben"}`)
	failed := failures(t, b.deliver(e))
	require.Empty(t, failed[0].Handler)
	require.Contains(t, failed[0].Reason, store.ErrContradiction.Error())
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))
}

// The SQL that a handler registers takes effect once, however often the handler, its SQL or the worker fails and the
// event is delivered.
func TestAHandlersOwnSQLTakesEffectOnce(t *testing.T) {
	t.Parallel()
	tries := 0
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "count", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			tries++
			err := sqlite.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO names (name) VALUES (?)", p.Name)
				return err
			})
			if err != nil {
				return nil, err
			}
			switch tries {
			case 1:
				return nil, errors.New("failed behind its registration")
			case 2, 3, 4:
				return events.Follow(e, welcomed{}, welcomed{}) // two of one aggregate, which is an error
			case 5:
				return nil, sqlite.InTx(ctx, func(context.Context, *sql.Tx) error { return errors.New("no place for " + p.Name) })
			}
			return welcome(ctx, e, p)
		})
	})
	db, err := sql.Open("sqlite", b.path+"?_busy_timeout=10000")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), "CREATE TABLE names (name TEXT)")
	require.NoError(t, err)
	e := newEvent(t, registered{Name: "Ana Kovač"})

	require.Error(t, b.deliver(e), "three tries that fail")
	for range 3 {
		require.NoError(t, b.deliver(e))
	}

	require.Equal(t, 6, tries)
	var count int
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM names").Scan(&count))
	require.Equal(t, 1, count)
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))
	require.NotContains(t, b.log.String(), "Kovač")
}

// A handler in hand when the worker stops has not failed, and its event is delivered again.
func TestAStopIsNoFailure(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "h", func(ctx context.Context, _ events.Event, _ registered) ([]events.Event, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
	})
	body, err := json.Marshal(newEvent(t, registered{}))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	m := bus.NewMessage(body)
	m.SetContext(ctx)
	time.AfterFunc(5*time.Millisecond, cancel)
	require.ErrorIs(t, b.Handle(m), middleware.ErrStopping)
}

func TestRegistrationsAreChecked(t *testing.T) {
	t.Parallel()
	reg := &handlers.Registry{}
	handlers.On(reg, "Registered", "", welcome)
	handlers.On(reg, "Registered", "\u202ebidi", welcome)
	handlers.On(reg, "Registered", "  ", welcome)
	handlers.OnEach(reg, []string{"a\u200b", " ", "#"}, "odd-type", welcome)
	handlers.On(reg, "", "nameless-type", welcome)
	handlers.OnEach(reg, nil, "no-types", welcome)
	handlers.On[registered](reg, "Registered", "nil", nil)
	handlers.OnAll(reg, "nil-for-all", nil)
	handlers.On(reg, "Registered", "twice", welcome)
	handlers.On(reg, "Other", "twice", welcome)
	handlers.Migrations(reg, "Billing", fstest.MapFS{})
	handlers.Migrations(reg, "worker", fstest.MapFS{})
	handlers.Migrations(reg, "same", fstest.MapFS{})
	handlers.Migrations(reg, "same", fstest.MapFS{})
	handlers.Migrations(reg, "none", nil)
	_, err := handlers.NewDispatcher(reg, handlers.Config{Logger: slog.New(slog.DiscardHandler)})
	for _, want := range []string{
		`migrations "Billing": the name must be`, `migrations "worker": the name must be`,
		`migrations "same": the name is registered twice`, `migrations "none": the files are nil`,
		`"\u202ebidi": its name contains the invisible character U+202E`, `"  ": its name is blank`,
		`"odd-type": event type "a\u200b" contains the invisible character U+200B`, `"odd-type": event type " " is blank`,
		`"odd-type": event type "#" contains # or *`,
		"a handler has no name", `"nameless-type": an event type is missing`, `"no-types": an event type is missing`,
		`"nil": its function is nil`, `"nil-for-all": its function is nil`, `"twice": the name is registered twice`,
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestPermanent(t *testing.T) {
	t.Parallel()
	require.NoError(t, handlers.Permanent(nil))
	require.True(t, handlers.IsPermanent(fmt.Errorf("wrapped: %w", handlers.Permanent(errors.New("x")))))
	require.False(t, handlers.IsPermanent(errors.New("x")))
}

// While the store is away, refuses the password, or lacks its tables, no event becomes a dead letter: it is the store's
// fault, and waited out.
func TestNoFaultOfTheStoreIsTheEvents(t *testing.T) {
	t.Parallel()
	faults := make([]error, 0, 12)
	for range 3 { // more than a handler's attempts, of each kind
		faults = append(faults, store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrNoSchema, errors.New("permission denied"))
	}
	b := welcoming(t)
	b.store.handled, b.store.record = slices.Clone(faults), slices.Clone(faults)
	e := newEvent(t, registered{Name: "Ana"})
	require.NoError(t, b.deliver(e))
	require.Empty(t, b.store.record)
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))
}

// An encoding is named where it may be why a body cannot be read. Some programs name their character set there.
func TestContentEncoding(t *testing.T) {
	t.Parallel()
	b := welcoming(t)
	deliver := func(encoding string, body []byte) error {
		m := bus.NewMessage(body)
		m.Metadata.Set(bus.ContentEncodingKey, encoding)
		m.SetContext(t.Context())
		return b.Handle(m)
	}
	e := newEvent(t, registered{Name: "Ana"})
	body, err := json.Marshal(e)
	require.NoError(t, err)
	require.Contains(t, failures(t, deliver("gzip", []byte("\x1f\x8b")))[0].Reason, `its content_encoding is "gzip"`)
	require.NotContains(t, failures(t, deliver("", []byte("\x1f\x8b")))[0].Reason, "content_encoding")
	require.NoError(t, deliver("utf-8", body))
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))
}

// A follow-up event that a constraint or trigger of others refuses is the handler's failure, by its name. The other
// handlers and the later events of the aggregate go on.
func TestARefusedFollowUpIsTheHandlersFailure(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ prepare, want string }{
		"trigger": {`CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.event_type = 'Welcomed' BEGIN
			SELECT RAISE(ABORT, 'no Ana'); END`, "a trigger"},
		"constraint": {`CREATE TABLE others (name TEXT CONSTRAINT never CHECK (name <> 'Welcomed'));
			CREATE TRIGGER copy AFTER INSERT ON events BEGIN INSERT INTO others VALUES (NEW.event_type); END`, "CHECK constraint failed: never"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBenchAfter(t, handlers.Park, func(reg *handlers.Registry) {
				handlers.On(reg, "Registered", "welcome", welcome)
				handlers.On(reg, "Registered", "bill", bill)
			})
			b.execute(test.prepare)
			e := newEvent(t, registered{Name: "Ana"})
			failed := failures(t, b.deliver(e))
			require.Len(t, failed, 1)
			require.Equal(t, "welcome", failed[0].Handler)
			require.Equal(t, 3, failed[0].Attempts)
			require.Contains(t, failed[0].Reason, "the database refuses it: "+test.want)
			require.NotContains(t, failed[0].Reason, "Ana")
			require.Equal(t, []string{"Billed"}, b.followUps(e))

			next := newEvent(t, registered{Name: "Ana"})
			next.AggregateID, next.AggregateVersion = e.AggregateID, 2
			require.Contains(t, failures(t, b.deliver(next))[0].Reason, "parked behind", "the next event is not blocked")
			require.Equal(t, []string{"Billed"}, b.followUps(next))
		})
	}
}

// When the worker's own tables refuse the record of a failure, no event becomes a dead letter without that record.
func TestARefusedRecordOfAFailureIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := newBenchAfter(t, handlers.Park, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", func(context.Context, events.Event, registered) ([]events.Event, error) {
			return nil, handlers.Permanent(errors.New("no"))
		})
	})
	b.execute(`CREATE TRIGGER refuse BEFORE INSERT ON parked BEGIN SELECT RAISE(ABORT, 'no'); END`)
	e := newEvent(t, registered{Name: "Ana"})
	delivered := make(chan error, 1)
	go func() { delivered <- b.deliver(e) }()
	require.Eventually(t, func() bool { return b.outages.Err() != nil }, 10*time.Second, time.Millisecond)
	require.Empty(t, delivered)
	b.execute(`DROP TRIGGER refuse`)
	require.Equal(t, "welcome", failures(t, <-delivered)[0].Handler)
	require.Contains(t, b.log.String(), "level=ERROR msg=\"the store cannot do it, will try again\"")
	require.Contains(t, b.log.String(), "unexpected error of the store: park an event: the database refuses it: a trigger")
	require.NoError(t, b.outages.Err())
}

// A handler may have sent an e-mail: an outage of the store, which may last, is no reason to send it again.
func TestAnOutageDoesNotRunTheHandlerAgain(t *testing.T) {
	t.Parallel()
	calls := 0
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
			calls++
			return events.Follow(e, welcomed{})
		})
	})
	b.store.record = []error{store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrUnavailable, context.DeadlineExceeded}
	e := newEvent(t, registered{Name: "Ana"})
	require.NoError(t, b.deliver(e))
	require.Empty(t, b.store.record)
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))
	require.Equal(t, 1, calls)
}

// Another writer who comes first is a reason to run the handler again, on what it then finds.
func TestAConflictRunsTheHandlerAgain(t *testing.T) {
	t.Parallel()
	b := welcoming(t)
	b.store.record = []error{&store.ConflictError{}, &store.ConflictError{}}
	require.NoError(t, b.deliver(newEvent(t, registered{Name: "Ana"})))
	b.store.record = []error{&store.ConflictError{}, &store.ConflictError{}, &store.ConflictError{}}
	require.Equal(t, 3, failures(t, b.deliver(newEvent(t, registered{Name: "Ana"})))[0].Attempts)
}
