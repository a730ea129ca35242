package worker

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPartsTellSinceWhen(t *testing.T) {
	t.Parallel()
	w := &Worker{since: map[string]time.Time{}}
	at := time.Date(2026, 11, 30, 21, 0, 0, 0, time.UTC)
	away := errors.New("no connection")
	w.noteSince(map[string]error{"bus": away, "store": nil}, at)
	w.noteSince(map[string]error{"bus": away, "store": away}, at.Add(time.Minute))
	require.Equal(t, map[string]time.Time{"bus": at, "store": at.Add(time.Minute)}, w.since)
	w.noteSince(map[string]error{"bus": nil, "store": away}, at.Add(time.Hour))
	w.noteSince(map[string]error{"bus": away, "store": away}, at.Add(2*time.Hour))
	require.Equal(t, at.Add(2*time.Hour), w.since["bus"], "of another outage")

	p := Part{State: "down", Problem: "user=healz", Since: at}
	require.Equal(t, "down since 2026-11-30T21:00:00Z", p.Public())
	require.Equal(t, "down since 2026-11-30T21:00:00Z: user=healz", p.String())
	require.False(t, p.OK())
	require.True(t, Part{State: "ok (standby)"}.OK())
	require.False(t, Part{State: "okay"}.OK())
}
