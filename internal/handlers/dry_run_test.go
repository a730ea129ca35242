package handlers_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
)

// dryRun is the dry run of some handlers on a store of their own.
type dryRun struct {
	t     *testing.T
	path  string
	store *sqlite.Store
	log   bytes.Buffer
	*handlers.DryRun
}

func newDryRun(t *testing.T, c handlers.DryRunConfig, register func(*handlers.Registry)) *dryRun {
	t.Helper()
	b := &dryRun{t: t, path: filepath.Join(t.TempDir(), "test.db")}
	var err error
	b.store, err = sqlite.Open(t.Context(), b.path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.store.Close()) })
	require.NoError(t, b.store.Migrate(t.Context()))
	c.HandlerTimeout, c.MaxMessage = cmp.Or(c.HandlerTimeout, 50*time.Millisecond), 1000
	b.DryRun, err = handlers.NewDryRun(b.store, registryOf(register), c, slog.New(slog.NewTextHandler(&b.log, nil)))
	require.NoError(t, err)
	return b
}

func registryOf(register func(*handlers.Registry)) *handlers.Registry {
	reg := &handlers.Registry{}
	register(reg)
	return reg
}

// letterOf is the letter of an event that a handler has failed on.
func letterOf(t *testing.T, e events.Event, handler string) deadletter.Letter {
	t.Helper()
	body, err := json.Marshal(e)
	require.NoError(t, err)
	return deadletter.Letter{ID: e.ID.String(), Event: e, Body: body, Failure: deadletter.Failure{Handler: handler}}
}

func (b *dryRun) try(letters ...deadletter.Letter) []handlers.Outcome {
	b.t.Helper()
	var outcomes []handlers.Outcome
	for o, err := range b.Run(b.t.Context(), letters) {
		require.NoError(b.t, err)
		outcomes = append(outcomes, o)
	}
	require.Len(b.t, outcomes, len(letters))
	return outcomes
}

func TestDryRunTellsRightFromWrong(t *testing.T) {
	t.Parallel()
	register := func(reg *handlers.Registry) {
		on := func(name string, handle func(context.Context, events.Event, registered) ([]events.Event, error), o ...handlers.Option) {
			handlers.On(reg, "Registered", name, handle, o...)
		}
		on("welcome", welcome)
		on("refuse", func(_ context.Context, _ events.Event, p registered) ([]events.Event, error) {
			return nil, handlers.Permanent(errors.New("no room for " + p.Name))
		})
		on("panic", func(context.Context, events.Event, registered) ([]events.Event, error) { panic("broken") })
		on("slow", func(ctx context.Context, _ events.Event, _ registered) ([]events.Event, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		on("gap", func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
			f, err := events.New(events.CausedBy(e), "Message", e.ID, 7, welcomed{})
			return []events.Event{f}, err
		})
		on("mail", func(context.Context, events.Event, registered) ([]events.Event, error) {
			t.Error("it has effects")
			return nil, nil
		}, handlers.OutsideEffects)
		on("broken SQL", func(ctx context.Context, _ events.Event, _ registered) ([]events.Event, error) {
			return nil, sqlite.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO nowhere VALUES (1)")
				return err
			})
		})
	}
	one := newDryRun(t, handlers.DryRunConfig{}, register)
	all := newDryRun(t, handlers.DryRunConfig{AllHandlers: true}, register)
	e := newEvent(t, registered{Name: "Anastasia"})
	handled := newEvent(t, registered{Name: "Ben"})
	require.NoError(t, one.store.Record(t.Context(), "refuse", handled, nil))
	other := handled
	other.Data = []byte(`{"name":"Bert"}`)
	unknown := newEvent(t, billed{})
	parked := stream(t, 2)
	require.NoError(t, one.store.Park(t.Context(), "welcome", parked[0]))

	const everyFailure = "refuse: no room for ‹name›; panic: panic: broken; slow: timed out"
	for name, test := range map[string]struct {
		b      *dryRun
		letter deadletter.Letter
		want   handlers.Verdict
		reason string
	}{
		"passes":                {one, letterOf(t, e, "welcome"), handlers.WouldPass, ""},
		"fails":                 {one, letterOf(t, e, "refuse"), handlers.WouldFail, "no room for ‹name›"},
		"panics":                {one, letterOf(t, e, "panic"), handlers.WouldFail, "panic: broken"},
		"takes too long":        {one, letterOf(t, e, "slow"), handlers.WouldFail, "timed out after 50ms: context deadline exceeded"},
		"follow-ups with a gap": {one, letterOf(t, e, "gap"), handlers.WouldFail, "gap in versions"},
		"SQL that fails":        {one, letterOf(t, e, "broken SQL"), handlers.WouldFail, "no such table: nowhere"},
		"outside effects":       {one, letterOf(t, e, "mail"), handlers.CannotTell, "the handler declares outside effects"},
		"the handler is gone": {one, letterOf(t, e, "gone"), handlers.WouldFail, `handler "gone" is not registered for Registered: ` +
			"if it has another name now, replay the letter with --to NAME; if nobody is to handle it, discard it"},
		"handled":                {one, letterOf(t, handled, "refuse"), handlers.WouldPass, "already handled"},
		"said something else":    {one, letterOf(t, other, "refuse"), handlers.WouldFail, "handled before with other contents"},
		"parked":                 {one, letterOf(t, parked[1], "welcome"), handlers.WouldFail, "parked behind event " + parked[0].ID.String()},
		"no handler":             {one, letterOf(t, unknown, ""), handlers.WouldPass, "no handler is registered for Billed"},
		"no event":               {one, deadletter.Letter{Body: []byte("{}")}, handlers.WouldFail, "event_id is missing"},
		"too large":              {one, deadletter.Letter{Body: make([]byte, 1001)}, handlers.CannotTell, "--max-message"},
		"all when none is named": {one, letterOf(t, e, ""), handlers.WouldFail, everyFailure},
		"all when asked":         {all, letterOf(t, e, "welcome"), handlers.WouldFail, everyFailure},
	} {
		got := test.b.try(test.letter)[0]
		require.Equal(t, test.want, got.Verdict, "%s: %s", name, got.Reason)
		require.Contains(t, got.Reason, test.reason, name)
		require.Equal(t, test.reason == "", got.Reason == "", name)
		require.Equal(t, test.letter, got.Letter, name)
	}
	require.NotContains(t, one.log.String()+all.log.String(), "Anastasia")
	page, err := one.store.ByCorrelation(t.Context(), e.CorrelationID, store.Query{})
	require.NoError(t, err)
	require.Empty(t, page.Events)
	names, err := one.store.Handled(t.Context(), e)
	require.NoError(t, err)
	require.Empty(t, names)
}

type counter struct {
	events.Root

	count int
}

func (*counter) AggregateType() string { return "Counter" }

func (c *counter) Apply(events.Event) error {
	c.count++
	return nil
}

// A letter finds what those before it in its aggregate have done, and nothing of others.
func TestDryRunOfOneAggregate(t *testing.T) {
	t.Parallel()
	var counted []int
	b := newDryRun(t, handlers.DryRunConfig{}, func(reg *handlers.Registry) {
		counters := events.NewRepository(reg, func() *counter { return &counter{} })
		handlers.On(reg, "Registered", "count", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			raised, err := counters.Decide(ctx, events.CausedBy(e), events.DerivedID(e.AggregateID, "counter"), func(c *counter) error {
				counted = append(counted, c.count)
				return events.Raise(c, welcomed{})
			})
			if p.Name == "2" {
				err = errors.New("odd")
			}
			return raised, err
		})
	})
	first, second := stream(t, 4), stream(t, 2)
	for _, e := range first[1:] {
		require.NoError(t, b.store.Park(t.Context(), "count", e))
	}

	outcomes := b.try(
		letterOf(t, first[0], "count"), letterOf(t, second[0], "count"), letterOf(t, first[1], "count"),
		letterOf(t, first[2], "count"), deadletter.Letter{}, deadletter.Letter{},
	)

	require.Equal(t, []int{0, 1, 0}, counted)
	var got []any
	for _, o := range outcomes {
		got = append(got, o.Letter.Event.AggregateVersion, o.Verdict)
	}
	require.Equal(t, []any{
		1, handlers.WouldPass, 2, handlers.WouldFail, 3, handlers.WouldFail, 1, handlers.WouldPass,
		0, handlers.WouldFail, 0, handlers.WouldFail,
	}, got)
	require.Contains(t, outcomes[2].Reason, "parked behind event "+first[1].ID.String())
	version, err := b.store.Version(t.Context(), "Counter", events.DerivedID(first[0].AggregateID, "counter"))
	require.NoError(t, err)
	require.Zero(t, version)
}

// A dry run that has written does not wait for a slow handler: other writers wait for it.
func TestDryRunIsShort(t *testing.T) {
	t.Parallel()
	ran := 0
	b := newDryRun(t, handlers.DryRunConfig{HandlerTimeout: time.Hour}, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "slow", func(ctx context.Context, e events.Event, _ registered) ([]events.Event, error) {
			ran++
			if e.AggregateVersion == 2 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return events.Follow(e, welcomed{})
		})
	})
	slow, other := stream(t, 3), stream(t, 1)
	outcomes := b.try(letterOf(t, slow[0], "slow"), letterOf(t, slow[1], "slow"), letterOf(t, slow[2], "slow"), letterOf(t, other[0], "slow"))
	for i, want := range []handlers.Verdict{handlers.WouldPass, handlers.CannotTell, handlers.CannotTell, handlers.WouldPass} {
		require.Equal(t, want, outcomes[i].Verdict, outcomes[i].Reason)
	}
	require.Contains(t, outcomes[2].Reason, "choose fewer letters")
	require.Equal(t, 3, ran)
}

// What a handler does with its aggregates when it should be done comes too late.
func TestDryRunLeavesHandlersNoWayOut(t *testing.T) {
	t.Parallel()
	late := func() error { return nil }
	b := newDryRun(t, handlers.DryRunConfig{}, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			late = func() error { return reg.AppendMany(context.WithoutCancel(ctx), stream(t, 1)) }
			return welcome(ctx, e, p)
		})
	})
	b.try(letterOf(t, stream(t, 1)[0], "welcome"))
	require.ErrorIs(t, late(), store.ErrDryRunOver)
}

func TestARepositoryOnTheRegistryWorksInHandlersAlone(t *testing.T) {
	t.Parallel()
	var reg handlers.Registry
	require.ErrorContains(t, reg.AppendMany(t.Context(), stream(t, 1)), "works in handlers alone")
	for _, err := range reg.Stream(t.Context(), "Patient", uuid.New(), 0) {
		require.ErrorContains(t, err, "works in handlers alone")
	}
}

func TestDryRunEndsWithTheContextAndWithTheStore(t *testing.T) {
	t.Parallel()
	register := func(reg *handlers.Registry) { handlers.On(reg, "Registered", "welcome", welcome) }
	l := letterOf(t, stream(t, 1)[0], "welcome")
	b := newDryRun(t, handlers.DryRunConfig{}, register)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range b.Run(ctx, []deadletter.Letter{l}) {
		require.ErrorIs(t, err, context.Canceled)
	}
	bare, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "bare.db"))
	require.NoError(t, err)
	defer func() { require.NoError(t, bare.Close()) }()
	dryRun, err := handlers.NewDryRun(bare, registryOf(register), handlers.DryRunConfig{MaxMessage: 1000}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for _, err := range dryRun.Run(t.Context(), []deadletter.Letter{l}) {
		require.ErrorIs(t, err, store.ErrNoSchema)
	}
	_, err = handlers.NewDryRun(bare, registryOf(func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "", welcome, "by night")
	}), handlers.DryRunConfig{}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "no name")
}
