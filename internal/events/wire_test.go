package events_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

// secret stands for what is about a patient: no error may quote it.
const secret = "Ana-Secret"

// required are the fields without which there is no event.
func required() []string {
	return []string{
		"event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "correlation_id",
		"created_at", "event_data",
	}
}

// body is an event on the wire with all its fields, of which changes replaces some; "" leaves a field out.
func body(t *testing.T, changes map[string]string) []byte {
	t.Helper()
	fields := map[string]json.RawMessage{
		"event_id":          json.RawMessage(`"0198c9ab-0000-7000-8000-000000000001"`),
		"event_type":        json.RawMessage(`"PatientRegistered"`),
		"aggregate_type":    json.RawMessage(`"Patient"`),
		"aggregate_id":      json.RawMessage(`"0198c9ab-0000-7000-8000-000000000002"`),
		"aggregate_version": json.RawMessage(`1`),
		"tenant_id":         json.RawMessage(`"0198c9ab-0000-7000-8000-000000000003"`),
		"clinic_id":         json.RawMessage(`"0198c9ab-0000-7000-8000-000000000004"`),
		"correlation_id":    json.RawMessage(`"0198c9ab-0000-7000-8000-000000000005"`),
		"causation_id":      json.RawMessage(`"0198c9ab-0000-7000-8000-000000000006"`),
		"user_id":           json.RawMessage(`"0198c9ab-0000-7000-8000-000000000007"`),
		"created_at":        json.RawMessage(`"2026-07-30T09:30:00.123Z"`),
		"event_data":        json.RawMessage(`{"name":"` + secret + `"}`),
		"metadata":          json.RawMessage(`{"source":"` + secret + `"}`),
	}
	var b strings.Builder
	for field, raw := range changes {
		fields[field] = json.RawMessage(raw)
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if len(fields[field]) > 0 {
			fmt.Fprintf(&b, ",%q:%s", field, fields[field])
		}
	}
	return []byte("{" + b.String()[1:] + "}")
}

func parsed(t *testing.T, changes map[string]string) events.Event {
	t.Helper()
	e, err := events.Parse(body(t, changes))
	require.NoError(t, err)
	return e
}

// requireInvalid checks that err names just the given fields, and quotes no data.
func requireInvalid(t *testing.T, err error, fields ...string) {
	t.Helper()
	invalid, is := errors.AsType[*events.InvalidError](err)
	require.True(t, is, "%v", err)
	var named []string
	for _, f := range invalid.Fields {
		named = append(named, f.Field)
		require.Contains(t, err.Error(), strings.TrimSpace(f.Field+" "+f.Problem))
	}
	require.ElementsMatch(t, fields, named, "%v", err)
	require.NotContains(t, err.Error(), secret)
}

func TestParse(t *testing.T) {
	t.Parallel()
	want := events.Event{
		ID:               uuid.MustParse("0198c9ab-0000-7000-8000-000000000001"),
		Type:             "PatientRegistered",
		AggregateType:    "Patient",
		AggregateID:      uuid.MustParse("0198c9ab-0000-7000-8000-000000000002"),
		AggregateVersion: 1,
		TenantID:         uuid.MustParse("0198c9ab-0000-7000-8000-000000000003"),
		ClinicID:         uuid.NullUUID{UUID: uuid.MustParse("0198c9ab-0000-7000-8000-000000000004"), Valid: true},
		CorrelationID:    uuid.MustParse("0198c9ab-0000-7000-8000-000000000005"),
		CausationID:      uuid.NullUUID{UUID: uuid.MustParse("0198c9ab-0000-7000-8000-000000000006"), Valid: true},
		UserID:           uuid.NullUUID{UUID: uuid.MustParse("0198c9ab-0000-7000-8000-000000000007"), Valid: true},
		CreatedAt:        time.Date(2026, 7, 30, 9, 30, 0, 123_000_000, time.UTC),
		Data:             json.RawMessage(`{"name":"` + secret + `"}`),
		Metadata:         json.RawMessage(`{"source":"` + secret + `"}`),
	}
	require.Equal(t, want, parsed(t, nil))
}

func TestParseIsLiberal(t *testing.T) {
	t.Parallel()
	plain := parsed(t, nil)
	tests := map[string]struct {
		changes map[string]string
		want    func(*events.Event)
	}{
		"an id in upper case": {
			map[string]string{"event_id": `"0198C9AB-0000-7000-8000-000000000001"`}, func(*events.Event) {},
		},
		"an id that is no UUIDv7": {
			map[string]string{"tenant_id": `"ffffffff-ffff-ffff-ffff-ffffffffffff"`},
			func(e *events.Event) { e.TenantID = uuid.Max },
		},
		"a correlation id with a prefix": {
			map[string]string{"correlation_id": `"import-0198c9ab-0000-7000-8000-000000000005"`}, func(*events.Event) {},
		},
		"optional fields absent": {
			map[string]string{"clinic_id": "", "causation_id": "", "user_id": "", "metadata": ""}, withoutOptional,
		},
		"optional fields null": {
			map[string]string{"clinic_id": "null", "causation_id": "null", "user_id": "null", "metadata": "null"},
			withoutOptional,
		},
		"unknown fields": {map[string]string{"schema": `{"version":2}`}, func(*events.Event) {}},
		"metadata empty": {
			map[string]string{"metadata": `{}`}, func(e *events.Event) { e.Metadata = json.RawMessage(`{}`) },
		},
		"greatest version": {
			map[string]string{"aggregate_version": `2147483647`},
			func(e *events.Event) { e.AggregateVersion = events.MaxVersion },
		},
		"type with escapes": {
			map[string]string{"event_type": `"\u0050atientRegistered"`}, func(*events.Event) {},
		},
		"100 characters of two bytes": {
			map[string]string{"event_type": `"` + strings.Repeat("ä", 100) + `"`},
			func(e *events.Event) { e.Type = strings.Repeat("ä", 100) },
		},
		"white space": {
			map[string]string{
				"aggregate_version": " \n1\t", "event_id": ` "0198c9ab-0000-7000-8000-000000000001" `, "clinic_id": " null ",
			},
			func(e *events.Event) { e.ClinicID = uuid.NullUUID{} },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := plain
			test.want(&want)
			require.Equal(t, want, parsed(t, test.changes))
		})
	}
}

func withoutOptional(e *events.Event) {
	e.ClinicID, e.CausationID, e.UserID, e.Metadata = uuid.NullUUID{}, uuid.NullUUID{}, uuid.NullUUID{}, nil
}

func TestParseReadsAnyRFC3339Time(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"2026-07-30T09:30:00Z":             time.Date(2026, 7, 30, 9, 30, 0, 0, time.UTC),
		"2026-07-30T09:30:00.1234567Z":     time.Date(2026, 7, 30, 9, 30, 0, 123_456_700, time.UTC),
		"2026-07-30T11:30:00.123456+02:00": time.Date(2026, 7, 30, 9, 30, 0, 123_456_000, time.UTC),
		"2026-07-30t09:30:00z":             time.Date(2026, 7, 30, 9, 30, 0, 0, time.UTC),
		"9999-12-31T23:59:59.999Z":         time.Date(9999, 12, 31, 23, 59, 59, 999_000_000, time.UTC),
	} {
		require.Equal(t, want, parsed(t, map[string]string{"created_at": `"` + text + `"`}).CreatedAt, text)
	}
}

func TestParseOfABodyThatIsNoEvent(t *testing.T) {
	t.Parallel()
	whole := string(body(t, nil))
	tests := map[string]struct{ body, problem string }{
		"empty":           {"", "the body is empty"},
		"white space":     {" \n", "the body is empty"},
		"not JSON":        {secret, "the body is not valid JSON at byte 1"},
		"an array":        {"[" + whole + "]", "the body is a JSON array, not an object"},
		"a string":        {`"` + secret + `"`, "the body is a JSON string, not an object"},
		"a number":        {"17", "the body is a JSON number, not an object"},
		"a boolean":       {"true", "the body is a JSON boolean, not an object"},
		"null":            {"null", "the body is a JSON null, not an object"},
		"truncated":       {whole[:len(whole)-20], "the body is not valid JSON at byte"},
		"two events":      {whole + whole, "the body is not valid JSON at byte"},
		"a mark in front": {"\ufeff" + whole, "the body begins with a byte order mark (BOM)"},
		"invalid UTF-8":   {strings.Replace(whole, secret, secret+"\xff", 1), "the body is not valid UTF-8"},
		"100 000 levels":  {strings.Repeat("[", 100_000), "the body is nested too deep"},
		"10 000 levels": {
			string(body(t, map[string]string{"event_data": nested(10_000)})), "the body is nested too deep",
		},
		"levels of objects": {strings.Repeat(`{"a":`, 20_000), "the body is nested too deep"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, parse := range []func([]byte) (events.Event, error){events.Parse, events.ParseDraft} {
				e, err := parse([]byte(test.body))
				requireInvalid(t, err, "")
				require.ErrorContains(t, err, "invalid event: "+test.problem)
				require.Zero(t, e)
			}
		})
	}
}

func nested(levels int) string { return strings.Repeat("[", levels) + strings.Repeat("]", levels) }

func TestParseOfAnotherShapeNamesAllThatIsMissing(t *testing.T) {
	t.Parallel()
	for _, other := range []string{`{}`, `{"type":"` + secret + `","data":{"name":"` + secret + `"}}`} {
		_, err := events.Parse([]byte(other))
		requireInvalid(t, err, required()...)
	}
}

func TestParseNamesTheBadField(t *testing.T) {
	t.Parallel()
	const quoted = `"` + secret + `"`
	type row struct{ field, raw, problem string }
	rows := []row{
		{"event_type", `""`, "is missing"},
		{"event_type", `17`, "is a JSON number, not a string"},
		{"event_type", `"` + strings.Repeat("t", 101) + `"`, "has 101 characters, over the 100 allowed"},
		{"event_type", `"` + strings.Repeat("€", 90) + `"`, "has 270 bytes, over the 255 of a routing key"},
		{"event_type", `"Patient.#"`, "contains # or *"},
		{"event_type", `"*"`, "contains # or *"},
		{"event_type", `"Patient\nRegistered"`, "contains a control character"},
		{"event_type", `"Patient\u0000"`, `contains \u0000`},
		{"event_type", `"\ud800"`, "contains the first half of a surrogate pair"},
		{"event_type", `"  "`, "is blank"},
		{"event_type", `" \u200b "`, "contains the invisible character U+200B"},
		{"event_type", `"Patient\u202eRegistered"`, "contains the invisible character U+202E"},
		{"event_type", `"Patient\u00a0Registered"`, "contains the invisible character U+00A0"},
		{"event_type", `"Patient\u2028Registered"`, "contains the invisible character U+2028"},
		{"event_type", `"Patient\ufeff"`, "contains the invisible character U+FEFF"},
		{"event_type", `"\u3164"`, "contains the invisible character U+3164"},
		{"event_type", `"\ue000"`, "contains the invisible character U+E000"},
		{"aggregate_type", `" "`, "is blank"},
		{"aggregate_type", `"\u2066Patient"`, "contains the invisible character U+2066"},
		{"aggregate_type", `["Patient"]`, "is a JSON array, not a string"},
		{"aggregate_type", `"` + strings.Repeat("t", 51) + `"`, "has 51 characters, over the 50 allowed"},
		{"aggregate_type", `"Pati\u007fent"`, "contains a control character"},
		{"aggregate_version", `0`, "must be from 1 to 2147483647, not 0"},
		{"aggregate_version", `-1`, "must be from 1 to 2147483647, not -1"},
		{"aggregate_version", `1.5`, "is not an integer"},
		{"aggregate_version", `1e3`, "is not an integer"},
		{"aggregate_version", `"1"`, "is not an integer"},
		{"aggregate_version", `2147483648`, "must be from 1 to 2147483647, not 2147483648"},
		{"aggregate_version", `4294967297`, "must be from 1 to 2147483647, not 4294967297"},
		{"aggregate_version", `9223372036854775808`, "must be from 1 to 2147483647"},
		{"created_at", `""`, "is empty"},
		{"created_at", `1785403800123`, "is a JSON number, not a string"},
		{"created_at", quoted, "is not an RFC 3339 time"},
		{"created_at", `"2026-07-30"`, "is not an RFC 3339 time"},
		{"created_at", `"2026-02-30T09:30:00Z"`, "is not an RFC 3339 time"},
		{"created_at", `"10000-01-01T00:00:00Z"`, "is not an RFC 3339 time"},
		{"created_at", `"9999-12-31T23:59:59-01:00"`, "has a year outside 1 to 9999"},
		{"created_at", `"0000-01-01T00:00:00Z"`, "has a year outside 1 to 9999"},
		{"event_data", `{"a":"` + secret + `\u0000"}`, `contains \u0000`},
		{"event_data", `{"` + secret + `\u0000":1}`, `contains \u0000`},
		{"event_data", `["` + secret + `","\\\u0000"]`, `contains \u0000`},
		{"event_data", `"\ud83d"`, "contains the first half of a surrogate pair alone"},
		{"event_data", `"\ud83d\u0041"`, "contains the first half of a surrogate pair alone"},
		{"event_data", `"\ud83d\\u0041"`, "contains the first half of a surrogate pair alone"},
		{"event_data", `"\uDE00\ud83d"`, "contains the second half of a surrogate pair alone"},
		{"event_data", `[1e1000]`, "contains a number of more than 1000 digits"},
		{"event_data", `[1.5e-999]`, "contains a number of more than 1000 digits"},
		{"event_data", `{"a":-1.5E-99999999999999999999}`, "contains a number of more than 1000 digits"},
		{"event_data", `1e-9223372036854775808`, "contains a number of more than 1000 digits"},
		{"event_data", strings.Repeat("7", 1001), "contains a number of more than 1000 digits"},
		{"metadata", quoted, "is not a JSON object"},
		{"metadata", `[]`, "is not a JSON object"},
		{"metadata", `17`, "is not a JSON object"},
		{"metadata", `{"a":"\u0000"}`, `contains \u0000`},
	}
	for _, field := range required() {
		rows = append(rows, row{field, "", "is missing"})
		if field != "event_data" { // null is a JSON value
			rows = append(rows, row{field, "null", "is missing"})
		}
	}
	for _, field := range []string{
		"event_id", "aggregate_id", "tenant_id", "clinic_id", "correlation_id", "causation_id", "user_id",
	} {
		rows = append(rows,
			row{field, `""`, "is empty"},
			row{field, `17`, "is a JSON number, not a string"},
			row{field, `{}`, "is a JSON object, not a string"},
			row{field, quoted, "is not a UUID"},
			row{field, `"0198c9ab0000700080000000000000000001"`, "is "},
			row{field, `"0198c9ab-0000-7000-8000-00000000000g"`, "is "},
			row{field, `"{0198c9ab-0000-7000-8000-000000000001}"`, "is "},
			row{field, `"00000000-0000-0000-0000-000000000000"`, "is "},
		)
	}
	for _, r := range rows {
		t.Run(r.field+" "+r.raw, func(t *testing.T) {
			t.Parallel()
			_, err := events.Parse(body(t, map[string]string{r.field: r.raw}))
			requireInvalid(t, err, r.field)
			require.ErrorContains(t, err, "invalid event: "+r.field+" "+r.problem)
		})
	}
}

func TestParseNamesEveryBadField(t *testing.T) {
	t.Parallel()
	_, err := events.Parse(body(t, map[string]string{
		"event_id": "", "event_type": `""`, "aggregate_id": `"` + secret + `"`, "aggregate_version": "0", "metadata": "1",
		"event_data": `"` + secret + `\u0000"`,
	}))
	requireInvalid(t, err, "event_id", "event_type", "aggregate_id", "aggregate_version", "metadata", "event_data")
}

func TestDataKeepsItsMeaning(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"null":                `null`,
		"a scalar":            `true`,
		"a string":            `"x"`,
		"beyond 2^53":         `{"n":9007199254740993,"m":-123456789012345678901234567890}`,
		"decimals":            `[0.1,0.30000000000000004,1.10,100.00,-0]`,
		"beyond float64":      `[1e400,1.5E-400]`,
		"longest numbers":     `[-` + strings.Repeat("7", 1000) + `,1e999,-0.5E-998]`,
		"duplicate keys":      `{"a":1,"a":2}`,
		"unknown fields":      `{"name":"Ana","unknown":{"deep":[{}]}}`,
		"escapes":             `"\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00\uFFFF"`,
		"an escaped escape":   `["\\u0000","\\\\ud800"]`,
		"as deep as can be":   nested(9_999),
		"brackets in strings": `"` + strings.Repeat("[", 20_000) + `"`,
		"HTML":                "\"<b>&\u2028\"",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := parsed(t, map[string]string{"event_data": data})
			require.Equal(t, data, string(e.Data))
			again, err := e.MarshalJSON()
			require.NoError(t, err)
			e, err = events.Parse(again)
			require.NoError(t, err)
			require.Equal(t, data, string(e.Data))
		})
	}
}

func TestLargeBody(t *testing.T) {
	t.Parallel()
	large := `{"scan":"` + strings.Repeat("0123456789abcdef", 20<<20/16) + `"}`
	e := parsed(t, map[string]string{"event_data": large})
	require.Len(t, e.Data, len(large))
}

func TestDuplicateEnvelopeKeysTakeTheLast(t *testing.T) {
	t.Parallel()
	twice := strings.Replace(string(body(t, nil)), "{", `{"event_type":"Other",`, 1)
	e, err := events.Parse([]byte(twice))
	require.NoError(t, err)
	require.Equal(t, "PatientRegistered", e.Type)
}

func TestMarshalJSON(t *testing.T) {
	t.Parallel()
	e := parsed(t, nil)
	written, err := e.MarshalJSON()
	require.NoError(t, err)
	require.Equal(t, `{"event_id":"0198c9ab-0000-7000-8000-000000000001","event_type":"PatientRegistered",`+
		`"aggregate_type":"Patient","aggregate_id":"0198c9ab-0000-7000-8000-000000000002","aggregate_version":1,`+
		`"tenant_id":"0198c9ab-0000-7000-8000-000000000003","clinic_id":"0198c9ab-0000-7000-8000-000000000004",`+
		`"correlation_id":"0198c9ab-0000-7000-8000-000000000005","causation_id":"0198c9ab-0000-7000-8000-000000000006",`+
		`"user_id":"0198c9ab-0000-7000-8000-000000000007","created_at":"2026-07-30T09:30:00.123Z",`+
		`"event_data":{"name":"Ana-Secret"},"metadata":{"source":"Ana-Secret"}}`, string(written))

	withoutOptional(&e)
	written, err = json.Marshal(e)
	require.NoError(t, err)
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(written, &fields))
	require.ElementsMatch(t, required(), slices.Collect(maps.Keys(fields)), "absent stays absent")

	var again events.Event
	require.NoError(t, json.Unmarshal(written, &again))
	require.Equal(t, e, again)
}

func TestMarshalJSONWritesTimesAsJavaScriptDoes(t *testing.T) {
	t.Parallel()
	east := time.FixedZone("east", 2*60*60)
	for want, at := range map[string]time.Time{
		"2026-07-30T09:30:00.000Z": time.Date(2026, 7, 30, 11, 30, 0, 0, east),
		"2026-07-30T09:30:00.120Z": time.Date(2026, 7, 30, 9, 30, 0, 120_999_999, time.UTC),
		"0800-12-25T00:00:00.001Z": time.Date(800, 12, 25, 0, 0, 0, 1_000_000, time.UTC),
	} {
		e := parsed(t, nil)
		e.CreatedAt = at
		written, err := e.MarshalJSON()
		require.NoError(t, err)
		require.Contains(t, string(written), `"created_at":"`+want+`"`)
	}
}

func TestMarshalJSONQuotesTypes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{`quote " and \`, "Patientin-Müller", "<b>", "a b", "line\u2028"} {
		e := parsed(t, nil)
		e.Type, e.AggregateType = name, name
		written, err := e.MarshalJSON()
		require.NoError(t, err)
		require.Equal(t, e, events.ParsePartial(written)) // an event of U+2028 is invalid
	}
}

func TestMarshalJSONOfWhatIsNoJSON(t *testing.T) {
	t.Parallel()
	for want, spoil := range map[string]func(*events.Event){
		"event_data is not valid JSON": func(e *events.Event) { e.Data = nil },
		"event_data is not valid":      func(e *events.Event) { e.Data = json.RawMessage(secret) },
		"metadata is not valid":        func(e *events.Event) { e.Metadata = json.RawMessage(`{"` + secret) },
	} {
		e := parsed(t, nil)
		spoil(&e)
		_, err := e.MarshalJSON()
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), secret)
	}
}

func TestParseDraft(t *testing.T) {
	t.Parallel()
	e, err := events.ParseDraft([]byte(`{"event_type":"PatientRegistered","event_data":{"n":1.10}}`))
	require.NoError(t, err)
	require.Equal(t, events.Event{Type: "PatientRegistered", Data: json.RawMessage(`{"n":1.10}`)}, e)
	requireInvalid(t, e.Validate(), "event_id", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id",
		"correlation_id", "created_at")

	e, err = events.ParseDraft([]byte(`{"event_id":null,"aggregate_version":null,"created_at":null}`))
	require.NoError(t, err)
	require.Zero(t, e)

	e, err = events.ParseDraft(body(t, nil))
	require.NoError(t, err)
	require.Equal(t, parsed(t, nil), e)

	for field, bad := range map[string]string{
		"event_id": `"` + secret + `"`, "aggregate_version": "0", "created_at": `"today"`, "event_type": "1",
		"clinic_id": `""`,
	} {
		_, err = events.ParseDraft([]byte(`{"` + field + `":` + bad + `}`))
		requireInvalid(t, err, field)
	}

	_, err = events.ParseDraft([]byte(`{"event_type":1,"corelation_id":"` + secret + `","":"","event_data":{"unknown":1}}`))
	requireInvalid(t, err, "event_type", `""`, `"corelation_id"`)
	require.ErrorContains(t, err, `"corelation_id" is no field of an event`)

	for text, want := range map[string]string{
		`{"event_type":"A","event_\u0074ype":"B"}`:                      `"event_type" is there twice`,
		`{"event_data":{"` + secret + `":1,"` + secret + `":2}}`:        `"event_data" contains an object with the same key twice`,
		`{"event_data":{"a":[{"b":{}},{"c":"d","e":1,"\u0063":null}]}}`: `"event_data" contains an object with the same key twice`,
		`{"metadata":{"a":{"b":1},"c":{"b":1,"b":1}}}`:                  `"metadata" contains an object with the same key twice`,
		"\xef\xbb\xbf{}":           "the body begins with a byte order mark (BOM), which JSON does not allow",
		"\xff\xfe{\x00}\x00\n\x00": "the body begins with a byte order mark (BOM) of UTF-16",
	} {
		_, err = events.ParseDraft([]byte(text))
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), secret)
	}
	_, err = events.ParseDraft([]byte(`{"event_data":{"a":[{"b":"c","c":"b"},{"b":["a","a",{}]},"b","b"],"b":{"a":"a","b":{}},"":1}}`))
	require.NoError(t, err)
}

func TestParsePartial(t *testing.T) {
	t.Parallel()
	require.Equal(t, parsed(t, nil), events.ParsePartial(body(t, map[string]string{"unknown": "1"})))
	half := map[string]string{
		"event_id": `"` + secret + `"`, "aggregate_version": "-1", "created_at": "17", "tenant_id": "", "unknown": "1",
	}
	want := parsed(t, nil)
	want.ID, want.AggregateVersion, want.CreatedAt, want.TenantID = uuid.Nil, 0, time.Time{}, uuid.Nil
	require.Equal(t, want, events.ParsePartial(body(t, half)))
	for _, none := range []string{"", secret, "[]", "null", `{"event_type":`} {
		require.Zero(t, events.ParsePartial([]byte(none)))
	}
}

func TestValidateOfEventsMadeByHand(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		field string
		spoil func(*events.Event)
	}{
		"type is not UTF-8": {"event_type", func(e *events.Event) { e.Type = "\xff" }},
		"data is not UTF-8": {
			"event_data", func(e *events.Event) { e.Data = json.RawMessage("\"" + secret + "\xff\"") },
		},
		"data is not JSON":     {"event_data", func(e *events.Event) { e.Data = json.RawMessage(secret) }},
		"data is two values":   {"event_data", func(e *events.Event) { e.Data = json.RawMessage("1 2") }},
		"data is empty":        {"event_data", func(e *events.Event) { e.Data = json.RawMessage("") }},
		"data is too deep":     {"event_data", func(e *events.Event) { e.Data = json.RawMessage(nested(10_000)) }},
		"metadata is blank":    {"metadata", func(e *events.Event) { e.Metadata = json.RawMessage(" ") }},
		"metadata is null":     {"metadata", func(e *events.Event) { e.Metadata = json.RawMessage("null") }},
		"version is too great": {"aggregate_version", func(e *events.Event) { e.AggregateVersion = events.MaxVersion; e.AggregateVersion++ }},
		"made in the year 10000": {
			"created_at", func(e *events.Event) { e.CreatedAt = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := parsed(t, nil)
			require.NoError(t, e.Validate())
			test.spoil(&e)
			requireInvalid(t, e.Validate(), test.field)
		})
	}
}
