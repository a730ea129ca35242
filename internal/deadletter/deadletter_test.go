package deadletter_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

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

func TestFilterDoesNotTakeEventsWithoutIDForTheNilID(t *testing.T) {
	t.Parallel()
	nilID := deadletter.Filter{IDs: []string{"00000000-0000-0000-0000-000000000000"}}
	require.False(t, nilID.Match(deadletter.Letter{ID: "1"}))
}
