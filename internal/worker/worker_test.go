package worker_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

const (
	patience = 90 * time.Second
	tick     = 20 * time.Millisecond
)

func TestMain(m *testing.M) { testservers.Main(m) }

// secret stands in every body: it must turn up in no log line and no reason.
const secret = "Kovačević"

// witness is a handler that keeps what it was given.
type witness struct {
	mu   sync.Mutex
	seen map[uuid.UUID]json.RawMessage
}

func (w *witness) handle(_ context.Context, e events.Event, data json.RawMessage) ([]events.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[e.ID] = data
	return nil, nil
}

func (w *witness) data(id string) (json.RawMessage, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	data, seen := w.seen[uuid.MustParse(id)]
	return data, seen
}

func (w *witness) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// site is a worker that runs on servers of its own, with a plain client beside it.
type site struct {
	t       *testing.T
	worker  *worker.Worker
	witness *witness
	channel *amqp091.Channel
	letters *deadletter.Table
	log     *syncBuffer
	health  func() worker.Health
	append  func(n int) // to the store
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newSite runs a worker; each change may add handlers and alter the settings.
func newSite(t *testing.T, changes ...func(*worker.Settings, *handlers.Registry)) *site {
	t.Helper()
	settings := worker.DefaultSettings()
	settings.DatabaseURL, settings.AMQP.URL = testservers.Postgres(t), testservers.RabbitMQ(t)
	settings.Tuning.RetryInitial = time.Millisecond
	s := &site{t: t, witness: &witness{seen: map[uuid.UUID]json.RawMessage{}}, log: &syncBuffer{}}
	added := &handlers.Registry{}
	handlers.OnAll(added, "witness", s.witness.handle)
	for _, change := range changes {
		change(&settings, added)
	}
	require.NoError(t, settings.Check())
	register := func(reg *handlers.Registry) { *reg = *added }
	logger := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w, closeParts, err := worker.Open(t.Context(), settings, worker.OpenOptions{Register: register, Migrate: true, Logger: logger})
	require.NoError(t, err)
	s.worker = w
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
		require.NoError(t, closeParts())
	})

	client := publisher(t, settings)
	s.channel, s.letters, s.append = client.channel, client.letters, client.append
	s.health = func() worker.Health { return w.Health(t.Context()) }
	return s
}

// publisher is a plain client beside a worker, with a look at its dead letters.
func publisher(t *testing.T, settings worker.Settings) *site {
	t.Helper()
	s := &site{t: t}
	conn, err := amqp091.Dial(settings.AMQP.URL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	s.channel, err = conn.Channel()
	require.NoError(t, err)
	require.NoError(t, s.channel.Confirm(false))
	backend, err := settings.OpenStore(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	s.letters = deadletter.NewTable(backend.SQL())
	s.append = func(n int) {
		t.Helper()
		for range n {
			e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
			require.NoError(t, err)
			require.NoError(t, backend.Append(t.Context(), e))
		}
	}
	return s
}

// publish publishes a body as a program does that knows nothing of the worker.
func (s *site) publish(body []byte, headers amqp091.Table) {
	s.t.Helper()
	s.publishEncoded("", body, headers)
}

func (s *site) publishEncoded(encoding string, body []byte, headers amqp091.Table) {
	s.t.Helper()
	confirm, err := s.channel.PublishWithDeferredConfirmWithContext(s.t.Context(), "healz.events", "Noted", false, false,
		amqp091.Publishing{Headers: headers, Body: body, ContentType: "application/json", ContentEncoding: encoding})
	require.NoError(s.t, err)
	ok, err := confirm.WaitContext(s.t.Context())
	require.NoError(s.t, err)
	require.True(s.t, ok)
}

// count is how many letters wait.
func (s *site) count() int {
	s.t.Helper()
	n, err := s.letters.Count(s.t.Context())
	require.NoError(s.t, err)
	return n
}

func (s *site) all() []deadletter.Letter {
	s.t.Helper()
	var all []deadletter.Letter
	for l, err := range s.letters.Read(s.t.Context(), deadletter.Filter{}) {
		require.NoError(s.t, err)
		all = append(all, l)
	}
	return all
}

// fields returns a valid event as a map, with changes; a nil value takes a field away.
func fields(changes map[string]any) map[string]any {
	f := map[string]any{
		"event_id": uuid.NewString(), "event_type": "Noted", "aggregate_type": "Patient", "aggregate_id": uuid.NewString(),
		"aggregate_version": 1, "tenant_id": uuid.NewString(), "correlation_id": uuid.NewString(),
		"created_at": "2026-11-24T12:00:00.000Z", "event_data": map[string]any{"name": secret},
	}
	for key, value := range changes {
		if value == nil {
			delete(f, key)
		} else {
			f[key] = value
		}
	}
	return f
}

func body(changes map[string]any) []byte {
	b, err := json.Marshal(fields(changes))
	if err != nil {
		panic(err)
	}
	return b
}

func gzipped(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(text)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func field(name string, value any) []byte { return body(map[string]any{name: value}) }

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// Each bad message becomes a dead letter that says why; its neighbours are handled; nothing is told of its contents.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	quoted := `"` + secret + `"`
	gzipped := gzipped(t, body(nil))
	largest, larger := worker.DefaultSettings().Tuning.MaxMessage, 20<<20
	if limit := testservers.MaxMessageSize(t); limit < larger {
		largest, larger = limit-1, limit
	}
	over := fmt.Sprintf("the body has %d bytes, over the %d", larger, largest)
	bad := map[string]struct {
		body []byte
		want string
	}{
		"empty":                     {nil, "the body is empty"},
		"not JSON":                  {[]byte(secret), "the body is not valid JSON"},
		"a JSON array":              {[]byte("[" + quoted + "]"), "the body is a JSON array, not an object"},
		"a JSON string":             {[]byte(quoted), "the body is a JSON string, not an object"},
		"JSON null":                 {[]byte("null"), "the body is a JSON null, not an object"},
		"of another shape":          {[]byte(`{"patient":` + quoted + `}`), "event_id is missing; event_type is missing"},
		"truncated":                 {body(nil)[:100], "the body is not valid JSON"},
		"invalid UTF-8":             {bytes.Replace(body(nil), []byte(secret), []byte("\xff\xfe"), 1), "the body is not valid UTF-8"},
		"10 000 levels deep":        {field("event_data", raw(strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000))), ""},
		"much that is no JSON":      {bytes.Repeat([]byte("x"), largest), "the body is not valid JSON"},
		"too much that is no JSON":  {bytes.Repeat([]byte("x"), larger), over},
		"too much data":             {field("event_data", strings.Repeat("x", larger-len(field("event_data", "")))), over},
		"NUL in the data":           {field("event_data", raw(`{"name":"a\u0000b"}`)), `event_data contains \u0000`},
		"NUL in a key of the data":  {field("event_data", raw(`{"a\u0000b":1}`)), `event_data contains \u0000`},
		"half a surrogate pair":     {field("event_data", raw(`"\ud800"`)), "surrogate"},
		"version 0":                 {field("aggregate_version", 0), "aggregate_version must be from 1"},
		"version -1":                {field("aggregate_version", -1), "aggregate_version must be from 1"},
		"version 1.5":               {field("aggregate_version", 1.5), "aggregate_version is not an integer"},
		"version 2^31":              {field("aggregate_version", int64(1<<31)), "aggregate_version must be from 1"},
		"version as text":           {field("aggregate_version", "1"), "aggregate_version is not an integer"},
		"empty event_type":          {field("event_type", ""), "event_type is missing"},
		"event_type of 101":         {field("event_type", strings.Repeat("ä", 101)), "event_type has 101 characters"},
		"event_type with #":         {field("event_type", "a#"), "event_type contains # or *"},
		"event_type with *":         {field("event_type", "*"), "event_type contains # or *"},
		"event_type with a newline": {field("event_type", "a\nb"), "event_type contains a control character"},
		"event_type of blanks":      {field("event_type", "  "), "event_type is blank"},
		"event_type of U+202E":      {field("event_type", "a\u202eb"), "event_type contains the invisible character U+202E"},
		"event_type of U+200B":      {field("event_type", "\u200b"), "event_type contains the invisible character U+200B"},
		"aggregate_type of blanks":  {field("aggregate_type", " "), "aggregate_type is blank"},
		"aggregate_type of U+2066":  {field("aggregate_type", "\u2066a"), "aggregate_type contains the invisible character U+2066"},
		"gzip":                      {gzipped, `its content_encoding is "gzip"`},
		"event_type a number":       {field("event_type", 7), "event_type is a JSON number"},
		"created_at a number":       {field("created_at", 1764000000), "created_at is a JSON number"},
		"created_at in 10000":       {field("created_at", "10000-01-01T00:00:00Z"), "created_at is not an RFC 3339 time"},
		"created_at no time":        {field("created_at", secret), "created_at is not an RFC 3339 time"},
		"metadata no object":        {field("metadata", raw("["+quoted+"]")), "metadata is not a JSON object"},
		"metadata a number":         {field("metadata", 7), "metadata is not a JSON object"},
	}
	for _, name := range []string{
		"event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "correlation_id",
		"created_at", "event_data",
	} {
		bad["without "+name] = struct {
			body []byte
			want string
		}{field(name, nil), name + " is missing"}
	}
	for _, name := range []string{"event_id", "aggregate_id", "tenant_id", "clinic_id", "correlation_id", "causation_id", "user_id"} {
		bad["malformed "+name] = struct {
			body []byte
			want string
		}{field(name, secret), name + " is"}
	}

	s := newSite(t, func(s *worker.Settings, _ *handlers.Registry) { s.Tuning.MaxMessage = largest })
	neighbours := map[string]string{}
	for name, test := range bad {
		encoding := ""
		if name == "gzip" {
			encoding = name
		}
		s.publishEncoded(encoding, test.body, amqp091.Table{"case": name})
		neighbour := fields(nil)
		neighbours[name] = neighbour["event_id"].(string)
		b, err := json.Marshal(neighbour)
		require.NoError(t, err)
		s.publish(b, nil)
	}
	for name, id := range neighbours {
		require.Eventually(t, func() bool { _, seen := s.witness.data(id); return seen }, patience, tick, "neighbour of %s", name)
	}
	require.Eventually(t, func() bool { return s.count() == len(bad) }, patience, 10*tick)
	for _, l := range s.all() {
		name, _ := l.Headers["case"].(string)
		test, known := bad[name]
		require.True(t, known, "%q", name)
		require.Contains(t, l.Reason, test.want, name)
		require.NotEmpty(t, l.Reason, name)
		require.NotContains(t, l.Reason, secret, name)
		require.Empty(t, l.Handler, name)
		require.Equal(t, 1, l.Attempts, name)
		require.False(t, l.FirstFailed.IsZero(), name)
		require.True(t, bytes.Equal(test.body, l.Body), "%s: the body is untouched", name)
	}
	require.NotContains(t, s.log.String(), secret)
}

// What looks odd and is a good event reaches its handler, its data faithful to the last digit.
func TestOddMessages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	table := amqp091.Table{
		"bool": true, "byte": byte(1), "int8": int8(-1), "int16": int16(-2), "int32": int32(-3), "int64": int64(1 << 60),
		"float32": float32(1.5), "float64": 2.5, "decimal": amqp091.Decimal{Scale: 2, Value: 1210}, "text": "t",
		"bytes": []byte{0, 255}, "time": time.Unix(1764000000, 0).UTC(), "nil": nil,
		"table": amqp091.Table{"in": []any{int32(1), "two", amqp091.Table{}}}, "array": []any{int64(1), nil},
		"x-death": []any{amqp091.Table{"count": int64(3), "reason": "rejected"}}, "x-delivery-count": int32(7),
	}
	many := amqp091.Table{}
	for i := range 1000 {
		many[fmt.Sprintf("header-%d", i)] = int32(i)
	}
	big, err := json.Marshal(strings.Repeat("x", 15<<20))
	require.NoError(t, err)
	for name, test := range map[string]struct {
		data    string
		changes map[string]any
		headers amqp091.Table
	}{
		"JSON null":                   {data: "null"},
		"a scalar":                    {data: "true"},
		"2^53+1":                      {data: `{"n":9007199254740993}`},
		"all the digits":              {data: `[0.30000000000000004,1.10,12345678901234567890.123456789]`},
		"duplicate keys":              {data: `{"a":1,"a":2}`},
		"an unknown type":             {data: "{}", changes: map[string]any{"event_type": "NeverHeardOf"}},
		"unknown fields":              {data: "{}", changes: map[string]any{"schema_version": 3}},
		"null for the optional":       {data: "{}", changes: map[string]any{"clinic_id": raw("null"), "user_id": raw("null"), "metadata": raw("null")}},
		"microseconds and an offset":  {data: "{}", changes: map[string]any{"created_at": "2026-11-24T14:00:00.123456+02:00"}},
		"ids in upper case":           {data: "{}", changes: map[string]any{"tenant_id": strings.ToUpper(uuid.NewString())}},
		"headers of every type":       {data: "{}", headers: table},
		"1 000 headers":               {data: "{}", headers: many},
		"15 MB":                       {data: string(big)},
		"a header named as Watermill": {data: "{}", headers: amqp091.Table{"_watermill_message_uuid": int64(7)}},
	} {
		changes := map[string]any{"event_data": raw(test.data)}
		maps.Copy(changes, test.changes)
		f := fields(changes)
		b, err := json.Marshal(f)
		require.NoError(t, err)
		s.publish(b, test.headers)
		var got json.RawMessage
		require.Eventually(t, func() (seen bool) {
			got, seen = s.witness.data(f["event_id"].(string))
			return seen
		}, patience, tick, name)
		require.True(t, test.data == string(got), "%s: the data is another: %d bytes became %d", name, len(test.data), len(got))
	}
	require.Empty(t, s.all())
}

// The largest message is a setting: one byte more is a dead letter.
func TestLargestMessage(t *testing.T) {
	t.Parallel()
	size := min(20<<20, testservers.MaxMessageSize(t)-1000)
	within := body(map[string]any{"event_data": strings.Repeat("x", size)})
	beyond := body(map[string]any{"event_data": strings.Repeat("x", size+1)})
	s := newSite(t, func(s *worker.Settings, _ *handlers.Registry) { s.Tuning.MaxMessage = len(within) })
	s.publish(beyond, amqp091.Table{"aggregate_id": uuid.NewString()})
	s.publish(within, nil)
	require.Eventually(t, func() bool { return s.witness.count() == 1 }, patience, tick)
	require.Eventually(t, func() bool { return s.count() == 1 }, patience, 10*tick)
	letter := s.all()[0]
	require.Equal(t, fmt.Sprintf("the body has %d bytes, over the %d of the largest message", len(beyond), len(within)), letter.Reason)
	require.True(t, bytes.Equal(beyond, letter.Body))
}

// Two events of one id that contradict each other: the first takes effect, the second is looked into.
func TestTheSameIDWithAnotherBody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := uuid.NewString()
	first := fields(map[string]any{"event_id": id})
	b, err := json.Marshal(first)
	require.NoError(t, err)
	s.publish(b, nil)
	s.publish(b, nil) // a plain redelivery
	require.Eventually(t, func() bool { _, seen := s.witness.data(id); return seen }, patience, tick)
	require.Eventually(t, func() bool {
		counted := s.worker.Health(t.Context()).Events
		return counted[observe.Handled] == 1 && counted[observe.Duplicate] == 1
	}, patience, tick)
	first["event_data"] = map[string]any{"name": "somebody else"}
	b, err = json.Marshal(first)
	require.NoError(t, err)
	s.publish(b, nil)
	require.Eventually(t, func() bool { return s.count() == 1 }, patience, 10*tick)
	require.Contains(t, s.all()[0].Reason, "with other contents")
	data, _ := s.witness.data(id)
	require.Contains(t, string(data), secret)
}

// A handler that fails is tried again later, alone, while the others go on; at last it is a dead letter with the whole
// number of attempts. What is permanent is one at once.
func TestRetryLater(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	tries := map[string]int{}
	count := func(name string) int {
		mu.Lock()
		defer mu.Unlock()
		return tries[name]
	}
	s := newSite(t, func(s *worker.Settings, reg *handlers.Registry) {
		s.Tuning.RetryAttempts = 2
		s.AMQP.RetryLater = []time.Duration{20 * time.Millisecond, 300 * time.Millisecond}
		for name, failures := range map[string]int{"steady": 0, "late": 3, "never": 1000} {
			handlers.OnAll(reg, name, func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) {
				mu.Lock()
				defer mu.Unlock()
				if tries[name]++; tries[name] <= failures {
					return nil, errors.New("not yet")
				}
				return nil, nil
			})
		}
		handlers.On(reg, "Noted", "refuses", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) {
			mu.Lock()
			defer mu.Unlock()
			tries["refuses"]++
			return nil, handlers.Permanent(errors.New("no"))
		})
	})
	began := time.Now()
	s.publish(body(nil), nil)
	require.Eventually(t, func() bool { return s.count() == 2 }, patience, tick)
	require.GreaterOrEqual(t, time.Since(began), 320*time.Millisecond)
	letters := map[string]deadletter.Letter{}
	for _, l := range s.all() {
		letters[l.Handler] = l
	}
	require.Equal(t, 1, letters["refuses"].Attempts)
	require.Equal(t, 6, letters["never"].Attempts)
	require.Contains(t, letters["never"].Reason, "not yet")
	require.WithinDuration(t, began, letters["never"].FirstFailed, letters["never"].LastFailed.Sub(began)/2)
	for name, want := range map[string]int{"steady": 1, "late": 4, "never": 6, "refuses": 1} {
		require.Equal(t, want, count(name), name)
	}
}
