package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func TestFailOnDemand(t *testing.T) {
	t.Parallel()
	event := func(metadata string) events.Event {
		return events.Event{ID: uuid.New(), Type: "Registered", Data: json.RawMessage(`{}`), Metadata: json.RawMessage(metadata)}
	}
	var reg Registry
	handled := 0
	On(&reg, "Registered", "count", func(context.Context, events.Event, struct{}) ([]events.Event, error) {
		handled++
		return nil, nil
	})
	refused := Permanent(errors.New("refused"))
	OnAll(&reg, "refuse", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) { return nil, refused })
	FailOnDemand(&reg)
	handle := func(i int, e events.Event) error {
		_, err := reg.handlers[i].call(t.Context(), e)
		return err
	}

	one, other := event(`{"fail_times": 2}`), event(`{"fail_times": 1}`)
	for _, step := range []struct {
		handler int
		e       events.Event
		want    string
	}{
		{0, one, "chaos: failure 1 of 2"},
		{0, other, "chaos: failure 1 of 1"}, // each event has a count of its own
		{1, one, "chaos: failure 1 of 2"},   // and each handler
		{0, one, "chaos: failure 2 of 2"},
		{0, other, ""},
		{0, one, ""},
		{0, one, "chaos: failure 1 of 2"}, // a new delivery begins anew
	} {
		if err := handle(step.handler, step.e); step.want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, step.want)
			require.False(t, IsPermanent(err), "a retry mends it")
		}
	}
	require.Equal(t, 2, handled)

	for _, calm := range []string{"", `{}`, `{"fail_times": 0}`, `{"fail_times": -1}`, `{"fail_times": null}`} {
		require.NoError(t, handle(0, event(calm)))
		require.ErrorIs(t, handle(1, event(calm)), refused)
	}
	require.ErrorContains(t, handle(0, event(`{"fail_times": "often"}`)), "field fail_times")
}
