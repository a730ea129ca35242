package worker_test

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/worker"
)

// frozenStore does not answer, nor heed the end of a call's context, as a server that is stopped.
type frozenStore struct {
	worker.Inbox
	thawed chan struct{}
	pings  atomic.Int32
}

func (s *frozenStore) Ping(context.Context) error {
	s.pings.Add(1)
	<-s.thawed
	return nil
}

type readyBus struct{ worker.Bus }

func (readyBus) Ready() error               { return nil }
func (readyBus) Consuming() (string, error) { return "", nil }

func TestHealthDoesNotWaitForAFrozenStore(t *testing.T) {
	t.Parallel()
	store := &frozenStore{thawed: make(chan struct{})}
	parts := worker.Parts{Inbox: store, Bus: readyBus{}, Handlers: &handlers.Registry{}}
	w, err := worker.New(t.Context(), parts, worker.DefaultTuning(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)

	answers := make(chan worker.Health, 2)
	for range cap(answers) {
		go func() { answers <- w.Health(t.Context()) }()
	}
	for range cap(answers) {
		select {
		case h := <-answers:
			require.False(t, h.Ready)
			require.Contains(t, h.Parts["store"].Problem, "not answered")
		case <-time.After(patience):
			require.Fail(t, "health waits for the store")
		}
	}
	require.EqualValues(t, 1, store.pings.Load(), "the store is asked once at a time")

	close(store.thawed)
	require.Eventually(t, func() bool { return w.Health(t.Context()).Parts["store"].OK() }, patience, tick)
}

// A ping of the store succeeds, and what the messages need of it fails: they are kept, the worker is not ready and says
// why, and it goes on by itself.
func TestAnErrorOfTheStoreThatLastsIsNotReady(t *testing.T) {
	t.Parallel()
	var url string
	s := newSite(t, func(settings *worker.Settings, _ *handlers.Registry) { url = settings.DatabaseURL })
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close(context.WithoutCancel(t.Context()))) })
	execute := func(statement string) {
		t.Helper()
		_, err := db.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	execute("ALTER TABLE handled RENAME COLUMN fingerprint TO lost")
	s.publish(body(nil), nil)
	require.Eventually(t, func() bool {
		h := s.worker.Health(t.Context())
		return !h.Ready && strings.Contains(h.Parts["store"].Problem, "42703")
	}, patience, tick)
	require.Eventually(t, func() bool {
		return strings.Contains(s.log.String(), `level=ERROR msg="the store cannot do it, will try again"`)
	}, patience, tick)
	require.Zero(t, s.count())

	execute("ALTER TABLE handled RENAME COLUMN lost TO fingerprint")
	require.Eventually(t, func() bool { return s.worker.Health(t.Context()).Ready && s.witness.count() == 1 }, patience, tick)
	require.Zero(t, s.count())
}
