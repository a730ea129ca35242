package handlers_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/store"
)

// letterOf adds a dead letter of e and of a handler to the table, and returns its id.
func (b *bench) letterOf(e events.Event, handler string) string {
	b.t.Helper()
	body, err := json.Marshal(e)
	require.NoError(b.t, err)
	l := deadletter.Letter{ID: ulid.Make().String(), Body: body, Failure: deadletter.Failure{Handler: handler, Reason: "no"}}
	require.NoError(b.t, b.letters.Ingest(b.t.Context(), []deadletter.Arrival{{Letter: deadletter.Complete(l)}}))
	return l.ID
}

// replayLetter delivers e as the message of a replayed letter.
func (b *bench) replayLetter(e events.Event, letterID, handler string) error {
	b.t.Helper()
	m := b.replayed(e, letterID, handler)
	m.SetContext(b.t.Context())
	return b.Handle(m)
}

// replayed is the message of a replayed letter of e.
func (b *bench) replayed(e events.Event, letterID, handler string) *message.Message {
	b.t.Helper()
	body, err := json.Marshal(e)
	require.NoError(b.t, err)
	m := bus.NewMessage(body)
	m.Metadata.Set(deadletter.ReplayOfKey, letterID)
	m.Metadata.Set(deadletter.ReplayIDKey, "R")
	if handler != "" {
		m.Metadata.Set(bus.ReplayHandlerKey, handler)
	}
	return m
}

func (b *bench) requireState(letterID string, want deadletter.State) {
	b.t.Helper()
	l, err := b.letters.Find(b.t.Context(), letterID)
	require.NoError(b.t, err)
	require.Equal(b.t, want, l.State)
	if want == deadletter.Settled {
		require.Equal(b.t, "replay R", l.Decided.By)
	}
}

// When a replayed message is acked, the table knows which of its letters were handled.
func TestAReplayedLetterIsSettled(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", welcome)
		handlers.On(reg, "Registered", "fail", func(context.Context, events.Event, registered) ([]events.Event, error) {
			return nil, handlers.Permanent(errors.New("no"))
		})
	})
	e := newEvent(t, registered{Name: "Ana"})
	welcomes, fails, nobodys := b.letterOf(e, "welcome"), b.letterOf(e, "fail"), b.letterOf(e, "")

	require.NoError(t, b.replayLetter(e, welcomes, "welcome"))
	b.requireState(welcomes, deadletter.Settled)
	require.Error(t, b.replayLetter(e, fails, "fail"))
	b.requireState(fails, deadletter.Waiting)
	require.Error(t, b.replayLetter(e, fails, ""), "the others have handled it")
	b.requireState(fails, deadletter.Waiting)
	require.Error(t, b.replayLetter(e, nobodys, ""), "its new letter is one of a handler")
	b.requireState(nobodys, deadletter.Settled)
}

func TestALetterOfADuplicateIsSettled(t *testing.T) {
	t.Parallel()
	b := welcoming(t)
	e := newEvent(t, registered{Name: "Ana"})
	letter := b.letterOf(e, "welcome")
	require.NoError(t, b.deliver(e))
	b.requireState(letter, deadletter.Waiting) // the message was not that of a replay
	require.NoError(t, b.replayLetter(e, letter, "welcome"))
	b.requireState(letter, deadletter.Settled)
	require.Equal(t, []string{"Welcomed"}, b.followUps(e))
}

func TestALetterThatNoHandlerIsForIsSettled(t *testing.T) {
	t.Parallel()
	b := welcoming(t)
	e := newEvent(t, welcomed{})
	letter := b.letterOf(e, "")
	require.NoError(t, b.replayLetter(e, letter, ""))
	b.requireState(letter, deadletter.Settled)

	gone := b.letterOf(e, "gone")
	require.Equal(t, "gone", failures(t, b.replayLetter(e, gone, "gone"))[0].Handler)
	b.requireState(gone, deadletter.Waiting)
}

// While the table is away the message is not acked, and its handler does not run again.
func TestSettlingWaitsForTheTable(t *testing.T) {
	t.Parallel()
	runs := 0
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", func(ctx context.Context, e events.Event, p registered) ([]events.Event, error) {
			runs++
			return welcome(ctx, e, p)
		})
	})
	e := newEvent(t, registered{Name: "Ana"})
	letter := b.letterOf(e, "welcome")
	b.letters.settled = slices.Repeat([]error{store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrNoSchema, errors.New("no right")}, 3)
	require.NoError(t, b.replayLetter(e, letter, "welcome"))
	require.Empty(t, b.letters.settled)
	b.requireState(letter, deadletter.Settled)
	require.Equal(t, 1, runs)

	b.letters.settled = slices.Repeat([]error{store.ErrUnavailable}, 1_000_000)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	m := b.replayed(e, letter, "welcome")
	m.SetContext(ctx)
	require.ErrorIs(t, b.Handle(m), middleware.ErrStopping)
}
