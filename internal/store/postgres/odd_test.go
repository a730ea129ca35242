package postgres_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/rawjson"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// oddColumns are what other programs may write into a column of events, and what the consumer says of it; "" if it is
// good.
var oddColumns = []struct{ column, value, problem string }{ //nolint:gochecknoglobals // a table
	{"created_at", `'infinity'`, "created_at is not an RFC 3339 time"},
	{"created_at", `'-infinity'`, "created_at is not an RFC 3339 time"},
	{"created_at", `'0044-03-15 BC'`, "created_at is not an RFC 3339 time"},
	{"created_at", `'4713-01-01 00:00:00+00 BC'`, "created_at is not an RFC 3339 time"},
	{"created_at", `'0001-01-01 00:00:00+00'`, "created_at is missing"},
	{"created_at", `'10000-01-01'`, "created_at is not an RFC 3339 time"},
	{"created_at", `'290000-01-01'`, "created_at is not an RFC 3339 time"},
	{"metadata", `'null'`, ""},
	{"metadata", `NULL`, ""},
	{"metadata", `'[1]'`, "metadata is not a JSON object"},
	{"metadata", `'"text"'`, "metadata is not a JSON object"},
	{"metadata", `to_jsonb(repeat('x', 1000000))`, "metadata is not a JSON object"},
	{"event_data", `'null'`, ""},
	{"event_data", `'7'`, ""},
	{"event_data", `'1e400'`, ""},
	{"event_data", `'1e2000'`, "event_data contains a number of more than 1000 digits"},
	{"event_data", `(repeat('[', 5000) || repeat(']', 5000))::jsonb`, ""},
	{"event_data", `(repeat('[', 10500) || repeat(']', 10500))::jsonb`, "the body is"},
	{"event_type", `''`, "event_type is missing"},
	{"event_type", `'  '`, "event_type is blank"},
	{"event_type", `E'a\nb"'`, "event_type contains a control character"},
	{"event_type", `U&'a\202Eb'`, "event_type contains the invisible character U+202E"},
	{"event_type", `repeat('€', 100)`, "event_type has 300 bytes"},
	{"event_type", `'#'`, "event_type contains # or *"},
	{"aggregate_type", `''`, "aggregate_type is missing"},
	{"aggregate_type", `E'\t'`, "aggregate_type contains a control character"},
	{"aggregate_version", `0`, "aggregate_version must be from 1"},
	{"aggregate_version", `-2147483648`, "aggregate_version must be from 1"},
	{"aggregate_version", `2147483647`, ""},
	{"event_id", `'00000000-0000-0000-0000-000000000000'`, "event_id is the nil UUID"},
	{"aggregate_id", `'00000000-0000-0000-0000-000000000000'`, "aggregate_id is the nil UUID"},
	{"clinic_id", `'00000000-0000-0000-0000-000000000000'`, "clinic_id is the nil UUID"},
	{"user_id", `'00000000-0000-0000-0000-000000000000'`, "user_id is the nil UUID"},
	{"causation_id", `'00000000-0000-0000-0000-000000000000'`, "causation_id is the nil UUID"},
	{"id", `0`, ""},
	{"id", `-9223372036854775808`, ""},
}

// A row that another program has filled oddly is read as it is by every read, is relayed, is a dead letter that says why,
// and disturbs no other row.
func TestOddRowsDisturbNoOther(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, conn := open(t, address), connect(t, address)
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: len(oddColumns) + 2})
	stream := storetest.NewStream()
	problems := map[uuid.UUID]string{}
	good := func() {
		e := stream.Next()
		problems[e.ID] = ""
		insert(t, conn, e)
	}
	good()
	for _, odd := range oddColumns {
		values := map[string]string{
			"event_id": "gen_random_uuid()", "event_type": "'" + stream.EventType + "'", "aggregate_type": "'Patient'",
			"aggregate_id": "gen_random_uuid()", "aggregate_version": "1", "tenant_id": "'" + stream.TenantID.String() + "'",
			"correlation_id": "'" + stream.CorrelationID.String() + "'", "created_at": "now()", "event_data": "'{}'",
		}
		values[odd.column] = odd.value
		var names, expressions []string
		for name, value := range values {
			names, expressions = append(names, name), append(expressions, value)
		}
		var id uuid.UUID
		err := conn.QueryRow(t.Context(), "INSERT INTO events ("+strings.Join(names, ", ")+") VALUES ("+
			strings.Join(expressions, ", ")+") RETURNING event_id").Scan(&id)
		require.NoError(t, err, "%s %s", odd.column, odd.value)
		problems[id] = odd.problem
	}
	good()

	// paged reads every page of a read, one event at a time, so that each event is a cursor, too.
	paged := func(what string, want int, read func(store.Query) (store.Page, error)) {
		t.Helper()
		seen := map[uuid.UUID]bool{}
		for q := (store.Query{Limit: 1}); ; {
			page, err := read(q)
			require.NoError(t, err, what)
			for _, e := range page.Events {
				require.False(t, seen[e.ID], "%s: %s comes twice", what, e.ID)
				seen[e.ID] = true
			}
			if q.After = page.Next; q.After == "" {
				break
			}
		}
		require.Len(t, seen, want, what)
	}
	ofType := len(problems)
	for _, odd := range oddColumns {
		if odd.column == "event_type" {
			ofType--
		}
	}
	ctx := t.Context()
	paged("tenant", len(problems), func(q store.Query) (store.Page, error) { return s.ByTenant(ctx, stream.TenantID, q) })
	paged("correlation", len(problems), func(q store.Query) (store.Page, error) { return s.ByCorrelation(ctx, stream.CorrelationID, q) })
	paged("type", ofType, func(q store.Query) (store.Page, error) { return s.ByType(ctx, stream.EventType, q) })
	paged("aggregate", 2, func(q store.Query) (store.Page, error) {
		return s.ByAggregate(ctx, stream.AggregateType, stream.AggregateID, q)
	})
	for what, search := range map[string]store.Search{
		"all": {}, "tenant": {TenantID: stream.TenantID}, "correlation": {CorrelationID: stream.CorrelationID},
	} {
		paged("search "+what, len(problems), func(q store.Query) (store.Page, error) { return s.Search(ctx, search, q) })
	}
	backlog, err := s.Tail(ctx, store.TailConfig{BatchSize: 1})
	require.NoError(t, err)
	waiting, err := backlog.Backlog(ctx)
	require.NoError(t, err)
	require.EqualValues(t, len(problems), waiting.Events)
	require.NoError(t, backlog.Close())
	_, err = s.Since(ctx, time.Now().Add(-time.Hour))
	require.NoError(t, err)

	// What was committed is read once no older transaction of the server runs.
	require.Eventually(t, func() bool {
		count := 0
		for e, err := range s.All(ctx, store.Position{}) {
			require.NoError(t, err)
			count++
			found, err := s.ByID(ctx, e.ID)
			require.NoError(t, err)
			require.Equal(t, e, found)
		}
		return count == len(problems)
	}, 20*time.Second, 5*time.Millisecond)

	var batch store.Batch
	require.Eventually(t, func() bool {
		batch, err = tail.Next(ctx, nil)
		require.NoError(t, err)
		return batch.Events != nil
	}, 20*time.Second, 5*time.Millisecond)
	bodies, err := rawjson.Elements(batch.Events)
	require.NoError(t, err)
	require.Len(t, bodies, len(problems))
	for _, body := range bodies {
		_, err := events.Parse(body)
		problem := problems[events.ParsePartial(body).ID]
		if !json.Valid(body) {
			problem = "the body is" // nested too deeply to be read
		}
		if problem == "" {
			require.NoError(t, err, string(body[:min(len(body), 500)]))
		} else {
			require.ErrorContains(t, err, problem)
		}
	}
}
