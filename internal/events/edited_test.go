package events_test

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func TestEditedBodyHasTheFingerprintOfItsOriginal(t *testing.T) {
	t.Parallel()
	original, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, named{Name: "Ana"})
	require.NoError(t, err)
	changed := original
	changed.Data = json.RawMessage(`{"name":"Eva <b>","big":9007199254740993}`)
	require.NotEqual(t, original.Fingerprint(), changed.Fingerprint())

	for name, metadata := range map[string]string{
		"none": "", "some": `{"user_agent":"x","n":12.10}`, "an older mark": `{"edited_from":"00"}`, "no hash": `{"edited_from":7}`,
	} {
		changed.Metadata = json.RawMessage(metadata)
		body, err := changed.MarshalJSON()
		require.NoError(t, err)
		body, err = events.EditedBody(original, body)
		require.NoError(t, err, name)
		edited, err := events.Parse(body)
		require.NoError(t, err, name)
		require.Equal(t, original.Fingerprint(), edited.Fingerprint(), name)
		require.Equal(t, `{"name":"Eva <b>","big":9007199254740993}`, string(edited.Data), name)
		if name == "some" {
			require.Contains(t, string(edited.Metadata), `"n":12.10`)
		}

		again, err := events.EditedBody(edited, body)
		require.NoError(t, err)
		twice, err := events.Parse(again)
		require.NoError(t, err)
		require.Equal(t, original.Fingerprint(), twice.Fingerprint(), "a copy of a copy is of the first")
	}

	for _, mark := range []string{`{"edited_from":"00"}`, `{"edited_from":7}`, `{"edited_from":null}`, `{"x":"edited_from"}`} {
		forged := changed
		forged.Metadata = json.RawMessage(mark)
		require.NotEqual(t, original.Fingerprint(), forged.Fingerprint(), mark)
	}
	for _, body := range []string{"", "[]", `{"metadata":[]}`} {
		_, err := events.EditedBody(original, []byte(body))
		require.Error(t, err, body)
	}
	_, err = events.EditedBody(original, []byte(`{"metadata":null}`))
	require.NoError(t, err)
}

type named struct {
	Name string `json:"name"`
}

func (named) EventType() string { return "Named" }
