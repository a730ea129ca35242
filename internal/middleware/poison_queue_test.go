package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
)

// sink fails as often as it is told to, which a real one cannot be made to do at a given moment.
type sink struct {
	failures int
	failed   func()
	put      []deadletter.Failure
}

func (s *sink) Put(_ context.Context, _ *message.Message, f deadletter.Failure) error {
	if s.failures > 0 {
		s.failures--
		if s.failed != nil {
			s.failed()
		}
		return errors.New("the broker is away")
	}
	s.put = append(s.put, f)
	return nil
}

// through sends a message through the middleware to a handler that returns err.
func through(t *testing.T, s deadletter.Sink, l middleware.Lifetime, err error) (map[observe.Outcome]int64, error) {
	t.Helper()
	var counts observe.Counts
	logger := slog.New(slog.DiscardHandler)
	l.Ended = t.Context()
	handle := middleware.Deliver(l, &counts, logger)(middleware.PoisonQueue(s, l, &counts, logger)(
		func(*message.Message) ([]*message.Message, error) { return nil, err }))
	m := message.NewMessage("1", nil)
	m.SetContext(t.Context())
	_, err = handle(m)
	return counts.Map(), err
}

// postponer is a sink that postpones a message once.
type postponer struct {
	sink

	postponed []deadletter.Failure
}

func (p *postponer) Postpone(_ context.Context, _ *message.Message, f deadletter.Failure) (time.Duration, error) {
	if p.failures > 0 {
		p.failures--
		return 0, errors.New("the broker is away")
	}
	if len(p.postponed) > 0 {
		return 0, nil
	}
	p.postponed = append(p.postponed, f)
	return time.Minute, nil
}

func TestPostpone(t *testing.T) {
	t.Parallel()
	passing := deadletter.Failure{Handler: "a", Reason: "x", MayPass: true}
	lasting := deadletter.Failure{Handler: "b", Reason: "y"}
	p := &postponer{sink: sink{failures: 1}}
	for _, test := range []struct {
		failures       []deadletter.Failure
		postponed, put int
		outcome        observe.Outcome
	}{
		{[]deadletter.Failure{passing}, 1, 0, observe.Postponed},
		{[]deadletter.Failure{passing, lasting}, 1, 2, observe.DeadLettered},
	} {
		counts, err := through(t, p, middleware.Lifetime{}, &deadletter.FailedError{Failures: test.failures})
		require.NoError(t, err)
		require.Len(t, p.postponed, test.postponed)
		require.Len(t, p.put, test.put)
		require.EqualValues(t, 1, counts[test.outcome], "%v", counts)
	}
}

func TestPoisonQueue(t *testing.T) {
	t.Parallel()
	two := &deadletter.FailedError{Failures: []deadletter.Failure{{Handler: "a", Reason: "x"}, {Handler: "b", Reason: "y"}}}
	for name, test := range map[string]struct {
		err      error
		failures int
		want     []string
		outcome  observe.Outcome
	}{
		"success":                    {nil, 0, nil, observe.Handled},
		"one letter a handler":       {two, 0, []string{"a: x", "b: y"}, observe.DeadLettered},
		"wrapped":                    {fmt.Errorf("dispatch: %w", two), 0, []string{"a: x", "b: y"}, observe.DeadLettered},
		"the sink fails at first":    {two, 2, []string{"a: x", "b: y"}, observe.DeadLettered},
		"an error of nobody":         {errors.New("odd"), 0, []string{": odd"}, observe.DeadLettered},
		"a very long reason":         {errors.New(strings.Repeat("ä", 4000)), 0, []string{": " + deadletter.CutReason(strings.Repeat("ä", 4000))}, observe.DeadLettered},
		"stopping is not a failure":  {middleware.ErrStopping, 0, nil, observe.GivenBack},
		"stopping, with its reasons": {fmt.Errorf("%w: %w", middleware.ErrStopping, two), 0, nil, observe.GivenBack},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &sink{failures: test.failures}
			counts, err := through(t, s, middleware.Lifetime{}, test.err)
			var got []string
			for _, f := range s.put {
				got = append(got, f.Handler+": "+f.Reason)
				require.LessOrEqual(t, len(f.Reason), deadletter.MaxReasonBytes)
			}
			require.Equal(t, test.want, got)
			require.Equal(t, int64(1), counts[test.outcome], "%v", counts)
			if test.outcome == observe.GivenBack {
				require.ErrorIs(t, err, middleware.ErrStopping)
			} else {
				require.NoError(t, err, "the message is acked")
			}
		})
	}
}

// What cannot be dead-lettered is never acked: when the worker stops meanwhile, the message is given back.
func TestPoisonQueueKeepsTheMessageWhileTheSinkFails(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	s := &sink{failures: 1 << 30, failed: func() { close(stopping) }}
	counts, err := through(t, s, middleware.Lifetime{Stopping: stopping}, errors.New("odd"))
	require.ErrorIs(t, err, middleware.ErrStopping)
	require.Empty(t, s.put)
	require.Equal(t, int64(1), counts[observe.GivenBack])
}

// pickySink fails for one message.
type pickySink struct{ sink }

func (s *pickySink) Put(ctx context.Context, m *message.Message, f deadletter.Failure) error {
	if m.UUID == "odd" {
		return s.sink.Put(ctx, m, f)
	}
	return nil
}

// A message that fails for its own reason, while others succeed, is one failure and not one for each of the others.
func TestPoisonQueueLogsOnceThatOneMessageFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines logLines
		s := &pickySink{sink{failures: 10}}
		handle := middleware.PoisonQueue(s, middleware.Lifetime{}, observe.None{}, slog.New(slog.NewTextHandler(&lines, nil)))(
			func(*message.Message) ([]*message.Message, error) { return nil, errors.New("broken") })
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := handle(message.NewMessage("odd", nil))
			assert.NoError(t, err)
		}()
		for range 5 {
			time.Sleep(time.Second) //nolint:forbidigo // the bubble's time
			_, err := handle(message.NewMessage("other", nil))
			require.NoError(t, err)
		}
		require.NotContains(t, lines.String(), "can be put into the poison queue again")
		<-done
		require.Equal(t, 1, strings.Count(lines.String(), "cannot put messages into the poison queue"))
		require.Equal(t, 1, strings.Count(lines.String(), "can be put into the poison queue again"))
	})
}

func TestPoisonQueueLogsOnceThatTheSinkFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&lines, nil))
		s := &sink{failures: 20}
		l := middleware.Lifetime{Ended: t.Context()}
		handle := middleware.PoisonQueue(s, l, observe.None{}, logger)(
			func(*message.Message) ([]*message.Message, error) { return nil, errors.New("odd") })
		for range 2 {
			_, err := handle(message.NewMessage("1", nil))
			require.NoError(t, err)
		}
		require.Equal(t, 1, strings.Count(lines.String(), "cannot put messages into the poison queue"))
		require.Equal(t, 1, strings.Count(lines.String(), "can be put into the poison queue again"))
	})
}
