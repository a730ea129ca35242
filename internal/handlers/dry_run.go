package handlers

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// dryRunAttempts is how many attempts a handler has when other writers cause conflicts.
const dryRunAttempts = 5

// Verdict says what would become of a dead letter if it were replayed now.
type Verdict string

// The verdicts.
const (
	WouldPass  Verdict = "would pass"
	WouldFail  Verdict = "would fail"
	CannotTell Verdict = "cannot tell"
)

// Outcome is the result of the dry run of one letter.
type Outcome struct {
	Letter  deadletter.Letter
	Verdict Verdict
	// Reason is the error that the letter would fail with, without what it quotes of the event; or why it cannot be told;
	// or why it would pass without a handler's doing. Else it is "".
	Reason string
}

// DryStore is a store with transactions for dry runs. Both stores are one.
type DryStore interface {
	Try(ctx context.Context, do func(context.Context, *store.DryRun) error) error
}

// DryRunConfig says how a [DryRun] works.
type DryRunConfig struct {
	// HandlerTimeout bounds one attempt of one handler.
	HandlerTimeout time.Duration
	// MaxMessage is the most bytes of a message that a worker with these settings parses.
	MaxMessage int
	// AllHandlers runs all handlers of the letter's event, and not only the one that failed.
	AllHandlers bool
}

// DryRun find out whether dead letters would pass, by running the handlers on them in transactions that are rolled back.
// What a handler does by its store, the follow-up events that it returns and the SQL that it registers are undone; other
// effects are not, so handlers that have them must say so: see [OutsideEffects].
type DryRun struct {
	store    DryStore
	handlers []handler
	config   DryRunConfig
}

// NewDryRun returns a dry run with the handlers of a registry. The error names all that is wrong with the registrations.
func NewDryRun(s DryStore, reg *Registry, c DryRunConfig, logger *slog.Logger) (*DryRun, error) {
	all, err := reg.checked(logger)
	return &DryRun{store: s, handlers: all, config: c}, err
}

// Run runs the handlers of letters, and yields the outcome of each: aggregate by aggregate, and within one in the order in
// which the letters are given. The letters of an aggregate share a transaction: a later one finds what an earlier one that
// passes has done. The transactions are short, as other writers wait for them: a letter for which [store.DryRunLimit] leaves
// no time is [CannotTell]. No transaction is open while an outcome is yielded.
//
// An error ends the run: the store does not work, or ctx is done. Only one Run at a time.
func (d *DryRun) Run(ctx context.Context, letters []deadletter.Letter) iter.Seq2[Outcome, error] {
	return func(yield func(Outcome, error) bool) {
		for _, group := range byAggregate(letters) {
			outcomes, err := d.runGroup(ctx, group)
			for _, o := range outcomes {
				if !yield(o, nil) {
					return
				}
			}
			if err != nil {
				yield(Outcome{}, fmt.Errorf("try dead letters: %w", err))
				return
			}
		}
	}
}

// byAggregate groups letters by the aggregate of their events, in the order of the first of each.
func byAggregate(letters []deadletter.Letter) [][]deadletter.Letter {
	var groups [][]deadletter.Letter
	index := make(map[uuid.UUID]int)
	for _, l := range letters {
		i, found := index[l.Event.AggregateID]
		if !found || l.Event.AggregateID == uuid.Nil {
			i = len(groups)
			index[l.Event.AggregateID] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], l)
	}
	return groups
}

// runGroup runs the letters of one aggregate. An error at the first of them is that of a store that does not work; later
// ones may come from the transaction.
func (d *DryRun) runGroup(ctx context.Context, group []deadletter.Letter) (outcomes []Outcome, err error) {
	err = d.store.Try(ctx, func(ctx context.Context, opened *store.DryRun) error {
		running := &aggregateRun{DryRun: opened, of: d}
		for i, l := range group {
			o, err := running.letter(ctx, l)
			if err != nil && (i == 0 || ctx.Err() != nil) {
				return err
			}
			if err != nil {
				running.over = "the dry run of its aggregate was ended: " + err.Error()
				o = Outcome{l, CannotTell, deadletter.CutReason(running.over)}
			}
			outcomes = append(outcomes, o)
		}
		return nil
	})
	return outcomes, err
}

// aggregateRun is the dry run of the letters of one aggregate, in one transaction.
type aggregateRun struct {
	*store.DryRun

	of *DryRun

	deadline time.Time // from the first write on
	over     string    // why it has ended
}

// letter runs the handlers of one letter. The error is the store's.
func (r *aggregateRun) letter(ctx context.Context, l deadletter.Letter) (Outcome, error) {
	if r.over != "" {
		return Outcome{l, CannotTell, deadletter.CutReason(r.over)}, nil
	}
	if len(l.Body) > r.of.config.MaxMessage {
		return Outcome{l, CannotTell, fmt.Sprintf("the body has %d bytes: a worker's --max-message decides", len(l.Body))}, nil
	}
	e, err := events.Parse(l.Body)
	if err != nil {
		return Outcome{l, WouldFail, deadletter.CutReason(err.Error())}, nil
	}
	wanted := l.Handler
	if r.of.config.AllHandlers {
		wanted = ""
	}
	chosen, names := choose(r.of.handlers, e, wanted)
	switch {
	case len(chosen) == 0 && wanted != "":
		return Outcome{l, WouldFail, notRegistered(wanted, e.Type).Error()}, nil
	case len(chosen) == 0:
		return Outcome{l, WouldPass, "no handler is registered for " + e.Type}, nil
	}
	handled, err := r.Handled(ctx, e)
	if errors.Is(err, store.ErrContradiction) {
		return Outcome{l, WouldFail, err.Error()}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	parked, err := r.Parked(ctx, e, names)
	if err != nil {
		return Outcome{}, err
	}

	reasons := map[Verdict][]string{}
	for _, h := range chosen {
		verdict, reason := WouldPass, ""
		if first, waits := parked[h.name]; slices.Contains(handled, h.name) {
			reason = "already handled"
		} else if waits {
			verdict, reason = WouldFail, parkedBehind(h.name, first).Reason
		} else if verdict, reason, err = r.handler(ctx, h, e); err != nil {
			return Outcome{}, err
		}
		if wanted == "" && reason != "" {
			reason = h.name + ": " + reason
		}
		reasons[verdict] = append(reasons[verdict], reason)
	}
	for _, verdict := range []Verdict{WouldFail, CannotTell} {
		if len(reasons[verdict]) > 0 {
			return Outcome{l, verdict, deadletter.CutReason(strings.Join(reasons[verdict], "; "))}, nil
		}
	}
	return Outcome{l, WouldPass, strings.Join(slices.DeleteFunc(reasons[WouldPass], func(s string) bool { return s == "" }), "; ")}, nil
}

// handler gives one handler its attempts. The error is the store's.
func (r *aggregateRun) handler(ctx context.Context, h handler, e events.Event) (Verdict, string, error) {
	if slices.Contains(h.options, OutsideEffects) {
		return CannotTell, "the handler declares outside effects", nil
	}
	for attempt := 1; ; attempt++ {
		err := r.Savepoint(ctx, func(ctx context.Context) error { return r.attempt(ctx, h, e) })
		switch {
		case err == nil:
			return WouldPass, "", nil
		case ctx.Err() != nil:
			return "", "", ctx.Err()
		case !r.deadline.IsZero() && time.Now().After(r.deadline):
			r.over = fmt.Sprintf("the dry run was ended after %s, as other writers wait for it: choose fewer letters", store.DryRunLimit)
			return CannotTell, r.over, nil
		case errors.Is(err, store.ErrUnavailable) && !IsPermanent(err):
			return "", "", err
		case !errors.Is(err, events.ErrConflict) || IsPermanent(err) || attempt == dryRunAttempts:
			return WouldFail, err.Error(), nil
		}
	}
}

// attempt is an attempt as that of a [Dispatcher], but that no outage is waited out.
func (r *aggregateRun) attempt(ctx context.Context, h handler, e events.Event) error {
	ctx, cancel := r.bound(withStreams(r.Attempt(events.NewContext(ctx, e)), r))
	defer cancel()
	return h.attempt(ctx, e, r.of.config.HandlerTimeout, func(ctx context.Context, followUps []events.Event) error {
		if r.deadline.IsZero() {
			r.deadline = time.Now().Add(store.DryRunLimit)
		}
		ctx, cancel := r.bound(ctx)
		defer cancel()
		err := r.Record(ctx, h.name, e, followUps)
		if errors.Is(err, store.ErrHandled) {
			return nil
		}
		return faultOfInbox(ctx, err)
	})
}

// bound limits ctx to the time for which other writers may have to wait.
func (r *aggregateRun) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if r.deadline.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, r.deadline)
}
