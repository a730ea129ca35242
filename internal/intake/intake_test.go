package intake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
)

const (
	patient = "5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11"
	other   = "6f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c12"
	tenant  = "0b9a4f3e-0c3d-4f5e-9a51-7d2c6b8e4a10"
)

func openStore(t *testing.T) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "test.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	return s
}

// line is an event of an aggregate with more fields, as JSON.
func line(aggregateID, more string) string {
	return fmt.Sprintf(`{"event_type":"Noted","aggregate_type":"Patient","aggregate_id":%q,"tenant_id":%q,"event_data":{}%s}`,
		aggregateID, tenant, more)
}

func collect(batches iter.Seq2[[]events.Event, error]) (all [][]events.Event, err error) {
	for batch, err := range batches {
		if err != nil {
			return all, err
		}
		all = append(all, batch)
	}
	return all, nil
}

func versions(t *testing.T, s *sqlite.Store, aggregateID string) []int {
	t.Helper()
	var found []int
	for e, err := range s.Stream(t.Context(), "Patient", uuid.MustParse(aggregateID), 0) {
		require.NoError(t, err)
		found = append(found, e.AggregateVersion)
	}
	return found
}

func TestAppendFillsInWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	input := strings.Join([]string{
		line(patient, ""), "", "  ", line(other, ""), line(patient, ""),
		line(patient, `,"aggregate_version":3,"correlation_id":"`+other+`"`), line(patient, ""),
	}, "\n")
	batches, err := collect(intake.Append(t.Context(), s, strings.NewReader(input), 2))
	require.NoError(t, err)
	require.Len(t, batches, 3, "five events, two at a time")
	require.Equal(t, []int{1, 2, 3, 4}, versions(t, s, patient))
	require.Equal(t, []int{1}, versions(t, s, other))
	first := batches[0][0]
	require.Equal(t, uuid.Version(7), first.ID.Version())
	require.NotEqual(t, first.CorrelationID, batches[0][1].CorrelationID)
	require.False(t, first.CreatedAt.IsZero())
	require.Equal(t, other, batches[1][1].CorrelationID.String())
}

func TestAppendSaysWhichLineIsAtFaultAndTakesNothingOfItsBatch(t *testing.T) {
	t.Parallel()
	good := line(patient, "")
	for name, test := range map[string]struct {
		lines []string
		want  string
		kept  int
	}{
		"not JSON":            {[]string{good, `{"event_type`}, "line 2: invalid event: the body is not valid JSON at byte 12; nothing of lines 1 to 2 was appended", 0},
		"a field is missing":  {[]string{good, strings.Replace(good, `"tenant_id"`, `"clinic_id"`, 1)}, "line 2: invalid event: tenant_id is missing", 0},
		"a field is misspelt": {[]string{good, line(patient, `,"corelation_id":"`+other+`"`)}, `line 2: invalid event: "corelation_id" is no field of an event`, 0},
		"a bad id":            {[]string{strings.Replace(good, patient, "Ana", 1)}, "line 1: invalid event: aggregate_id is not a UUID", 0},
		"a byte order mark":   {[]string{"\xef\xbb\xbf" + good}, "line 1: invalid event: the body begins with a byte order mark (BOM)", 0},
		"a field twice":       {[]string{good, line(patient, `,"tenant_id":"`+other+`"`)}, `line 2: invalid event: "tenant_id" is there twice; nothing`, 0},
		"version 0":           {[]string{line(patient, `,"aggregate_version":0`)}, "line 1: invalid event: aggregate_version must be from 1", 0},
		"a gap":               {[]string{good, "", line(patient, `,"aggregate_version":5`)}, "line 3: gap in versions", 0},
		"a taken version":     {[]string{good, good, line(patient, `,"aggregate_version":1`)}, "line 3: concurrency conflict: ", 2},
		"the batch before is": {[]string{good, good, good, "null"}, "line 4: invalid event: the body is a JSON null, not an object; nothing of lines 3 to 4 was appended", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			_, err := collect(intake.Append(t.Context(), s, strings.NewReader(strings.Join(test.lines, "\n")), 2))
			require.ErrorContains(t, err, test.want)
			require.Len(t, versions(t, s, patient), test.kept)
		})
	}
}

func TestAppendedVersionsAreFreeWhoeverElseAppends(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	const writers, each = 4, 25
	var writing sync.WaitGroup
	errs := make(chan error, writers)
	for range writers {
		writing.Go(func() {
			_, err := collect(intake.Append(t.Context(), s, strings.NewReader(strings.Repeat(line(patient, "")+"\n", each)), 5))
			errs <- err
		})
	}
	writing.Wait()
	for range writers {
		require.NoError(t, <-errs)
	}
	require.Len(t, versions(t, s, patient), writers*each)
}

func TestNothingIsNothing(t *testing.T) {
	t.Parallel()
	batches, err := collect(intake.Append(t.Context(), openStore(t), strings.NewReader(" \n\n"), 10))
	require.NoError(t, err)
	require.Empty(t, batches)
}

// faulty is a store whose appends fail as a whole.
type faulty struct{ err error }

func (f faulty) Version(context.Context, string, uuid.UUID) (int, error) { return 0, nil }
func (f faulty) AppendMany(_ context.Context, _ []events.Event) error    { return f.err }
func (f faulty) PublishMany(_ context.Context, _ []events.Event) error   { return f.err }

func TestErrorsThatNoLineIsToBlameFor(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	one := line(patient, `,"aggregate_version":1`)
	three := strings.Join([]string{one, "", one}, "\n")
	for _, test := range []struct {
		input           string
		err             error
		append, publish string
	}{
		{three, broken, "lines 1 to 3: broken; nothing of lines 1 to 3 was appended", "lines 1 to 3: broken; lines 1 to 3 may have been published"},
		{one, broken, "line 1: broken", "line 1: broken; line 1 may have been published"},
		{
			three, store.ErrUnknownOutcome,
			"lines 1 to 3: " + store.ErrUnknownOutcome.Error() + "; lines 1 to 3 may have been appended",
			"lines 1 to 3: " + store.ErrUnknownOutcome.Error() + "; lines 1 to 3 may have been published",
		},
	} {
		_, err := collect(intake.Append(t.Context(), faulty{test.err}, strings.NewReader(test.input), 10))
		require.EqualError(t, err, test.append)
		require.ErrorIs(t, err, test.err)
		_, err = collect(intake.Publish(t.Context(), faulty{test.err}, strings.NewReader(test.input), 10))
		require.EqualError(t, err, test.publish)
	}
}

// An interrupt ends the wait for input. The error says what was appended or published before, and that a line without its
// end was not.
func TestAnInterruptEndsTheWaitForInput(t *testing.T) {
	t.Parallel()
	for _, done := range []string{"appended", "published"} {
		t.Run(done, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			input, output := io.Pipe()
			defer output.Close()
			batches := intake.Append(ctx, openStore(t), input, 2)
			if done == "published" {
				batches = intake.Publish(ctx, &published{}, input, 2)
			}
			go func() {
				for version := range 4 {
					_, _ = io.WriteString(output, line(patient, fmt.Sprintf(`,"aggregate_version":%d`, version+1))+strings.Repeat("\n", 1-version/3))
				}
				cancel() // what was written is read
			}()
			taken, err := collect(batches)
			var interrupted *intake.InterruptedError
			require.ErrorAs(t, err, &interrupted)
			require.ErrorIs(t, err, context.Canceled)
			count := 0
			for _, batch := range taken {
				count += len(batch)
			}
			require.Equal(t, count, interrupted.Taken)
			require.LessOrEqual(t, interrupted.Taken, 3)
			require.Contains(t, err.Error(), fmt.Sprintf("interrupted: events that were %s: %d; ", done, count))
			require.Contains(t, err.Error(), fmt.Sprintf("no line after them was %s", done))
		})
	}
}

// An interrupt while a batch is appended or published says what was before it.
func TestAnInterruptOfABatch(t *testing.T) {
	t.Parallel()
	input := ""
	for version := range 4 {
		input += line(patient, fmt.Sprintf(`,"aggregate_version":%d`, version+1)) + "\n"
	}
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"canceled": {context.Canceled, "interrupted: events that were appended: 2; no line after them was appended"},
		"unknown": {
			store.ErrUnknownOutcome,
			"interrupted: events that were appended: 2; lines 3 to 4 may have been appended; no line after them was appended",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := &interruptedStore{Store: openStore(t), cancel: cancel, err: test.err}
			taken, err := collect(intake.Append(ctx, s, strings.NewReader(input), 2))
			require.Len(t, taken, 1)
			require.ErrorIs(t, err, test.err)
			require.EqualError(t, err, test.want)
		})
	}
}

// interruptedStore appends one batch. The context ends while it appends the second.
type interruptedStore struct {
	intake.Store

	batches int
	cancel  func()
	err     error
}

func (s *interruptedStore) AppendMany(ctx context.Context, batch []events.Event) error {
	if s.batches++; s.batches == 1 {
		return s.Store.AppendMany(ctx, batch)
	}
	s.cancel()
	return s.err
}

// published keeps what it is given.
type published struct{ batches [][]events.Event }

func (p *published) PublishMany(_ context.Context, batch []events.Event) error {
	p.batches = append(p.batches, batch)
	return nil
}

func TestPublishNeedsTheVersion(t *testing.T) {
	t.Parallel()
	var p published
	_, err := collect(intake.Publish(t.Context(), &p, strings.NewReader(line(patient, `,"aggregate_version":4`)), 10))
	require.NoError(t, err)
	require.Equal(t, 4, p.batches[0][0].AggregateVersion)
	_, err = collect(intake.Publish(t.Context(), &p, strings.NewReader(line(patient, "")), 10))
	require.ErrorContains(t, err, "line 1: invalid event: aggregate_version is missing")
	_, err = collect(intake.Publish(t.Context(), &p, strings.NewReader(line(patient, `,"aggregate_version":4`)+"\n"+line(patient, "")), 10))
	require.ErrorContains(t, err, "; nothing of lines 1 to 2 was published")
	require.Len(t, p.batches, 1)
}

// Lines are batched by their bytes too; one that is larger than the bound is a batch of its own.
func TestBatchesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	large := func(size int) string {
		return line(patient, `,"aggregate_version":1,"metadata":{"a":"`+strings.Repeat("x", size)+`"}`)
	}
	const third = store.PageBytes / 3
	input := strings.Join([]string{large(third), large(third), large(third), large(2 * store.PageBytes), large(1), large(1)}, "\n")
	var p published
	batches, err := collect(intake.Publish(t.Context(), &p, strings.NewReader(input), 500))
	require.NoError(t, err)
	var sizes []int
	for _, b := range batches {
		sizes = append(sizes, len(b))
	}
	require.Equal(t, []int{2, 1, 1, 2}, sizes)
}
