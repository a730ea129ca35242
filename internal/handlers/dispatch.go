package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wmiddleware "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/store"
)

// recordTimeout bounds the store's part of an attempt, which the handlers' timeout does not cover.
const recordTimeout = time.Minute

// Inbox records which handler has handled which event. Both stores are one.
type Inbox interface {
	// Handled returns the names of the handlers that have handled e, or [store.ErrContradiction].
	Handled(ctx context.Context, e events.Event) ([]string, error)
	// Attempt returns the context for one try of a handler and its Record.
	Attempt(ctx context.Context) context.Context
	// Record appends followUps together with the record that handler has handled e, or returns [store.ErrHandled].
	Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error
	// Park notes that e rests in the dead letters of handler, until it is recorded as handled.
	Park(ctx context.Context, handler string, e events.Event) error
	// Parked returns for each of the handlers the first parked event that e has to wait behind, if there is one.
	Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error)
}

// Replayed is told what became of replayed dead letters; a [deadletter.Table] is one.
type Replayed interface {
	// Settled notes by which handlers the message of a letter was handled, and whether it reached all that it was for.
	Settled(ctx context.Context, letterID, replayID string, handlers []string, reached bool) error
}

// AfterDeadLetter says what becomes of the later events of an aggregate when one is a dead letter of a handler.
type AfterDeadLetter string

// The fates of what follows a dead letter.
const (
	// Continue: the handler goes on with them.
	Continue AfterDeadLetter = "continue"
	// Park: they become dead letters of the handler too, without a try, and are replayed behind it in order. A replay
	// that would overtake an earlier one is parked again. It is in order as far as deliveries are: one worker on a queue.
	Park AfterDeadLetter = "park"
)

// Dispatcher hands each message to the handlers registered for its event type. It is safe for concurrent use.
type Dispatcher struct {
	inbox   Inbox
	letters Replayed
	runners []*runner
	after   AfterDeadLetter
	retry   middleware.Retry
	logger  *slog.Logger
	trace   Trace // may be nil
}

// runner is a handler with its middleware around it.
type runner struct {
	handler
	run     message.HandlerFunc
	logger  *slog.Logger
	watcher Watcher // may be nil
}

// NewDispatcher returns the dispatcher of the handlers in reg. retry and timeout, which is that of one attempt, hold for
// each of them. The error names all that is wrong with the registrations.
func NewDispatcher(
	reg *Registry, inbox Inbox, letters Replayed, after AfterDeadLetter, retry middleware.Retry, timeout time.Duration, logger *slog.Logger,
) (*Dispatcher, error) {
	if len(reg.problems) > 0 {
		return nil, fmt.Errorf("register handlers: %w", errors.Join(reg.problems...))
	}
	d := &Dispatcher{inbox: inbox, letters: letters, after: after, retry: retry, logger: logger}
	for _, h := range reg.handlers {
		retry.Logger = logger.With("handler", h.name)
		r := &runner{handler: h, logger: retry.Logger}
		r.run = retry.Middleware(d.watched(r, redact(r.logger, wmiddleware.Recoverer(d.attempt(h, timeout)))))
		d.runners = append(d.runners, r)
	}
	return d, nil
}

// Handle runs the handlers of the event in m, one after another, passing over those that have handled it before. The
// error is a *[deadletter.FailedError] with the handlers that failed for good, or [middleware.ErrStopping].
func (d *Dispatcher) Handle(m *message.Message) error {
	ctx := m.Context()
	e, err := events.Parse(m.Payload)
	if err != nil {
		return failedBefore(err)
	}
	only := m.Metadata.Get(bus.ReplayHandlerKey)
	chosen := d.choose(e, only)
	if len(chosen) == 0 && only != "" {
		return &deadletter.FailedError{Failures: []deadletter.Failure{failureOf(only, notRegistered(only, e.Type))}}
	}
	if len(chosen) == 0 {
		middleware.SetOutcome(ctx, middleware.Unhandled)
		return d.settled(ctx, m, nil)
	}
	handled, err := d.handled(ctx, e)
	if errors.Is(err, middleware.ErrStopping) {
		return err
	}
	if err != nil {
		return failedBefore(err)
	}
	parked, err := d.parked(ctx, e, chosen)
	if err != nil {
		return err
	}

	var failed deadletter.FailedError
	var done []string
	ctx = events.NewContext(ctx, e)
	for _, r := range chosen {
		if slices.Contains(handled, r.name) {
			r.suppressed(ctx, e)
			done = append(done, r.name)
			continue
		}
		var failure deadletter.Failure
		if first, waits := parked[r.name]; waits {
			failure = parkedBehind(r.name, first)
		} else {
			m.SetContext(ctx)
			_, err := r.run(m)
			if errors.Is(err, middleware.ErrStopping) {
				return err
			}
			if err == nil {
				done = append(done, r.name)
				continue
			}
			failure = failureOf(r.name, err)
		}
		if err := d.park(ctx, r.name, e); err != nil {
			return err
		}
		failed.Failures = append(failed.Failures, failure)
	}
	if err := d.settled(ctx, m, done); err != nil {
		return err
	}
	if len(failed.Failures) > 0 {
		return &failed
	}
	return nil
}

// settled notes which handlers have handled a message that a replay has sent, before the message is acked. The error is
// [middleware.ErrStopping].
func (d *Dispatcher) settled(ctx context.Context, m *message.Message, done []string) error {
	letterID := m.Metadata.Get(deadletter.ReplayOfKey)
	if letterID == "" {
		return nil
	}
	replayID := m.Metadata.Get(deadletter.ReplayIDKey)
	return d.retry.Do(ctx, func() error { return faultOfInbox(ctx, d.letters.Settled(ctx, letterID, replayID, done, true)) })
}

// choose returns the handlers for e, or only the one of them that a replay is for.
func (d *Dispatcher) choose(e events.Event, only string) []*runner {
	var chosen []*runner
	for _, r := range d.runners {
		if r.isFor(e.Type, only) {
			chosen = append(chosen, r)
		}
	}
	return chosen
}

// handled asks the inbox, for as long as it does not answer: that is not the event's fault, as a contradiction is.
func (d *Dispatcher) handled(ctx context.Context, e events.Event) (names []string, err error) {
	err = d.retry.Do(ctx, func() error {
		names, err = d.inbox.Handled(ctx, e)
		return faultOfInbox(ctx, err)
	})
	return names, err
}

// parked asks behind which parked events the handlers' e has to wait. The error is [middleware.ErrStopping].
func (d *Dispatcher) parked(ctx context.Context, e events.Event, chosen []*runner) (first map[string]uuid.UUID, err error) {
	if d.after != Park {
		return nil, nil
	}
	names := make([]string, len(chosen))
	for i, r := range chosen {
		names[i] = r.name
	}
	err = d.retry.Do(ctx, func() error {
		first, err = d.inbox.Parked(ctx, e, names)
		return faultOfInbox(ctx, err)
	})
	return first, err
}

// park notes that e is about to become a dead letter, so that no later event of its aggregate gets past it. The note
// comes first: without its letter, after a crash, e is delivered again, and handled or parked anew. The error is
// [middleware.ErrStopping].
func (d *Dispatcher) park(ctx context.Context, handler string, e events.Event) error {
	if d.after != Park {
		return nil
	}
	return d.retry.Do(ctx, func() error { return faultOfInbox(ctx, d.inbox.Park(ctx, handler, e)) })
}

// attempt is one run of a handler, and then the record of what follows. The timeout is the handler's alone: a store that
// does not answer is not its failure.
func (d *Dispatcher) attempt(h handler, timeout time.Duration) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		ctx := d.inbox.Attempt(m.Context())
		e, _ := events.FromContext(ctx) // Handle has put it there
		followUps, err := h.run(ctx, e, timeout)
		if err != nil {
			return nil, err
		}
		return nil, d.record(ctx, h.name, e, followUps)
	}
}

// run calls the handler, and checks what follows.
func (h handler) run(ctx context.Context, e events.Event, timeout time.Duration) ([]events.Event, error) {
	calling, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	followUps, err := h.call(calling, e)
	if errors.Is(err, context.DeadlineExceeded) && calling.Err() != nil {
		return nil, fmt.Errorf("timed out after %s: %w", timeout, err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkFollowUps(e, followUps); err != nil {
		return nil, Permanent(err)
	}
	return followUps, nil
}

// record records what follows, for as long as the inbox does not answer: the handler, whose part is done, is not run
// again for that.
func (d *Dispatcher) record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	var answer error
	err := d.retry.Do(ctx, func() error {
		recording, cancel := context.WithTimeout(ctx, recordTimeout)
		defer cancel()
		err := d.inbox.Record(recording, handler, e, followUps)
		if errors.Is(err, store.ErrHandled) {
			answer = errDuplicate
			return nil
		}
		answer = faultOfInbox(ctx, err)
		if errors.Is(answer, store.ErrUnavailable) && !IsPermanent(answer) {
			return answer
		}
		return nil
	})
	if err != nil {
		return err
	}
	return answer
}

// faultOfInbox tells the errors of the store that an event or a handler is to blame for from all others, such as those of
// a database that is away, refuses the password, or lacks its tables. Of the others no event may become a dead letter:
// they count as an outage, which is waited out. Repeating a record of unknown outcome is safe.
func faultOfInbox(ctx context.Context, err error) error {
	_, invalid := errors.AsType[*events.InvalidError](err)
	_, gap := errors.AsType[*store.GapError](err)
	_, duplicate := errors.AsType[*store.DuplicateError](err)
	work, failed := errors.AsType[*store.WorkError](err)
	switch {
	case failed:
		return work.Err
	case err == nil, ctx.Err() != nil, gap, duplicate, errors.Is(err, events.ErrConflict):
		return err
	case invalid, errors.Is(err, store.ErrContradiction), errors.Is(err, events.ErrOtherTenant):
		return backoff.Permanent(err)
	case errors.Is(err, store.ErrUnavailable):
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// checkFollowUps refuses events that would mix tenants or break the chain of causes.
func checkFollowUps(cause events.Event, followUps []events.Event) error {
	for _, f := range followUps {
		var field string
		switch {
		case f.TenantID != cause.TenantID:
			field = "tenant_id"
		case f.CorrelationID != cause.CorrelationID:
			field = "correlation_id"
		case !f.CausationID.Valid || f.CausationID.UUID != cause.ID:
			field = "causation_id"
		default:
			continue
		}
		return fmt.Errorf("follow-up event %s has another %s than its cause: make it with events.Follow or events.CausedBy",
			f.Type, field)
	}
	return nil
}

// notRegistered is the error of a letter of a handler that this worker has not, and says what to do.
func notRegistered(handler, eventType string) error {
	return fmt.Errorf("handler %q is not registered for %s: if it has another name now, replay the letter with --to NAME; "+
		"if nobody is to handle it, discard it", handler, eventType)
}

// failedBefore is the failure of a message that reached no handler.
func failedBefore(err error) error {
	return &deadletter.FailedError{Failures: []deadletter.Failure{failureOf("", err)}}
}

// parkedBehind is the failure of an event that waits in the dead letters.
func parkedBehind(handler string, first uuid.UUID) deadletter.Failure {
	now := time.Now().UTC()
	return deadletter.Failure{
		Reason:  fmt.Sprintf("parked behind event %s of its aggregate: replay them in order", first),
		Handler: handler, FirstFailed: now, LastFailed: now,
	}
}

func failureOf(handler string, err error) deadletter.Failure {
	now := time.Now().UTC()
	f := deadletter.Failure{Handler: handler, Attempts: 1, FirstFailed: now, LastFailed: now}
	if exhausted, ok := errors.AsType[*middleware.ExhaustedError](err); ok {
		f.Attempts, f.FirstFailed, f.LastFailed = exhausted.Attempts, exhausted.FirstFailed, exhausted.LastFailed
		err = exhausted.Err
		f.MayPass = !IsPermanent(err)
	}
	f.Reason = deadletter.CutReason(err.Error())
	return f
}
