package doctor_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/doctor"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

const (
	patience = 90 * time.Second
	tick     = 100 * time.Millisecond
)

func TestMain(m *testing.M) { testservers.Main(m) }

// onFile are the settings of a store in a file of the test's own.
func onFile(t *testing.T) worker.Settings {
	t.Helper()
	s := worker.DefaultSettings()
	s.SQLitePath = filepath.Join(t.TempDir(), "events.db")
	return s
}

// onPostgres are the settings of a database.
func onPostgres(database string) worker.Settings {
	s := worker.DefaultSettings()
	s.DatabaseURL = database
	return s
}

// migrated opens the store that the settings name, with its schema.
func migrated(t *testing.T, s worker.Settings) worker.Backend {
	t.Helper()
	b, err := s.OpenStore(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Migrate(t.Context()))
	return b
}

// addLetters adds two dead letters, of which one is archived.
func addLetters(t *testing.T, b worker.Backend) {
	t.Helper()
	table := deadletter.NewTable(b.SQL())
	var arrivals []deadletter.Arrival
	for _, id := range []string{"waits", "archived"} {
		arrivals = append(arrivals, deadletter.Arrival{Letter: deadletter.Complete(deadletter.Letter{ID: id})})
	}
	require.NoError(t, table.Ingest(t.Context(), arrivals))
	_, err := table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"archived"}}, deadletter.Archived, audit.Actor{})
	require.NoError(t, err)
}

func event(created time.Time) events.Event {
	return events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "PatientRegistered", AggregateType: "Patient", AggregateID: uuid.New(),
		AggregateVersion: 1, TenantID: uuid.New(), CorrelationID: uuid.New(), CreatedAt: created.UTC(), Data: json.RawMessage(`{}`),
	}
}

// examined is what the checks of a test have found.
type examined []doctor.Finding

func examine(t *testing.T, s worker.Settings) examined {
	t.Helper()
	findings := slices.Collect(doctor.Examine(t.Context(), doctor.Checks(s, 1), doctor.Timeout))
	for _, f := range findings {
		require.NotEmpty(t, f.What)
		require.NotContains(t, f.What+f.Advice, "\n")
		if f.Status == doctor.Warning {
			require.NotEmpty(t, f.Advice, f.What)
		}
	}
	return findings
}

// requireFinding checks what a check has found: the status, and parts of what it says.
func (e examined) requireFinding(t *testing.T, check string, status doctor.Status, says ...string) {
	t.Helper()
	require.True(t, e.has(check, status, says...), "%s is not %s, saying %q: %v", check, status, says, e)
}

func (e examined) has(check string, status doctor.Status, says ...string) bool {
	return slices.ContainsFunc(e, func(f doctor.Finding) bool {
		said := func(s string) bool { return strings.Contains(f.What+" → "+f.Advice, s) }
		return f.Check == check && f.Status == status && !slices.ContainsFunc(says, func(s string) bool { return !said(s) })
	})
}

// index is the place of the first finding of a check.
func (e examined) index(check string) int {
	return slices.IndexFunc(e, func(f doctor.Finding) bool { return f.Check == check })
}

func TestExamine(t *testing.T) {
	t.Parallel()
	wrong := doctor.Finding{Status: doctor.Wrong, What: "broken", Advice: "mend it"}
	ok := doctor.Finding{Status: doctor.OK, What: "fine"}
	release := make(chan struct{})
	defer close(release)
	finds := func(findings ...doctor.Finding) func(context.Context, *doctor.Report) error {
		return func(_ context.Context, r *doctor.Report) error {
			*r = findings
			return nil
		}
	}
	checks := []doctor.Check{
		{Name: "broken", Run: finds(ok, wrong)},
		{Name: "needs it", Needs: "broken", Run: finds(ok)},
		{Name: "needs that", Needs: "needs it", Run: finds(ok)},
		{Name: "fails", Run: func(_ context.Context, r *doctor.Report) error { *r = append(*r, ok); return errors.New("no\nluck") }},
		{Name: "hangs", Run: func(context.Context, *doctor.Report) error { <-release; return nil }},
		{Name: "notices", Run: func(ctx context.Context, _ *doctor.Report) error { <-ctx.Done(); return ctx.Err() }},
		{Name: "goes on", Causes: []string{"broken"}, Run: finds(ok)},
		{Name: "follows", Causes: []string{"goes on", "broken", "needs it", "fails"}, Run: finds(wrong)},
	}
	var got []string
	for f := range doctor.Examine(t.Context(), checks, time.Second) {
		line := f.Check + ": " + string(f.Status) + ": " + f.What
		if f.Check == "follows" {
			line += ": " + f.Advice
		}
		got = append(got, line)
	}
	require.Equal(t, []string{
		"broken: ok: fine", "broken: wrong: broken", "needs it: skipped: broken is wrong", "needs that: skipped: needs it is wrong",
		"fails: ok: fine", "fails: wrong: no luck", "hangs: wrong: no answer within 1s", "notices: wrong: context deadline exceeded", "goes on: ok: fine",
		"follows: wrong: broken: fix broken and fails first, and run doctor again",
	}, got)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Empty(t, slices.Collect(doctor.Examine(ctx, checks, time.Second)))
}

func TestWorst(t *testing.T) {
	t.Parallel()
	order := []doctor.Status{doctor.OK, doctor.Warning, doctor.Skipped, doctor.Wrong}
	for i, a := range order {
		for j, b := range order {
			require.Equal(t, order[max(i, j)], doctor.Worst(a, b))
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	s := onFile(t)
	s.Tuning.Concurrency, s.AMQP.Partitions = 0, 5
	found := examine(t, s)
	found.requireFinding(t, "settings", doctor.Wrong, "concurrency")
	found.requireFinding(t, "settings", doctor.Wrong, "partitions need RabbitMQ")
	found.requireFinding(t, "sqlite", doctor.Skipped)

	s = onFile(t)
	s.DatabaseURL = "postgres://worker:s3cret@127.0.0.1:port/events"
	found = examine(t, s)
	found.requireFinding(t, "settings", doctor.Wrong, "database-url")
	for _, f := range found {
		require.NotContains(t, f.What, "s3cret")
	}

	s = onFile(t)
	migrated(t, s)
	s.AMQP.URL = "amqp://guest:s3cret@broker.invalid/"
	found = examine(t, s)
	found.requireFinding(t, "settings", doctor.Warning, "unencrypted", "amqps://")
	found.requireFinding(t, "settings", doctor.Warning, "file of this machine", "DATABASE_URL")
	found.requireFinding(t, "rabbitmq", doctor.Wrong, "broker.invalid")
	found.requireFinding(t, "topology", doctor.Skipped)
}
