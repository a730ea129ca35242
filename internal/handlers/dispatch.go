package handlers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
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
	// Settled notes by which handlers the message of a letter was handled, and whether these are all that it was for.
	Settled(ctx context.Context, letterID, replayID string, handlers []string, all bool) error
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

// Config is how a [Dispatcher] works.
type Config struct {
	Inbox Inbox
	// Streams is what the repositories of handlers use.
	Streams events.Streams
	Letters Replayed
	After   AfterDeadLetter
	// Retry holds for each handler, and Timeout for each of its attempts.
	Retry   middleware.Retry
	Timeout time.Duration
	// MaxMessage is the most bytes of a message; a larger one is not parsed.
	MaxMessage int
	Observer   observe.Observer
	Logger     *slog.Logger
}

// Dispatcher hands each message to the handlers registered for its event type. It is safe for concurrent use.
type Dispatcher struct {
	Config

	handlers []handler
}

// NewDispatcher returns the dispatcher of the handlers in reg. The error names all that is wrong with the registrations.
func NewDispatcher(reg *Registry, c Config) (*Dispatcher, error) {
	all, err := reg.checked(c.Logger)
	return &Dispatcher{Config: c, handlers: all}, err
}

// Handle runs the handlers of the event in m, one after another, except those that have handled it before. An error that
// wraps [store.ErrUnavailable] comes before any handler has run, and [middleware.ErrStopping] when the worker stops: m can
// be handled again. Any other is permanent: a *[deadletter.FailedError] with the handlers that failed for good, or the
// reason why m can reach no handler.
func (d *Dispatcher) Handle(m *message.Message) error {
	ctx := m.Context()
	if len(m.Payload) > d.MaxMessage {
		return Permanent(fmt.Errorf("the body has %d bytes, over the %d of the largest message", len(m.Payload), d.MaxMessage))
	}
	e, err := events.Parse(m.Payload)
	if encoding := m.Metadata.Get(bus.ContentEncodingKey); err != nil && encoding != "" {
		err = fmt.Errorf("%w; its content_encoding is %.20q, and no encoding is read", err, encoding)
	}
	if err != nil {
		return Permanent(err)
	}
	only := m.Metadata.Get(bus.ReplayHandlerKey)
	chosen, names := choose(d.handlers, e, only)
	if len(chosen) == 0 && only != "" {
		return Permanent(&deadletter.FailedError{Failures: []deadletter.Failure{middleware.FailureOf(only, notRegistered(only, e.Type))}})
	}
	if len(chosen) == 0 {
		middleware.SetOutcome(ctx, observe.Unhandled)
		return d.settled(ctx, m, nil, true)
	}
	handled, err := d.Inbox.Handled(ctx, e)
	var parked map[string]uuid.UUID
	if err == nil && d.After == Park {
		parked, err = d.Inbox.Parked(ctx, e, names)
	}
	if err != nil {
		return faultOfInbox(ctx, err)
	}

	var failed deadletter.FailedError
	var done []string
	handledNow := false
	for _, h := range chosen {
		failure, failing := deadletter.Failure{}, false
		if slices.Contains(handled, h.name) {
			d.duplicate(events.NewContext(ctx, e), h, e)
		} else if first, waits := parked[h.name]; waits {
			failure, failing = parkedBehind(h.name, first), true
		} else if now, err := d.try(events.NewContext(ctx, e), h, e, middleware.EarlierAttempts(m)); errors.Is(err, middleware.ErrStopping) {
			return err
		} else if err != nil {
			failure, failing = middleware.FailureOf(h.name, err), true
		} else if now {
			handledNow = true
		}
		if !failing {
			done = append(done, h.name)
			continue
		}
		if err := d.park(ctx, h.name, e); err != nil {
			return err
		}
		failed.Failures = append(failed.Failures, failure)
	}
	if err := d.settled(ctx, m, done, len(failed.Failures) == 0); err != nil {
		return err
	}
	if len(failed.Failures) > 0 {
		return Permanent(&failed)
	}
	if !handledNow {
		middleware.SetOutcome(ctx, observe.Duplicate)
	}
	return nil
}

// choose returns the handlers for e and their names, or only the one of them that a replay is for.
func choose(all []handler, e events.Event, only string) (chosen []handler, names []string) {
	for _, h := range all {
		if h.isFor(e.Type, only) {
			chosen, names = append(chosen, h), append(names, h.name)
		}
	}
	return chosen, names
}

// try gives a handler its attempts, after those of earlier rounds, and tells whether it has handled the event now, and had
// not before. The error is an *[middleware.ExhaustedError] or wraps [middleware.ErrStopping].
func (d *Dispatcher) try(ctx context.Context, h handler, e events.Event, earlier int) (now bool, err error) {
	retry := d.Retry
	retry.Logger, retry.Earlier = h.logger, earlier
	err = retry.Do(ctx, func(attempt int) error {
		ctx, end := d.Observer.Attempt(ctx, h.name, e, attempt)
		began, duplicate := time.Now(), false
		err := h.attempt(withStreams(d.Inbox.Attempt(ctx), d.Streams), e, d.Timeout, func(ctx context.Context, followUps []events.Event) error {
			return d.persist(ctx, func(ctx context.Context) error {
				err := d.Inbox.Record(ctx, h.name, e, followUps)
				duplicate = errors.Is(err, store.ErrHandled)
				if duplicate {
					return nil
				}
				return err
			})
		})
		switch {
		case duplicate:
			end(observe.ErrDuplicate)
			d.duplicate(ctx, h, e)
		case errors.Is(err, middleware.ErrStopping):
			end(observe.ErrInterrupted)
		default:
			end(err)
		}
		now = err == nil && !duplicate
		if now {
			h.logger.LogAttrs(ctx, slog.LevelInfo, "event", slog.Int("attempt", attempt),
				slog.String("outcome", string(observe.Handled)), slog.Duration("took", time.Since(began).Round(time.Microsecond)))
		}
		return err
	})
	return now, err
}

// duplicate reports that a handler has handled e before.
func (d *Dispatcher) duplicate(ctx context.Context, h handler, e events.Event) {
	d.Observer.Duplicate(h.name, e)
	h.logger.LogAttrs(ctx, slog.LevelInfo, "event", slog.String("outcome", string(observe.Duplicate)))
}

// settled notes which handlers have handled a message that a replay has sent, before the message is acked. The error is
// [middleware.ErrStopping].
func (d *Dispatcher) settled(ctx context.Context, m *message.Message, done []string, all bool) error {
	letterID := m.Metadata.Get(deadletter.ReplayOfKey)
	if letterID == "" {
		return nil
	}
	replayID := m.Metadata.Get(deadletter.ReplayIDKey)
	return d.persist(ctx, func(ctx context.Context) error {
		return unexpected(d.Letters.Settled(ctx, letterID, replayID, done, all))
	})
}

// park notes that e is about to become a dead letter, so that no later event of its aggregate gets past it. The note
// comes first: without its letter, after a crash, e is delivered again, and handled or parked anew. The error is
// [middleware.ErrStopping].
func (d *Dispatcher) park(ctx context.Context, handler string, e events.Event) error {
	if d.After != Park {
		return nil
	}
	return d.persist(ctx, func(ctx context.Context) error { return unexpected(d.Inbox.Park(ctx, handler, e)) })
}

// persist writes what handlers have come to. An outage of the store is waited out here: the handlers, whose part is done,
// must not run again for that.
func (d *Dispatcher) persist(ctx context.Context, write func(context.Context) error) error {
	var answer error
	err := d.Retry.Do(ctx, func(int) error {
		bounded, cancel := context.WithTimeout(ctx, recordTimeout)
		defer cancel()
		answer = faultOfInbox(ctx, write(bounded))
		if errors.Is(answer, store.ErrUnavailable) && !IsPermanent(answer) {
			return answer
		}
		return nil
	})
	return cmp.Or(err, answer)
}

// faultOfInbox separates the errors of the store that an event or a handler causes, such as a follow-up event that a
// constraint refuses, from all others, such as those of a database that is unavailable, refuses the password, or has no
// tables. By the others no event may become a dead letter:
// they count as an outage, which is waited out. Repeating a record of unknown outcome is safe.
func faultOfInbox(ctx context.Context, err error) error {
	_, invalid := errors.AsType[*events.InvalidError](err)
	_, gap := errors.AsType[*store.GapError](err)
	_, duplicate := errors.AsType[*store.DuplicateError](err)
	_, refused := errors.AsType[*store.RefusedError](err)
	work, failed := errors.AsType[*store.WorkError](err)
	switch {
	case failed:
		return work.Err
	case err == nil, ctx.Err() != nil, gap, duplicate, errors.Is(err, events.ErrConflict):
		return err
	case invalid, errors.Is(err, store.ErrContradiction), errors.Is(err, events.ErrOtherTenant):
		return backoff.Permanent(err)
	case errors.Is(err, store.ErrUnavailable), refused:
		return err
	}
	return unexpected(err)
}

// unexpectedError is an error of the store of which no event may become a dead letter: it is waited out as an outage.
type unexpectedError struct{ error }

func unexpected(err error) error {
	if err == nil || errors.Is(err, store.ErrUnavailable) {
		return err
	}
	return unexpectedError{err}
}

func (e unexpectedError) Error() string        { return "unexpected error of the store: " + e.error.Error() }
func (e unexpectedError) Unwrap() error        { return e.error }
func (e unexpectedError) Is(target error) bool { return target == store.ErrUnavailable }

// notRegistered is the error of a letter of a handler that this worker has not, and says what to do.
func notRegistered(handler, eventType string) error {
	return fmt.Errorf("handler %q is not registered for %s: if it has another name now, replay the letter with --to NAME; "+
		"if nobody is to handle it, discard it", handler, eventType)
}

// parkedBehind is the failure of an event that waits in the dead letters.
func parkedBehind(handler string, first uuid.UUID) deadletter.Failure {
	now := time.Now().UTC()
	return deadletter.Failure{
		Reason:  fmt.Sprintf("parked behind event %s of its aggregate: replay them in order", first),
		Handler: handler, FirstFailed: now, LastFailed: now,
	}
}
