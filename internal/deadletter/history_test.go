package deadletter_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	var h deadletter.History
	for i := range 40 {
		h = h.With(deadletter.Incident{Kind: deadletter.Failed, Attempts: i, Reason: string(make([]byte, 1000))})
	}
	require.Len(t, h, deadletter.MaxIncidents)
	require.Equal(t, 0, h[0].Attempts)
	require.Equal(t, deadletter.Omitted, h[1].Kind)
	require.Equal(t, 40-(deadletter.MaxIncidents-1), h[1].Attempts, "how many are left out")
	require.Equal(t, 39, h[len(h)-1].Attempts)
	require.LessOrEqual(t, len(h.Header()), 32<<10, "it fits into a header")
}

// A letter is edited after it has failed, and fails again after it was replayed.
func TestHistoryIsInOrder(t *testing.T) {
	t.Parallel()
	kinds := func(l deadletter.Letter) []deadletter.IncidentKind {
		headers := map[string]any{}
		for key, value := range l.ReplayHeaders("r", deadletter.ToHandler, time.Now()) {
			headers[key] = value
		}
		var kinds []deadletter.IncidentKind
		for _, i := range deadletter.Complete(deadletter.Letter{Headers: headers}).History {
			kinds = append(kinds, i.Kind)
		}
		return kinds
	}
	require.Equal(t, []deadletter.IncidentKind{deadletter.Failed, deadletter.Replayed}, kinds(deadletter.Letter{}))
	edited := deadletter.Incident{Kind: deadletter.Edited}
	past := deadletter.History{{Kind: deadletter.Failed}, edited, {Kind: deadletter.Replayed}, edited}
	require.Equal(t, []deadletter.IncidentKind{
		deadletter.Failed, deadletter.Edited, deadletter.Replayed, deadletter.Failed, deadletter.Edited, deadletter.Replayed,
	}, kinds(deadletter.Letter{History: past}))
	require.Equal(t, edited, past[3], "the letter's own stays")
}

func TestLettersAreEncodedWithoutLoss(t *testing.T) {
	t.Parallel()
	l := deadletter.Complete(deadletter.Letter{
		ID: "7", Source: "lane-1", Body: []byte("\xff\x00"), Headers: map[string]any{"x": "ü"},
		Failure: deadletter.Failure{Handler: "h", Reason: "r", Attempts: 2, LastFailed: time.Unix(7, 5000).UTC()},
	})
	l.History = l.History.With(deadletter.Incident{Kind: deadletter.Edited, At: time.Unix(3, 0).UTC(), By: "ana"})
	l.Replays, l.ReplayID, l.ReplayOf = 3, "r", "5"
	line, err := l.Encode()
	require.NoError(t, err)
	decoded, err := deadletter.Decode(line)
	require.NoError(t, err)
	require.Equal(t, l, decoded)
	_, err = deadletter.Decode([]byte(`{"id": 7, "secret": "x"}`))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

// worker takes up marked letters of a shelf as a Replayer does, until the test ends; fails tells which fail again.

func TestCutReason(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ reason, want string }{
		"empty":          {"", ""},
		"short":          {"no such patient", "no such patient"},
		"just fits":      {strings.Repeat("x", 1024), strings.Repeat("x", 1024)},
		"too long":       {strings.Repeat("x", 1025), strings.Repeat("x", 1021) + "…"},
		"within a rune":  {strings.Repeat("€", 1000), strings.Repeat("€", 340) + "…"},
		"no valid UTF-8": {"a\xffb", "a\uFFFDb"},
		"grows by it":    {strings.Repeat("\xffx", 600), strings.Repeat("\uFFFDx", 255) + "…"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cut := deadletter.CutReason(test.reason)
			require.Equal(t, test.want, cut)
			require.LessOrEqual(t, len(cut), deadletter.MaxReasonBytes)
			require.True(t, utf8.ValidString(cut))
		})
	}
}

func TestFailedErrorNamesEveryHandler(t *testing.T) {
	t.Parallel()
	err := &deadletter.FailedError{Failures: []deadletter.Failure{
		{Reason: "it is no event"},
		{Handler: "welcome-patient", Reason: "no name"},
	}}
	require.EqualError(t, err, "it is no event; welcome-patient: no name")
}
