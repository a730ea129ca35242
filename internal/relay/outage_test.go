package relay_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
)

// logged is what was logged, each line as its level and message.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
			return a
		}
		return slog.Attr{}
	}}))
}

// take returns the lines since the last take.
func (l *logged) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(l.text.String()), "\n")
	l.text.Reset()
	if lines[0] == "" {
		return nil
	}
	return lines
}

const (
	fails     = `level=ERROR msg="relay fails and will try again"`
	recovered = `level=INFO msg="relay has recovered"`
	elsewhere = `level=INFO msg="relay has recovered, on another worker"`
	atWork    = `level=INFO msg="relay is at work: this worker is the leader"`
	standsBy  = `level=INFO msg="relay stands by: another worker is the leader"`
)

// oneLease gives the lease to one holder until that gives it back.
type oneLease struct {
	mu     sync.Mutex
	holder string
	number int64
	err    error
}

func (l *oneLease) take(_ context.Context, _, holder string, _ time.Duration) (store.Fence, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return store.Fence{}, l.err
	case l.holder == "":
		l.holder = holder
		l.number++
	case l.holder != holder:
		return store.Fence{}, store.ErrNotLeader
	}
	return store.Fence{Holder: holder, Number: l.number}, nil
}

func (l *oneLease) give(_ context.Context, _, holder string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holder == holder {
		l.holder = ""
	}
	return nil
}

func (l *oneLease) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// observedRelay is a relay with what it logs.
type observedRelay struct {
	*relay.Relay
	log *logged
}

// runTwo runs two relays under one lease, until end.
func runTwo(t *testing.T, m *memory, p *publisher) (l *oneLease, relays [2]observedRelay, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	l = &oneLease{}
	for i := range relays {
		tail := m.tail()
		tail.TakeLease, tail.GiveLease = l.take, l.give
		log := &logged{}
		relays[i] = observedRelay{relay.New(tail, lease.New(tail, store.RelayTask), p, relay.Config{
			Observer: observe.None{}, Poll: time.Second, Patience: 15 * time.Second,
		}, log.logger()), log}
		running.Go(func() { relays[i].Run(ctx) })
		synctest.Wait() // the first is the leader
	}
	return l, relays, func() { cancel(); running.Wait() }
}

// While no worker reaches the bus, each has the lease in turn: that is one outage for each, with one line when it begins and
// one when it ends.
func TestAnOutageOfTheBusIsLoggedOnceByEachWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, want := newMemory(3)
		p := &publisher{failure: errors.New("the bus is away")}
		_, relays, end := runTwo(t, m, p)
		var turns [2]bool
		for range 30 * 60 {
			time.Sleep(time.Second) //nolint:forbidigo // the bubble's time
			for i, r := range relays {
				state, err := r.Status()
				turns[i] = turns[i] || state == relay.Failing
				require.False(t, r.Publishing(), state)
				require.Contains(t, []relay.State{relay.Failing, relay.Standby, relay.Starting}, state)
				require.Equal(t, state == relay.Failing, err != nil)
			}
		}
		require.Equal(t, [2]bool{true, true}, turns)
		require.Equal(t, []string{fails}, relays[0].log.take())
		require.Equal(t, []string{standsBy, fails}, relays[1].log.take())

		p.fail(nil)
		time.Sleep(10 * time.Minute) //nolint:forbidigo // likewise
		require.Equal(t, want, p.ids())
		leader, standby := relays[0], relays[1]
		if stateOf(leader.Relay) == relay.Standby {
			leader, standby = standby, leader
		}
		require.True(t, leader.Publishing())
		require.False(t, standby.Publishing())
		require.Equal(t, relay.Standby, stateOf(standby.Relay))
		require.Equal(t, []string{recovered, atWork}, leader.log.take())
		if standby.Relay == relays[0].Relay {
			require.Equal(t, []string{elsewhere, standsBy}, standby.log.take())
		} else { // it was on standby before
			require.Equal(t, []string{elsewhere}, standby.log.take())
		}
		end()
	})
}

func TestAnOutageOfTheStoreIsLoggedOnceByEachWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMemory(3)
		l, relays, end := runTwo(t, m, &publisher{})
		time.Sleep(10 * time.Second) //nolint:forbidigo // the bubble's time
		require.Equal(t, []string{atWork}, relays[0].log.take())
		require.Equal(t, []string{standsBy}, relays[1].log.take())
		l.fail(errors.New("the store is away"))
		time.Sleep(time.Minute) //nolint:forbidigo // likewise
		l.fail(nil)
		time.Sleep(time.Minute) //nolint:forbidigo // likewise
		for _, r := range relays {
			require.Equal(t, []string{fails, recovered}, r.log.take())
		}
		end()
	})
}

// A bus that takes an event and does not confirm it is an outage before the relay gives up its attempt.
func TestARelayThatWaitsForAConfirmDoesNotPublish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMemory(2)
		r, end := runPatiently(t, m.tail(), &slowPublisher{interval: time.Hour}, 15*time.Second)
		time.Sleep(6 * time.Second) //nolint:forbidigo // the bubble's time
		state, err := r.Status()
		require.Equal(t, relay.Failing, state)
		require.EqualError(t, err, "the bus has confirmed no event for 5s")
		require.False(t, r.Publishing())
		end()
	})
}
