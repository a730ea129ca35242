// Package intake reads events from JSON lines, fills in optional fields, and appends or publishes them in batches.
package intake

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// MaxLine is the size limit of a line, in bytes.
const MaxLine = 64 << 20

// LineError says which line of the input is invalid. Its text does not quote the line.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// BatchError says which lines were not appended or published. If one line is the reason, Err is a *[LineError].
type BatchError struct {
	First, Last int
	// Done is "appended" or "published".
	Done string
	// Unsure is set if the outcome is unknown: all or some of the lines may have been appended or published.
	Unsure bool
	Err    error
}

func (e *BatchError) Error() string {
	lines := e.lines()
	text := e.Err.Error()
	if _, named := errors.AsType[*LineError](e.Err); !named {
		text = lines + ": " + text
	}
	switch {
	case e.Unsure:
		return fmt.Sprintf("%s; %s may have been %s", text, lines, e.Done)
	case e.First == e.Last:
		return text
	default:
		return fmt.Sprintf("%s; nothing of %s was %s", text, lines, e.Done)
	}
}
func (e *BatchError) Unwrap() error { return e.Err }

func (e *BatchError) lines() string {
	if e.First == e.Last {
		return fmt.Sprintf("line %d", e.First)
	}
	return fmt.Sprintf("lines %d to %d", e.First, e.Last)
}

// InterruptedError says that the context has ended, and what was appended or published before that.
type InterruptedError struct {
	// Taken events were appended or published.
	Taken int
	// Done is "appended" or "published".
	Done string
	// Err is a *[BatchError] if a batch was under way.
	Err error
}

func (e *InterruptedError) Error() string {
	text := fmt.Sprintf("interrupted: events that were %s: %d; ", e.Done, e.Taken)
	if b, found := errors.AsType[*BatchError](e.Err); found && b.Unsure {
		return fmt.Sprintf("%s%s may have been %s; no line after them was %s", text, b.lines(), e.Done, e.Done)
	}
	return fmt.Sprintf("%sno line after them was %s", text, e.Done)
}
func (e *InterruptedError) Unwrap() error { return e.Err }

// Versions returns the current version of an aggregate.
type Versions interface {
	Version(ctx context.Context, aggregateType string, aggregateID uuid.UUID) (int, error)
}

// Store is the part of a store that [Append] uses.
type Store interface {
	Versions
	AppendMany(ctx context.Context, batch []events.Event) error
}

// Append appends the events in r, batch lines per transaction or fewer that together have more than [store.PageBytes], and
// yields each appended batch. It fills in missing fields: event_id, created_at, correlation_id (each line gets its own) and aggregate_version (the next one; after a conflict with
// another writer it tries the one after that). The first error ends it.
func Append(ctx context.Context, s Store, r io.Reader, batch int) iter.Seq2[[]events.Event, error] {
	unsure := func(err error) bool { return errors.Is(err, store.ErrUnknownOutcome) }
	return inBatches(ctx, r, batch, "appended", unsure, func(drafts []draft) ([]events.Event, error) {
		for { // after a conflict, as another writer took the version
			numbered, err := number(ctx, s, drafts)
			if err != nil {
				return nil, err
			}
			err = s.AppendMany(ctx, numbered)
			conflict, conflicts := errors.AsType[*store.ConflictError](err)
			if !conflicts || !wasNumbered(drafts, numbered, conflict) || ctx.Err() != nil {
				return numbered, inLine(drafts, err)
			}
		}
	})
}

// Publisher publishes events in order.
type Publisher interface {
	PublishMany(ctx context.Context, batch []events.Event) error
}

// Publish publishes the events in r, in the batches of [Append], and yields each published batch. It fills in the fields
// that [Append] fills in, except the version, which only the store knows.
func Publish(ctx context.Context, p Publisher, r io.Reader, batch int) iter.Seq2[[]events.Event, error] {
	unsure := func(err error) bool {
		_, refused := errors.AsType[*LineError](err)
		return !refused
	}
	return inBatches(ctx, r, batch, "published", unsure, func(drafts []draft) ([]events.Event, error) {
		complete := make([]events.Event, len(drafts))
		for i, d := range drafts {
			if err := d.Validate(); err != nil {
				return nil, &LineError{Line: d.line, Err: err}
			}
			complete[i] = d.Event
		}
		return complete, p.PublishMany(ctx, complete)
	})
}

// draft is an event whose version may still be missing.
type draft struct {
	events.Event
	line, bytes int
}

// inLine adds the line number to an error of one event.
func inLine(drafts []draft, err error) error {
	if fault, found := errors.AsType[*store.EventError](err); found {
		return &LineError{Line: drafts[fault.Index].line, Err: fault.Err}
	}
	return err
}

// wasNumbered returns whether number assigned the version of the conflict.
func wasNumbered(drafts []draft, numbered []events.Event, conflict *store.ConflictError) bool {
	for i, e := range numbered {
		if e.AggregateID == conflict.AggregateID && e.AggregateVersion == conflict.Wanted {
			return drafts[i].AggregateVersion == 0
		}
	}
	return false
}

// number returns the events with their versions. A missing version is the next one after the store and the batch.
func number(ctx context.Context, v Versions, drafts []draft) ([]events.Event, error) {
	type stream struct {
		aggregateType string
		aggregateID   uuid.UUID
	}
	last := map[stream]int{}
	numbered := make([]events.Event, len(drafts))
	for i, d := range drafts {
		e, s := d.Event, stream{d.AggregateType, d.AggregateID}
		if e.AggregateVersion == 0 {
			if _, known := last[s]; !known {
				version, err := v.Version(ctx, s.aggregateType, s.aggregateID)
				if err != nil {
					return nil, fmt.Errorf("look up the version of %s %s: %w", s.aggregateType, s.aggregateID, err)
				}
				last[s] = version
			}
			e.AggregateVersion = last[s] + 1
		}
		last[s] = e.AggregateVersion
		if err := e.Validate(); err != nil {
			return nil, &LineError{Line: d.line, Err: err}
		}
		numbered[i] = e
	}
	return numbered, nil
}

// inBatches reads lines, calls take for each batch, and yields its result. done and unsure are for [BatchError].
func inBatches(
	ctx context.Context, r io.Reader, size int, done string, unsure func(error) bool, take func([]draft) ([]events.Event, error),
) iter.Seq2[[]events.Event, error] {
	return func(yield func([]events.Event, error) bool) {
		var batch []draft
		bytes, count := 0, 0
		flush := func() bool {
			if len(batch) == 0 {
				return true
			}
			taken, err := take(batch)
			if err != nil {
				first, last := batch[0].line, batch[len(batch)-1].line
				failed := &BatchError{First: first, Last: last, Done: done, Unsure: unsure(err), Err: err}
				if ctx.Err() != nil && (failed.Unsure || errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
					yield(nil, &InterruptedError{Taken: count, Done: done, Err: failed})
				} else {
					yield(nil, failed)
				}
				return false
			}
			count += len(taken)
			batch, bytes = nil, 0 // without the memory of its events
			return yield(taken, nil)
		}
		for d, err := range drafts(ctx, r) {
			if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
				yield(nil, &InterruptedError{Taken: count, Done: done, Err: err})
				return
			}
			if err != nil {
				first := d.line
				if len(batch) > 0 {
					first = batch[0].line
				}
				yield(nil, &BatchError{First: first, Last: d.line, Done: done, Err: err})
				return
			}
			if len(batch) > 0 && bytes+d.bytes > store.PageBytes && !flush() {
				return
			}
			batch, bytes = append(batch, d), bytes+d.bytes
			if len(batch) == size && !flush() {
				return
			}
		}
		flush()
	}
}

// drafts yields the events of lines. When ctx ends, it yields the cause, although a read of r may still wait for input.
func drafts(ctx context.Context, r io.Reader) iter.Seq2[draft, error] {
	return func(yield func(draft, error) bool) {
		input, output := io.Pipe()
		defer input.Close() // then the copy ends, too, unless it waits for input
		go func() {
			_, err := io.Copy(output, r)
			output.CloseWithError(err) // nil is the end of the input
		}()
		defer context.AfterFunc(ctx, func() { output.CloseWithError(context.Cause(ctx)) })()
		lines := bufio.NewScanner(input)
		lines.Buffer(make([]byte, 0, 64<<10), MaxLine)
		line := 0
		for lines.Scan() && ctx.Err() == nil { // what ctx has cut off is no line
			line++
			if len(bytes.TrimSpace(lines.Bytes())) == 0 {
				continue
			}
			e, err := events.ParseDraft(bytes.Clone(lines.Bytes()))
			if err != nil {
				yield(draft{line: line}, &LineError{Line: line, Err: err})
				return
			}
			if !yield(draft{Event: fillIn(e), line: line, bytes: len(lines.Bytes())}, nil) {
				return
			}
		}
		if ctx.Err() != nil {
			yield(draft{}, context.Cause(ctx))
			return
		}
		if err := lines.Err(); err != nil {
			if errors.Is(err, bufio.ErrTooLong) {
				err = fmt.Errorf("it is longer than %d bytes", MaxLine)
			}
			yield(draft{line: line + 1}, &LineError{Line: line + 1, Err: err})
		}
	}
}

func fillIn(e events.Event) events.Event {
	if e.ID == uuid.Nil {
		e.ID = uuid.Must(uuid.NewV7())
	}
	if e.CreatedAt.IsZero() {
		e.CreatedAt = time.Now().UTC().Truncate(time.Millisecond)
	}
	if e.CorrelationID == uuid.Nil {
		e.CorrelationID = events.NewCorrelationID()
	}
	return e
}
