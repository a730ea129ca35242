package watch_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/watch"
)

const (
	patience = 90 * time.Second
	tick     = 50 * time.Millisecond
)

func TestMain(m *testing.M) { testservers.Main(m) }

func openStore(t *testing.T) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "events.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	return s
}

func event(created time.Time) events.Event {
	return events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "PatientRegistered", AggregateType: "Patient", AggregateID: uuid.New(),
		AggregateVersion: 1, TenantID: uuid.New(), CorrelationID: uuid.New(), CreatedAt: created,
		Data: json.RawMessage(`{}`),
	}
}

// watched is what was yielded until stop.
type watched struct {
	ids  chan uuid.UUID
	stop func() error
}

func follow(t *testing.T, s watch.Store, f watch.Filter, away func(error)) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{ids: make(chan uuid.UUID, 100)}
	ended := make(chan error, 1)
	go func() {
		var failed error
		for e, err := range watch.Events(ctx, s, f, away) {
			if err != nil {
				failed = err
				break
			}
			w.ids <- e.ID
		}
		ended <- failed
	}()
	w.stop = func() error { cancel(); return <-ended }
	t.Cleanup(cancel)
	return w
}

func (w *watched) next(t *testing.T) uuid.UUID {
	t.Helper()
	select {
	case id := <-w.ids:
		return id
	case <-time.After(patience):
		require.Fail(t, "no event came")
		return uuid.Nil
	}
}

func never(err error) { panic(err) }

func TestEventsAsTheyAreCommitted(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	now := time.Now().UTC().Truncate(time.Millisecond)
	old, recent, late := event(now.Add(-time.Hour)), event(now.Add(-time.Minute)), event(now.Add(-time.Hour))
	require.NoError(t, s.AppendMany(t.Context(), []events.Event{old, recent, late}))

	w := follow(t, s, watch.Filter{Since: now.Add(-10 * time.Minute)}, never)
	require.Equal(t, recent.ID, w.next(t), "the others are too old")
	for range 3 {
		e := event(now)
		require.NoError(t, s.Append(t.Context(), e))
		require.Equal(t, e.ID, w.next(t))
	}
	require.NoError(t, w.stop())
	require.Empty(t, w.ids)
}

func TestEventsFromNowOn(t *testing.T) {
	t.Parallel()
	s := &reported{Store: openStore(t), began: make(chan struct{})}
	require.NoError(t, s.Store.Append(t.Context(), event(time.Now())))
	w := follow(t, s, watch.Filter{}, never)
	<-s.began
	e := event(time.Now().Add(-time.Hour))
	require.NoError(t, s.Store.Append(t.Context(), e))
	require.Equal(t, e.ID, w.next(t))
	require.NoError(t, w.stop())
	require.Empty(t, w.ids)
}

// reported tells when the end of the store was looked for.
type reported struct {
	*sqlite.Store
	began chan struct{}
}

func (s *reported) End(ctx context.Context) (store.Position, error) {
	defer close(s.began)
	return s.Store.End(ctx)
}

func TestFilter(t *testing.T) {
	t.Parallel()
	e := event(time.Now())
	other := uuid.New()
	for name, test := range map[string]struct {
		f    watch.Filter
		want bool
	}{
		"all":                  {watch.Filter{}, true},
		"its tenant":           {watch.Filter{TenantID: e.TenantID}, true},
		"another tenant":       {watch.Filter{TenantID: other}, false},
		"its chain":            {watch.Filter{CorrelationID: e.CorrelationID}, true},
		"another chain":        {watch.Filter{CorrelationID: other}, false},
		"its type":             {watch.Filter{Type: e.Type}, true},
		"another type":         {watch.Filter{Type: "Patient"}, false},
		"its kind":             {watch.Filter{AggregateType: "Patient"}, true},
		"another kind":         {watch.Filter{AggregateType: "Clinic"}, false},
		"its aggregate":        {watch.Filter{AggregateType: "Patient", AggregateID: e.AggregateID}, true},
		"another aggregate":    {watch.Filter{AggregateType: "Patient", AggregateID: other}, false},
		"since then":           {watch.Filter{Since: e.CreatedAt}, true},
		"since a later time":   {watch.Filter{Since: e.CreatedAt.Add(time.Microsecond)}, false},
		"one of two is not so": {watch.Filter{TenantID: e.TenantID, Type: "Patient"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, test.f.Match(e))
		})
	}
}

// Events that were committed while the store was unavailable are yielded once it is available again.
func TestEventsOutliveTheStore(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	s, err := postgres.Open(t.Context(), server.URL(), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))

	var outages, returns atomic.Int32
	since := time.Now().Add(-time.Hour)
	w := follow(t, s, watch.Filter{Since: since}, func(err error) {
		if err != nil {
			outages.Add(1)
		} else {
			returns.Add(1)
		}
	})
	for range 2 {
		e := event(time.Now())
		require.NoError(t, s.Append(t.Context(), e))
		require.Equal(t, e.ID, w.next(t))
		before := outages.Load()
		require.NoError(t, server.Kill())
		require.Eventually(t, func() bool { return outages.Load() > before }, patience, tick)
		require.NoError(t, server.Start())
		require.Eventually(t, func() bool { return returns.Load() == outages.Load() }, patience, tick)
	}
	require.NoError(t, w.stop())
	require.Empty(t, w.ids)
}

func TestEventsEndWithWhatTimeDoesNotHeal(t *testing.T) {
	t.Parallel()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "events.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	for _, f := range []watch.Filter{{}, {Since: time.Now()}} {
		var failed error
		for _, err := range watch.Events(t.Context(), s, f, never) {
			failed = err
		}
		require.ErrorIs(t, failed, store.ErrNoSchema)
	}
}
