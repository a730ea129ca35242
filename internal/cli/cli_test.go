package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// within runs a command in this process, on a SQLite file.
func within(t *testing.T, path, in string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	servers := []string{"--database-url=", "--rabbitmq-url=", "--sqlite-path", path}
	code := execute(t.Context(), newRoot(clinic.Register), append(args, servers...), strings.NewReader(in), &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

// filled is a SQLite file with five events: of two tenants, types and types of aggregates, one of them older than a week.
type filled struct {
	path   string
	tenant uuid.UUID // of the first three, which are also of one aggregate
	sent   []wire
}

func newFilled(t *testing.T) filled {
	t.Helper()
	path, tenant, other := filepath.Join(t.TempDir(), "test.db"), uuid.New(), uuid.New()
	patient, correlation := uuid.New(), uuid.New()
	line := func(kind, of string, id, tenant uuid.UUID, ago time.Duration) string {
		return fmt.Sprintf(`{"event_type":%q,"aggregate_type":%q,"aggregate_id":%q,"tenant_id":%q,"correlation_id":%q,"created_at":%q,`+
			`"event_data":{"name":"Ana"},"metadata":{"room":"Ben"}}`+"\n", kind, of, id, tenant, correlation,
			time.Now().Add(-ago).UTC().Format(time.RFC3339Nano))
	}
	in := line("PatientRegistered", "Patient", patient, tenant, 10*24*time.Hour) +
		line("PatientMoved", "Patient", patient, tenant, 3*time.Hour) +
		line("PatientMoved", "Patient", patient, tenant, 2*time.Hour) +
		line("PatientRegistered", "Patient", uuid.New(), other, time.Hour) +
		line("PatientMoved", "Guest", uuid.New(), other, time.Minute)
	r := within(t, path, in, "append", "-o", "json", "--reveal")
	require.Equal(t, exitOK, r.code, r.err)
	return filled{path, tenant, decodeLines[wire](t, r.out)}
}

func TestCommandsOnAFilledStore(t *testing.T) {
	t.Parallel()
	store := newFilled(t)
	for name, test := range map[string]func(*testing.T, filled){
		"events of any combination of filters": eventsOfAnyCombination,
		"a page of events continues":           aPageContinues,
		"near names are offered":               nearNamesAreOffered,
		"names are completed":                  namesAreCompleted,
		"the former name of the output flag":   formerOutputName,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, store)
		})
	}
}

func eventsOfAnyCombination(t *testing.T, s filled) {
	t.Helper()
	patient := "Patient/" + s.sent[0].AggregateID
	for name, test := range map[string]struct {
		args []string
		want []int
	}{
		"none":                         {nil, []int{4, 3, 2, 1, 0}},
		"type":                         {[]string{"--type", "PatientMoved"}, []int{4, 2, 1}},
		"type and tenant":              {[]string{"--type", "PatientMoved", "--tenant", s.tenant.String()}, []int{2, 1}},
		"aggregate, by version":        {[]string{"--aggregate", patient}, []int{0, 1, 2}},
		"aggregate and type":           {[]string{"--aggregate", patient, "--type", "PatientMoved"}, []int{2, 1}},
		"an aggregate of another type": {[]string{"--aggregate", "Guest/" + s.sent[0].AggregateID, "--type", "PatientMoved"}, nil},
		"correlation, oldest first":    {[]string{"--correlation", s.sent[0].CorrelationID}, []int{0, 1, 2, 3, 4}},
		"correlation and aggregate":    {[]string{"--correlation", s.sent[0].CorrelationID, "--aggregate", patient}, []int{2, 1, 0}},
		"since":                        {[]string{"--since", "1w"}, []int{4, 3, 2, 1}},
		"since and until":              {[]string{"--since", "1d", "--until", "30m"}, []int{3, 2, 1}},
		"limit and offset":             {[]string{"--limit", "2", "--offset", "1"}, []int{3, 2}},
		"offset of a chain":            {[]string{"--aggregate", patient, "--offset", "2"}, []int{2}},
		"an empty filter is none":      {[]string{"--type", "PatientMoved", "--type", "", "--limit", "1"}, []int{4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, reveal := range []string{"--reveal=true", "--reveal=false"} { // they are read in pages of other sizes
				r := within(t, s.path, "", append([]string{"events", "-o", "json", reveal}, test.args...)...)
				require.Equal(t, exitOK, r.code, r.err)
				var found []int
				for _, e := range decodeLines[wire](t, r.out) {
					for i := range s.sent {
						if s.sent[i].EventID == e.EventID {
							found = append(found, i)
						}
					}
				}
				require.Equal(t, test.want, found)
			}
		})
	}
}

func aPageContinues(t *testing.T, s filled) {
	t.Helper()
	first := within(t, s.path, "", "events", "--limit", "2", "-o", "json")
	_, after, more := strings.Cut(strings.TrimSpace(first.err), "--after ")
	require.True(t, more, first.err)
	rest := decodeLines[wire](t, within(t, s.path, "", "events", "--after", after, "-o", "json").out)
	require.Len(t, rest, 3)
	require.Equal(t, s.sent[2].EventID, rest[0].EventID)
	require.Equal(t, exitUsage, within(t, s.path, "", "events", "--type", "PatientMoved", "--after", after).code, "another search")
}

// No command prints event_data or metadata unless it is asked to.
func TestEventDataIsPrintedOnlyIfRevealed(t *testing.T) {
	t.Parallel()
	s := newFilled(t)
	line := registration(s.tenant.String(), `{"name":"Ana"}`, `,"metadata":{"room":"Ben"}`)
	for _, command := range [][]string{
		{"events"}, {"events", "--aggregate", "Patient/" + s.sent[0].AggregateID}, {"append"},
	} {
		for _, output := range []string{"table", "json"} {
			args := append(command, "-o", output) //nolint:gocritic // a new slice
			masked := within(t, s.path, line, args...)
			require.Equal(t, exitOK, masked.code, masked.err)
			require.Contains(t, masked.out, "Patient")
			require.NotRegexp(t, "Ana|Ben", masked.out+masked.err, args)
			require.Regexp(t, "Ana.*Ben", within(t, s.path, line, append(args, "--reveal")...).out, args)
		}
	}
	exported := within(t, s.path, "", "events", "--aggregate", "Patient/"+s.sent[0].AggregateID, "-o", "json", "--reveal")
	imported := within(t, filepath.Join(t.TempDir(), "copy.db"), exported.out, "append", "-o", "json", "--reveal")
	require.Equal(t, exported.out, imported.out, "append reads what events --reveal prints")
}

func nearNamesAreOffered(t *testing.T, s filled) {
	t.Helper()
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"command":               {[]string{"evnts"}, exitUsage, `unknown command "evnts"; did you mean events?`},
		"command with a flag":   {[]string{"evnts", "--type", "T"}, exitUsage, `unknown command "evnts"; did you mean events?`},
		"command of a group":    {[]string{"dlq", "lst"}, exitUsage, `unknown command "dlq lst"; did you mean dlq list?`},
		"no near command":       {[]string{"walk"}, exitUsage, "unknown command \"walk\"\n"},
		"flag":                  {[]string{"events", "--tipe", "T"}, exitUsage, "unknown flag: --tipe; did you mean --type?"},
		"event type":            {[]string{"events", "--type", "PatientRegistred"}, exitOK, "no events\ndid you mean --type PatientRegistered?"},
		"beginning of a type":   {[]string{"events", "--type", "patientmov"}, exitOK, "did you mean --type PatientMoved?"},
		"no near type":          {[]string{"events", "--type", "Invoice"}, exitOK, "no events\n"},
		"a type without events": {[]string{"events", "--type", "PatientMoved", "--until", "1w"}, exitOK, "no events\n"},
		"aggregate":             {[]string{"events", "--aggregate", "Patinet/" + s.sent[0].AggregateID}, exitOK, "did you mean --aggregate Patient?"},
		"type of letters":       {[]string{"dlq", "list", "--type", "PatientMovd"}, exitNotFound, "matches the filter; did you mean --type PatientMoved?"},
		"handler":               {[]string{"dlq", "replay", "--all", "--to", "welcom-patient"}, exitUsage, "did you mean welcome-patient?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := within(t, s.path, "", test.args...)
			require.Equal(t, test.code, r.code, r.err)
			require.Contains(t, r.err, test.want)
			require.Equal(t, strings.Contains(test.want, "did you mean"), strings.Contains(r.err, "did you mean"), r.err)
		})
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	known := names{handlers: []string{"welcome-patient", ""}, groups: []string{"3f9a12c4"}}
	require.Equal(t, "did you mean --handler welcome-patient and --group 3f9a12c4?", known.hint("", "", "welcome-patent", "3f9a12c5"))
	require.Empty(t, known.hint("T", "", "welcome-patient", ""))
}

func namesAreCompleted(t *testing.T, s filled) {
	t.Helper()
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"types of the store and of the handlers": {[]string{"events", "--type", ""}, []string{"PatientMoved", "AppointmentScheduled"}},
		"types of letters":                       {[]string{"dlq", "list", "--type", ""}, []string{"PatientMoved"}},
		"handlers":                               {[]string{"dlq", "list", "--handler", ""}, []string{"welcome-patient"}},
		"destinations":                           {[]string{"dlq", "replay", "--to", ""}, []string{"welcome-patient", "bus"}},
		"types as arguments":                     {[]string{"unbind", ""}, []string{"PatientMoved"}},
		"outputs":                                {[]string{"events", "--output", ""}, []string{"wide", "json"}},
		"colours":                                {[]string{"events", "--color", ""}, []string{"never"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{cobra.ShellCompRequestCmd, "--database-url=", "--rabbitmq-url=", "--sqlite-path=" + s.path}, test.args...)
			var out, errOut bytes.Buffer
			require.Equal(t, exitOK, execute(t.Context(), newRoot(clinic.Register), args, nil, &out, &errOut), errOut.String())
			for _, want := range test.want {
				require.Contains(t, strings.Split(out.String(), "\n"), want)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	table, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	require.NoError(t, err)
	for want, errs := range map[int][]error{
		exitFailed:      {errors.New("no space"), store.ErrWouldLose, amqp.ErrRefused, context.Canceled},
		exitUsage:       {usageError{errors.New("no such flag")}, &store.QueryError{Field: "after"}},
		exitUnknown:     {errCannotTell},
		exitNotFound:    {deadletter.ErrNotFound, store.ErrNoSchema, worker.ErrNoDatabase, notFoundError{errors.New("no letter")}},
		exitConflict:    {events.ErrConflict, &intake.LineError{Line: 1, Err: &store.DuplicateError{}}, deadletter.ErrChanged, deadletter.ErrExporting},
		exitUnavailable: {store.ErrUnavailable, store.ErrUnknownOutcome, amqp.ErrUnavailable},
		exitInvalid:     {&intake.LineError{Line: 1, Err: errors.New("no JSON")}, &events.InvalidError{}, &deadletter.LineError{}, deadletter.ErrPatch},
	} {
		for _, err := range errs {
			require.Equal(t, want, exitCode(fmt.Errorf("a command: %w", err)), err)
		}
		require.True(t, strings.Contains(string(table), fmt.Sprintf("\n| %d | ", want)), "%d is not in docs/operations.md", want)
	}
}

func TestFilesThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	for _, args := range [][]string{
		{"append", "/nowhere/x"}, {"dlq", "import", "/nowhere/x"}, {"dlq", "edit", "x", "--patch", "/nowhere/x", "--reason", "r"},
	} {
		r := within(t, path, "", args...)
		require.Equal(t, exitUsage, r.code, args)
		require.Contains(t, r.err, "/nowhere/x", args)
	}
}

func TestAMigrationIsRolledBackOnlyIfConfirmed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	require.Equal(t, exitOK, within(t, path, "", "migrate", "up").code)
	r := within(t, path, "y\n", "migrate", "down")
	require.Equal(t, exitUsage, r.code, "standard input is no terminal")
	require.Regexp(t, `roll back version \d+ \(\w+\) of the schema in SQLite .*test.db: confirm with --yes`, r.err)
	require.Regexp(t, `^rolled back version \d+ \(\w+\)`, within(t, path, "", "migrate", "down", "--yes").out)
}

func TestTimes(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90m": 90 * time.Minute, "2h": 2 * time.Hour, "1d": day, "1w": 7 * day, "1w2d3h": 9*day + 3*time.Hour, "0": 0,
	} {
		at, err := parseTime(text)
		require.NoError(t, err, text)
		require.WithinDuration(t, time.Now().Add(-want), at, time.Minute, text)
	}
	for text, want := range map[string]string{"2026-11-30": "2026-11-30T00:00:00Z", "2026-11-30T12:00:00+01:00": "2026-11-30T11:00:00Z"} {
		at, err := parseTime(text)
		require.NoError(t, err, text)
		require.Equal(t, want, at.UTC().Format(time.RFC3339))
	}
	for _, text := range []string{"-1h", "-1d", "1x", "soon", "d", "1.5d", "99999w", "2026-13-01", "1d2w"} {
		_, err := parseTime(text)
		require.Error(t, err, text)
	}
}

// The help of each command fits a terminal of 80 columns, and explains the global flags at the root only.
func TestHelpFits(t *testing.T) {
	t.Parallel()
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		var out bytes.Buffer
		c.SetOut(&out)
		require.NoError(t, c.Help())
		for line := range strings.Lines(out.String()) {
			require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSpace(line)), defaultWidth, "%s: %s", c.CommandPath(), line)
		}
		require.Equal(t, c.HasParent(), !strings.Contains(out.String(), "prefix of the names"), c.CommandPath())
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot(clinic.Register, Demo()))
}

func formerOutputName(t *testing.T, s filled) {
	t.Helper()
	want := within(t, s.path, "", "events", "-o", "json").out
	require.True(t, strings.HasPrefix(want, "{"))
	for _, flag := range []string{"--output=json", "--format=json"} {
		require.Equal(t, want, within(t, s.path, "", "events", flag).out, flag)
	}
	require.True(t, strings.HasPrefix(within(t, s.path, "", "trace", decodeLines[wire](t, want)[0].EventID, "-o", "wide").out, "correlation"))
}
