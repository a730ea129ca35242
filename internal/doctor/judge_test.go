package doctor

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// A clock that is set wrong is noticed, whichever it is.
func TestClock(t *testing.T) {
	t.Parallel()
	s := worker.DefaultSettings()
	s.DatabaseURL = testservers.Postgres(t)
	for off, want := range map[time.Duration]Status{
		0: OK, 20 * time.Second: Warning, -20 * time.Second: Warning, 5 * time.Minute: Wrong, -5 * time.Minute: Wrong,
	} {
		d := postgresDoctor{settings: s, now: func() time.Time { return time.Now().Add(off) }}
		var found Report
		require.NoError(t, d.on(t.Context(), func(conn *pgx.Conn) error { return d.clock(t.Context(), conn, &found) }))
		require.Len(t, found, 1)
		require.Equal(t, want, found[0].Status, found[0].What)
	}
	require.Equal(t, OK, judgeClock(4*time.Second, 8*time.Second).Status, "the answer took so long that it tells nothing")
}

func TestJudgeSpace(t *testing.T) {
	t.Parallel()
	for free, want := range map[int64]Status{0: Wrong, noSpace - 1: Wrong, noSpace: Warning, littleSpace - 1: Warning, littleSpace: OK} {
		require.Equal(t, want, judgeSpace(free).Status)
	}
}

func TestJudgeLag(t *testing.T) {
	t.Parallel()
	seconds := func(s float64) *float64 { return &s }
	for name, test := range map[string]struct {
		l       lag
		onlyOwn bool
		want    Status
	}{
		"not begun":                       {lag{}, false, Warning},
		"nothing waits":                   {lag{Begun: true, Moved: seconds(9999)}, false, OK},
		"at work":                         {lag{true, seconds(0.1), 5000, 5000, seconds(900), 0}, false, OK},
		"an event just came":              {lag{true, seconds(9999), 1, 1, seconds(0.1), 0}, false, OK},
		"it rests":                        {lag{true, seconds(20), 5, 5, seconds(20), 0}, false, Warning},
		"it rests for long":               {lag{true, seconds(90), 5, 5, seconds(90), 0}, false, Wrong},
		"what waits is others'":           {lag{true, seconds(90), 5, 0, seconds(90), 0}, false, Warning},
		"what waits is others', as it is": {lag{true, seconds(90), 5, 0, seconds(90), 0}, true, OK},
	} {
		require.Equal(t, test.want, test.l.judge(test.onlyOwn).Status, name)
	}
	held := lag{Begun: true, Moved: seconds(1), Held: 25}
	require.NotContains(t, held.judge(false).What, "all committed events")
	require.Contains(t, held.judge(false).What, "25 events not published yet: a running transaction holds back")
}
