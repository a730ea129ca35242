package handlers

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func TestWithoutValues(t *testing.T) {
	t.Parallel()
	e := events.Event{
		Data: json.RawMessage(`{"name":"Ana Silva ","note":"said \"no\"","fee":80.50,"visits":9007199254740993,"ok":true,
			"address":{"street":"Main Road 7"},"tags":["diabetic"],"age":7}`),
		Metadata: json.RawMessage(`{"from":"10.1.2.3"}`),
	}
	for text, want := range map[string]string{
		"no place for Ana Silva":       "no place for ‹name›",
		"no place for ANA SILVA":       "no place for ‹name›",
		"Mrs Silva is unknown":         "Mrs ‹name› is unknown",
		`quoted: "said \"no\""`:        `quoted: "‹note›"`,
		"owes 80.5":                    "owes ‹fee›",
		"owes 80.50":                   "owes ‹fee›",
		"visit 9007199254740993":       "visit ‹visits›",
		"lives in Main Road 7, really": "lives in ‹street›, really",
		"is diabetic":                  "is ‹tags›",
		"dial 10.1.2.3: refused":       "dial ‹from›: refused",
		"true at 7":                    "true at 7",
		"no paper in the printer":      "no paper in the printer",
	} {
		require.Equal(t, want, withoutValues(text, e))
	}
	require.Equal(t, "as it is", withoutValues("as it is", events.Event{Data: json.RawMessage("no JSON")}))
}
