package events_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

// registered is the data of an event that opens a stream of its own.
type registered struct {
	Name string `json:"name"`
}

func (registered) EventType() string     { return "PatientRegistered" }
func (registered) AggregateType() string { return "Patient" }

type invited struct{}

func (invited) EventType() string     { return "Invited" }
func (invited) AggregateType() string { return "Invitation" }

// strange is data with a type and content of choice.
type strange struct {
	eventType string
	content   any
}

func (s strange) EventType() string            { return s.eventType }
func (s strange) MarshalJSON() ([]byte, error) { return json.Marshal(s.content) }

// originOf is an origin with all its fields.
func originOf(t *testing.T) events.Origin {
	t.Helper()
	return events.CausedBy(parsed(t, nil))
}

func TestNew(t *testing.T) {
	t.Parallel()
	origin, id := originOf(t), uuid.New()
	before := time.Now().Truncate(time.Millisecond)
	e, err := events.New(origin, "Patient", id, 3, registered{Name: "<Ana>"})
	require.NoError(t, err)
	require.NoError(t, e.Validate())
	require.EqualValues(t, 7, e.ID.Version())
	require.WithinRange(t, e.CreatedAt, before, time.Now())
	require.JSONEq(t, `{"name":"<Ana>"}`, string(e.Data))
	require.Equal(t, events.Event{
		ID: e.ID, Type: "PatientRegistered", AggregateType: "Patient", AggregateID: id, AggregateVersion: 3,
		TenantID: origin.TenantID, ClinicID: origin.ClinicID, CorrelationID: origin.CorrelationID,
		CausationID: origin.CausationID, UserID: origin.UserID, CreatedAt: e.CreatedAt, Data: e.Data,
	}, e)

	written, err := e.MarshalJSON()
	require.NoError(t, err)
	again, err := events.Parse(written)
	require.NoError(t, err)
	require.Equal(t, e.CreatedAt, again.CreatedAt, "the wire loses nothing of it")

	later, err := events.New(origin, "Patient", id, 4, registered{})
	require.NoError(t, err)
	require.Less(t, e.ID.String(), later.ID.String(), "ids are ordered in time")
}

func TestNewBeginsAChain(t *testing.T) {
	t.Parallel()
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{})
	require.NoError(t, err)
	require.NotEqual(t, uuid.Nil, e.CorrelationID)
	require.False(t, e.CausationID.Valid)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	origin, id := originOf(t), uuid.New()
	for name, test := range map[string]struct {
		origin  events.Origin
		id      uuid.UUID
		version int
		data    events.Data
		field   string
	}{
		"no tenant":     {events.Origin{}, id, 1, registered{}, "tenant_id"},
		"no id":         {origin, uuid.Nil, 1, registered{}, "aggregate_id"},
		"no version":    {origin, id, 0, registered{}, "aggregate_version"},
		"no type":       {origin, id, 1, strange{"", secret}, "event_type"},
		"a NUL":         {origin, id, 1, registered{Name: secret + "\x00"}, "event_data"},
		"a huge number": {origin, id, 1, strange{"X", json.Number("1e5000")}, "event_data"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := events.New(test.origin, "Patient", test.id, test.version, test.data)
			requireInvalid(t, err, test.field)
		})
	}
	_, err := events.New(origin, "Patient", id, 1, strange{"Odd", func() {}})
	require.ErrorContains(t, err, "encode data of Odd: ")
}

func TestFollow(t *testing.T) {
	t.Parallel()
	cause := parsed(t, nil)
	follow, err := events.Follow(cause, registered{Name: "Ana"}, invited{})
	require.NoError(t, err)
	require.Len(t, follow, 2)
	for i, want := range []events.Opening{registered{}, invited{}} {
		e := follow[i]
		require.Equal(t, want.EventType(), e.Type)
		require.Equal(t, want.AggregateType(), e.AggregateType)
		require.Equal(t, events.DerivedID(cause.ID, want.AggregateType()), e.AggregateID)
		require.Equal(t, 1, e.AggregateVersion)
		require.Equal(t, cause.TenantID, e.TenantID)
		require.Equal(t, cause.ClinicID, e.ClinicID)
		require.Equal(t, cause.UserID, e.UserID)
		require.Equal(t, cause.CorrelationID, e.CorrelationID)
		require.Equal(t, uuid.NullUUID{UUID: cause.ID, Valid: true}, e.CausationID)
	}
	again, err := events.Follow(cause, registered{Name: "Ana"}, invited{})
	require.NoError(t, err)
	for i := range follow {
		require.Equal(t, follow[i].AggregateID, again[i].AggregateID, "handled twice, the same aggregates")
		require.NotEqual(t, follow[i].ID, again[i].ID)
	}

	none, err := events.Follow(cause)
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestFollowRefuses(t *testing.T) {
	t.Parallel()
	cause := parsed(t, nil)
	_, err := events.Follow(cause, registered{}, invited{}, registered{})
	require.ErrorContains(t, err, `two events open an aggregate of type "Patient"`)
	_, err = events.Follow(cause, registered{Name: secret + "\x00"})
	requireInvalid(t, err, "event_data")
}

func TestDerivedID(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("0198c9ab-0000-7000-8000-000000000001")
	other := uuid.MustParse("0198c9ab-0000-7000-8000-000000000002")
	require.Equal(t, "490aa81b-def5-50a5-a394-41edd99975ef", events.DerivedID(id, "Message").String(),
		"ids in stores depend on it")
	require.EqualValues(t, 5, events.DerivedID(id, "Message").Version())
	require.NotEqual(t, events.DerivedID(id, "Message"), events.DerivedID(other, "Message"))
	require.NotEqual(t, events.DerivedID(id, "Message"), events.DerivedID(id, "Reminder"))
}

func TestDataOf(t *testing.T) {
	t.Parallel()
	e := parsed(t, map[string]string{
		"event_data": `{"name":"Ana","balance":9007199254740993.10,"more":{"n":0.30000000000000004}}`,
	})
	p, err := events.DataOf[registered](e)
	require.NoError(t, err)
	require.Equal(t, registered{Name: "Ana"}, p, "unknown fields are ignored")

	open, err := events.DataOf[map[string]any](e)
	require.NoError(t, err)
	require.Equal(t, json.Number("9007199254740993.10"), open["balance"])
	require.Equal(t, json.Number("0.30000000000000004"), open["more"].(map[string]any)["n"])

	raw, err := events.DataOf[json.RawMessage](e)
	require.NoError(t, err)
	require.Equal(t, e.Data, raw)
}

func TestDataOfDeepData(t *testing.T) {
	t.Parallel()
	e := parsed(t, map[string]string{"event_data": nested(9_999)})
	_, err := events.DataOf[any](e)
	require.NoError(t, err)
	e.Data = json.RawMessage(nested(1_000_000))
	_, err = events.DataOf[any](e)
	require.ErrorContains(t, err, "nested too deep")
}

func TestDataOfErrorsQuoteNoValues(t *testing.T) {
	t.Parallel()
	type timed struct {
		At time.Time `json:"at"`
	}
	type sized struct {
		Inner struct {
			N int8 `json:"n"`
		} `json:"inner"`
	}
	type quoted struct {
		N int `json:"n,string"`
	}
	for name, test := range map[string]struct {
		data    string
		decode  func(events.Event) error
		problem string
	}{
		"another type": {
			`"` + secret + `"`, into[registered],
			"decode event_data of PatientRegistered 0198c9ab-0000-7000-8000-000000000001 into events_test.registered: " +
				"a JSON string does not fit into events_test.registered",
		},
		"a field of another type": {
			`{"name":{"x":"` + secret + `"}}`, into[registered], "field name: a JSON object does not fit into string",
		},
		"a field too great": {`{"inner":{"n":7777777}}`, into[sized], "field inner.n: a JSON number does not fit into int8"},
		"a key of a map":    {`{"` + secret + `":"x"}`, into[map[string]int], "a JSON string does not fit into int"},
		"no time":           {`{"at":"` + secret + `"}`, into[timed], "a value is refused by its type (*time.ParseError)"},
		"no UUID": {
			`"urn:ana-:` + secret + `0000-7000-8000-000000000001"`, into[uuid.UUID], "a value is refused by its type",
		},
		"no number":             {`"` + secret + `"`, into[big.Int], "a value is refused by its type"},
		"no number in a string": {`{"n":"` + secret + `"}`, into[quoted], "into events_test.quoted: "},
		"no JSON":               {secret, into[registered], "not valid JSON at byte 1"},
		"cut off":               {`{"name":"` + secret, into[registered], "not valid JSON: it ends too early"},
		"nothing":               {"", into[registered], "not valid JSON: it ends too early"},
		"two values":            {`{} "` + secret + `"`, into[registered], "more than one JSON value"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := parsed(t, nil)
			e.Data = json.RawMessage(test.data)
			err := test.decode(e)
			require.ErrorContains(t, err, test.problem)
			for _, part := range []string{secret, strings.ToLower(secret), "7777777"} {
				require.NotContains(t, err.Error(), part)
			}
			for ; err != nil; err = errors.Unwrap(err) {
				require.NotContains(t, fmt.Sprintf("%+v", err), secret)
			}
		})
	}
}

func into[T any](e events.Event) error {
	_, err := events.DataOf[T](e)
	return err
}

func TestDecodeMetadata(t *testing.T) {
	t.Parallel()
	var metadata struct {
		Source string `json:"source"`
		Any    any    `json:"any"`
	}
	e := parsed(t, map[string]string{"metadata": `{"source":"import","any":9007199254740993}`})
	require.NoError(t, e.DecodeMetadata(&metadata))
	require.Equal(t, "import", metadata.Source)
	require.Equal(t, json.Number("9007199254740993"), metadata.Any)

	e.Metadata = nil
	require.NoError(t, e.DecodeMetadata(&metadata))
	require.Equal(t, "import", metadata.Source, "left as it was")

	e.Metadata = json.RawMessage(`{"source":["` + secret + `"]}`)
	err := e.DecodeMetadata(&metadata)
	require.ErrorContains(t, err,
		"decode metadata of PatientRegistered 0198c9ab-0000-7000-8000-000000000001: field source: a JSON array")
	require.NotContains(t, err.Error(), secret)
}
