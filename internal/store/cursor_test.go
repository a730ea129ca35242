package store_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
)

func TestCursorBelongsToItsRead(t *testing.T) {
	t.Parallel()
	for _, key := range []store.SortKey{{}, {Value: -62135596800000000, ID: 1}, {Value: math.MaxInt64, ID: math.MaxInt64}} {
		c := store.NewCursor("tenant 1", key)
		found, err := c.Key("tenant 1")
		require.NoError(t, err)
		require.Equal(t, key, found)

		_, err = c.Key("tenant 2")
		require.Equal(t, &store.QueryError{Field: "after", Problem: "is a cursor of another read"}, err)
	}
}

func TestWhatIsNoCursor(t *testing.T) {
	t.Parallel()
	good := store.NewCursor("tenant 1", store.SortKey{Value: 1, ID: 2})
	for _, c := range []store.Cursor{"", "x", "!", "MSAyIDM", good + "A", good[:len(good)-1], good + "=", " " + good} {
		_, err := c.Key("tenant 1")
		var bad *store.QueryError
		require.ErrorAs(t, err, &bad, "%q", c)
	}
}
