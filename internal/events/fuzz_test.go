package events_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

// FuzzParse tries whole bodies.
func FuzzParse(f *testing.F) {
	for _, data := range dataSeeds() {
		f.Add(withData(data))
	}
	f.Add([]byte(``))
	f.Add([]byte(`[]`))
	f.Add([]byte(`{"event_id":`))
	f.Fuzz(requireSound)
}

// FuzzParseData tries values of event_data, which few mutations of a whole body reach.
func FuzzParseData(f *testing.F) {
	for _, data := range dataSeeds() {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data string) { requireSound(t, withData(data)) })
}

func dataSeeds() []string {
	return []string{
		`{"name":"Ana"}`, `null`, `9007199254740993`, `[0.1,1.10,1e400,-0]`, `{"a":1,"a":2}`, `"\ud83d\ude00"`, `"\ud83d"`,
		`"\u0000"`, `"\\u0000"`, `1e1001`, `"` + "\u2028<&>" + `"`, ` { } `, nested(100), `"` + "\xff" + `"`, `"\"`,
	}
}

func withData(data string) []byte {
	return []byte(`{"event_id":"0198c9ab-0000-7000-8000-000000000001","event_type":"PatientRegistered",` +
		`"aggregate_type":"Patient","aggregate_id":"0198C9AB-0000-7000-8000-000000000002","aggregate_version":1,` +
		`"tenant_id":"0198c9ab-0000-7000-8000-000000000003","clinic_id":null,` +
		`"correlation_id":"import-0198c9ab-0000-7000-8000-000000000005","created_at":"2026-07-30T11:30:00.123456+02:00",` +
		`"event_data":` + data + `,"metadata":{"source":"import"}}`)
}

// requireSound holds for any body: no panic; and what is accepted is valid, is written and read again as the same
// event, and can be held by a jsonb column.
func requireSound(t *testing.T, body []byte) {
	t.Helper()
	e, err := events.Parse(body)
	if err != nil {
		return
	}
	require.NoError(t, e.Validate())
	written, err := e.MarshalJSON()
	require.NoError(t, err)
	again, err := events.Parse(written)
	require.NoError(t, err)
	require.Equal(t, e.Fingerprint(), again.Fingerprint())
	rewritten, err := again.MarshalJSON()
	require.NoError(t, err)
	require.Equal(t, string(written), string(rewritten))
	for _, raw := range []json.RawMessage{e.Data, e.Metadata} {
		require.Empty(t, unstorable(raw), "%s", raw)
	}
	_, err = events.DataOf[any](e)
	require.NoError(t, err)
}

// unstorable says what a jsonb column would refuse, found in another way than the package finds it: by what is left of
// valid JSON when all that is harmless is taken away.
func unstorable(raw json.RawMessage) string {
	if !utf8.Valid(raw) {
		return "invalid UTF-8"
	}
	left := bytes.ReplaceAll(raw, []byte(`\\`), nil)
	left = regexp.MustCompile(`(?i)\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}`).ReplaceAll(left, nil)
	return string(regexp.MustCompile(`(?i)\\u(0000|d[89a-f][0-9a-f]{2})`).Find(left))
}
