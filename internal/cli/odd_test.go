package cli

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// Rows that another program has filled oddly are shown as they are by each command and page, become dead letters that say
// why, and disturb no other row.
func TestOddRowsAreShownAsTheyAre(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	p.start("--migrate").stop() // the relay has a position
	conn, err := pgx.Connect(t.Context(), strings.TrimPrefix(p.env[0], "DATABASE_URL="))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	tenant := uuid.NewString()
	good := p.append(registration(tenant, `{"name":"Ana"}`, ""))[0]
	odd := []struct{ column, value, reason string }{
		{"created_at", `'infinity'`, "created_at is not an RFC 3339 time"},
		{"created_at", `'-infinity'`, "created_at is not an RFC 3339 time"},
		{"created_at", `'0044-03-15 BC'`, "created_at is not an RFC 3339 time"},
		{"created_at", `'290000-01-01'`, "created_at is not an RFC 3339 time"},
		{"event_type", `U&'a\202Eb'`, "event_type contains the invisible character U+202E"},
		{"event_type", `' '`, "event_type is blank"},
		{"aggregate_type", `''`, "aggregate_type is missing"},
		{"metadata", `'[1]'`, "metadata is not a JSON object"},
		{"event_data", `(repeat('[', 10500) || repeat(']', 10500))::jsonb`, "the body is"},
		{"event_data", `'1e2000'`, "event_data contains a number of more than 1000 digits"},
		{"aggregate_version", `0`, "aggregate_version must be from 1"},
	}
	reasons := map[string]string{}
	for _, row := range odd {
		values := map[string]string{
			"event_type": "'PatientRegistered'", "aggregate_type": "'Patient'", "aggregate_version": "1", "created_at": "now()",
			"event_data": "'{}'", "metadata": "'{}'",
		}
		values[row.column] = row.value
		var id string
		require.NoError(t, conn.QueryRow(t.Context(), fmt.Sprintf(`INSERT INTO events (aggregate_id, tenant_id, correlation_id, causation_id,
				event_type, aggregate_type, aggregate_version, created_at, event_data, metadata)
			VALUES (gen_random_uuid(), '%s', '%s', '%s', %s, %s, %s, %s, %s, %s) RETURNING event_id`, tenant, good.CorrelationID,
			good.EventID, values["event_type"], values["aggregate_type"], values["aggregate_version"], values["created_at"],
			values["event_data"], values["metadata"])).Scan(&id), row)
		reasons[id] = row.reason
	}
	want := len(odd) + 1

	r := p.run("", "doctor")
	require.Contains(t, r.out, fmt.Sprintf("%d events", want), r.err)
	for _, by := range [][]string{{"--tenant", tenant}, {"--correlation", good.CorrelationID}} {
		table := p.must("", append([]string{"events", "-o", "wide"}, by...)...)
		require.Equal(t, want, strings.Count(table, tenant), table)
		require.Contains(t, table, "infinity")
		require.NotContains(t, table, "\u202e")
		require.Len(t, decodeLines[wire](t, p.must("", append([]string{"events", "-o", "json", "--reveal"}, by...)...)), want)
	}
	require.Regexp(t, `began .* \+0ms  PatientRegistered .*`+good.EventID, strings.ReplaceAll(p.must("", "trace", good.CorrelationID), "\n", " "))
	for _, f := range []string{"tree", "json", "dot"} {
		trace := p.must("", "trace", good.CorrelationID, "--format", f)
		require.NotContains(t, trace, "\u202e")
		for id := range reasons {
			require.Contains(t, trace, id)
		}
	}
	tails := []*following{
		p.follow("tail", "--correlation", good.CorrelationID, "--since", "1h"),
		p.follow("tail", "--correlation", good.CorrelationID, "--since", "1h", "--format", "json"),
		p.follow("tail", "--correlation", good.CorrelationID, "--since", "1h", "--format", "json", "--reveal"),
	}

	w := p.start()
	p.awaitFollowUp(good, "WelcomeMessageRequested")
	for _, l := range p.awaitLetters(len(odd)) {
		if l.EventID == "" {
			require.Contains(t, l.Reason, "the body is")
			continue
		}
		require.Contains(t, l.Reason, reasons[l.EventID])
	}
	require.Equal(t, http.StatusOK, w.ready())
	pages := []string{"/events", "/events?tenant=" + tenant, "/traces/" + good.CorrelationID, "/dead-letters", "/metrics"}
	for id := range reasons {
		pages = append(pages, "/events/"+id)
	}
	for _, page := range pages {
		status, body := w.get(page)
		require.Equal(t, http.StatusOK, status, "%s: %.1000s", page, body)
	}
	p.must("", "dlq", "list")
	p.must("", "dlq", "export", filepath.Join(t.TempDir(), "letters"))
	for _, f := range tails {
		f.await("PatientRegistered")
		f.await("WelcomeMessageRequested")
		require.Equal(t, 0, f.quit())
		require.NotContains(t, f.out.String(), "\u202e")
	}
}
