package events_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func TestNewCorrelationIDsAreOrderedInTime(t *testing.T) {
	t.Parallel()
	one, other := events.NewCorrelationID(), events.NewCorrelationID()
	require.EqualValues(t, 7, one.Version())
	require.Less(t, one.String(), other.String())
}

func TestPrefixedCorrelationID(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "import", "a-b-c", "-", "0198c9ab-0000-7000-8000-000000000001", "größe"} {
		text := events.PrefixedCorrelationID(prefix)
		id, err := events.ParseCorrelationID(text)
		require.NoError(t, err, text)
		if prefix == "" {
			require.Equal(t, id.String(), text)
		} else {
			require.Equal(t, prefix+"-"+id.String(), text)
		}
		require.Equal(t, id, events.CorrelationIDOrNew(text))
	}
}

func TestParseCorrelationIDRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "-", secret, secret + "-1234", "-0198c9ab-0000-7000-8000-000000000001", "x0198c9ab-0000-7000-8000-000000000001",
		"0198c9ab-0000-7000-8000-000000000001-import", "import-00000000-0000-0000-0000-000000000000",
		"urn:uuid:0198c9ab-0000-7000-8000-000000000001",
	} {
		_, err := events.ParseCorrelationID(text)
		require.ErrorContains(t, err, "UUID", text)
		require.NotContains(t, err.Error(), secret)
	}
}

func TestCorrelationIDOrNew(t *testing.T) {
	t.Parallel()
	one, other := events.CorrelationIDOrNew(""), events.CorrelationIDOrNew("")
	require.NotEqual(t, one, other, "new chains")
	require.EqualValues(t, 7, one.Version())

	require.Equal(t, one, events.CorrelationIDOrNew(one.String()), "propagated")

	order := events.CorrelationIDOrNew("order 17")
	require.Equal(t, order, events.CorrelationIDOrNew("order 17"), "the same text, the same chain")
	require.NotEqual(t, order, events.CorrelationIDOrNew("order 18"))
	require.NotEqual(t, uuid.Nil, order)
}

func TestEventInContext(t *testing.T) {
	t.Parallel()
	_, found := events.FromContext(t.Context())
	require.False(t, found)
	e, found := events.FromContext(events.NewContext(t.Context(), parsed(t, nil)))
	require.True(t, found)
	require.Equal(t, parsed(t, nil), e)
}
