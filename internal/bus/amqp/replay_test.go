package amqp_test

import (
	"iter"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

// sentBy reads all letters that a replay sends; it fails the test at an error.
func sentBy(tb testing.TB, steps iter.Seq2[deadletter.Progress, error]) []deadletter.Letter {
	tb.Helper()
	var all []deadletter.Letter
	for p, err := range steps {
		require.NoError(tb, err)
		if p.Step == deadletter.Sent {
			all = append(all, p.Letter)
		}
	}
	return all
}
