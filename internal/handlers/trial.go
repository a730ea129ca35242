package handlers

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// trialAttempts is how often a handler is tried when other writers get in its way.
const trialAttempts = 5

// Verdict says what would become of a dead letter if it were replayed now.
type Verdict string

// The verdicts.
const (
	WouldPass  Verdict = "would pass"
	WouldFail  Verdict = "would fail"
	CannotTell Verdict = "cannot tell"
)

// Outcome is what came of the trial of one letter.
type Outcome struct {
	Letter  deadletter.Letter
	Verdict Verdict
	// Reason is the error that the letter would fail with, without what it quotes of the event; or why it cannot be told;
	// or why it would pass without a handler's doing. Else it is "".
	Reason string
}

// Tried is a store in which handlers can be tried. Both stores are one.
type Tried interface {
	Try(ctx context.Context, do func(context.Context, *store.DryRun) error) error
}

// TrialConfig says how letters are tried.
type TrialConfig struct {
	// HandlerTimeout bounds one try of one handler.
	HandlerTimeout time.Duration
	// MaxMessage is the size from which on a worker that is set up like this one does not look into a message.
	MaxMessage int
	// AllHandlers tries a letter with all handlers of its event, and not only with the one that failed.
	AllHandlers bool
}

// Trials find out whether dead letters would pass, by running the handlers on them in transactions that are rolled back.
// What a handler does by its store, the follow-up events that it returns and the SQL that it registers are undone; other
// effects are not, so handlers that have them must say so: see [OutsideEffects].
type Trials struct {
	store    Tried
	stage    *stage
	handlers []handler
	config   TrialConfig
}

// NewTrials returns the trials of the handlers that register registers; streams is for those that load aggregates. The
// error names all that is wrong with the registrations.
func NewTrials(
	s Tried, register func(reg *Registry, streams events.Streams), c TrialConfig, logger *slog.Logger,
) (*Trials, error) {
	t := &Trials{store: s, stage: &stage{}, config: c}
	reg := &Registry{}
	register(reg, t.stage)
	var err error
	t.handlers, err = reg.checked(logger)
	return t, err
}

// Try tries letters, and yields the outcome of each: aggregate by aggregate, and in the order in which the letters are
// given within one. The letters of an aggregate share a trial: a later one finds what an earlier one that passes has done.
// Trials are short, for the sake of others (see [store.DryRun]): for letters to which [store.DryRunLimit] leaves no time it
// cannot be told. None is under way while an outcome is yielded.
//
// An error ends it: the store does not work, or ctx is done. Only one Try runs at a time.
func (t *Trials) Try(ctx context.Context, letters []deadletter.Letter) iter.Seq2[Outcome, error] {
	return func(yield func(Outcome, error) bool) {
		for _, group := range byAggregate(letters) {
			outcomes, err := t.tryGroup(ctx, group)
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
	places := make(map[uuid.UUID]int)
	for _, l := range letters {
		place, found := places[l.Event.AggregateID]
		if !found || l.Event.AggregateID == uuid.Nil {
			place = len(groups)
			places[l.Event.AggregateID] = place
			groups = append(groups, nil)
		}
		groups[place] = append(groups[place], l)
	}
	return groups
}

// tryGroup tries the letters of one aggregate. An error at the first of them is that of a store that does not work; later
// ones may come of the trial's own transaction.
func (t *Trials) tryGroup(ctx context.Context, group []deadletter.Letter) (outcomes []Outcome, err error) {
	err = t.store.Try(ctx, func(ctx context.Context, opened *store.DryRun) error {
		t.stage.set(opened)
		running := &trial{DryRun: opened, Trials: t}
		for i, l := range group {
			o, err := running.try(ctx, l)
			if err != nil && (i == 0 || ctx.Err() != nil) {
				return err
			}
			if err != nil {
				running.over = "the trial of its aggregate was cut off: " + err.Error()
				o = Outcome{l, CannotTell, deadletter.CutReason(running.over)}
			}
			outcomes = append(outcomes, o)
		}
		return nil
	})
	return outcomes, err
}

// trial is one that is under way.
type trial struct {
	*store.DryRun
	*Trials

	deadline time.Time // from the first write on
	over     string    // why it does not go on
}

// try tries one letter. The error is the store's.
func (t *trial) try(ctx context.Context, l deadletter.Letter) (Outcome, error) {
	if t.over != "" {
		return Outcome{l, CannotTell, deadletter.CutReason(t.over)}, nil
	}
	if len(l.Body) > t.config.MaxMessage {
		return Outcome{l, CannotTell, fmt.Sprintf("the body has %d bytes: a worker's --max-message decides", len(l.Body))}, nil
	}
	e, err := events.Parse(l.Body)
	if err != nil {
		return Outcome{l, WouldFail, deadletter.CutReason(err.Error())}, nil
	}
	wanted := l.Handler
	if t.config.AllHandlers {
		wanted = ""
	}
	chosen, names := choose(t.handlers, e, wanted)
	switch {
	case len(chosen) == 0 && wanted != "":
		return Outcome{l, WouldFail, notRegistered(wanted, e.Type).Error()}, nil
	case len(chosen) == 0:
		return Outcome{l, WouldPass, "no handler is registered for " + e.Type}, nil
	}
	handled, err := t.Handled(ctx, e)
	if errors.Is(err, store.ErrContradiction) {
		return Outcome{l, WouldFail, err.Error()}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	parked, err := t.Parked(ctx, e, names)
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
		} else if verdict, reason, err = t.tryHandler(ctx, h, e); err != nil {
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

// tryHandler tries one handler. The error is the store's.
func (t *trial) tryHandler(ctx context.Context, h handler, e events.Event) (Verdict, string, error) {
	if slices.Contains(h.options, OutsideEffects) {
		return CannotTell, "the handler declares outside effects", nil
	}
	for attempt := 1; ; attempt++ {
		err := t.Savepoint(ctx, func(ctx context.Context) error { return t.run(ctx, h, e) })
		switch {
		case err == nil:
			return WouldPass, "", nil
		case ctx.Err() != nil:
			return "", "", ctx.Err()
		case !t.deadline.IsZero() && time.Now().After(t.deadline):
			t.over = fmt.Sprintf("its trial was over after %s, for the sake of others: try fewer letters", store.DryRunLimit)
			return CannotTell, t.over, nil
		case errors.Is(err, store.ErrUnavailable) && !IsPermanent(err):
			return "", "", err
		case !errors.Is(err, events.ErrConflict) || IsPermanent(err) || attempt == trialAttempts:
			return WouldFail, err.Error(), nil
		}
	}
}

// run is an attempt as that of a [Dispatcher], but that no outage is waited out.
func (t *trial) run(ctx context.Context, h handler, e events.Event) error {
	ctx, cancel := t.bound(t.Attempt(events.NewContext(ctx, e)))
	defer cancel()
	return h.attempt(ctx, e, t.config.HandlerTimeout, func(ctx context.Context, followUps []events.Event) error {
		if t.deadline.IsZero() {
			t.deadline = time.Now().Add(store.DryRunLimit)
		}
		ctx, cancel := t.bound(ctx)
		defer cancel()
		err := t.Record(ctx, h.name, e, followUps)
		if errors.Is(err, store.ErrHandled) {
			return nil
		}
		return faultOfInbox(ctx, err)
	})
}

// bound lets nobody wait for longer than the trial's limit.
func (t *trial) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if t.deadline.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, t.deadline)
}

// stage is what handlers load aggregates from: the trial that is under way, and after it one that is over.
type stage struct {
	mu    sync.Mutex
	trial *store.DryRun
}

func (s *stage) set(trial *store.DryRun) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trial = trial
}

func (s *stage) get() (*store.DryRun, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trial == nil {
		return nil, store.ErrDryRunOver
	}
	return s.trial, nil
}

// AppendMany implements [events.Streams].
func (s *stage) AppendMany(ctx context.Context, batch []events.Event) error {
	trial, err := s.get()
	if err != nil {
		return err
	}
	return trial.AppendMany(ctx, batch)
}

// Stream implements [events.Streams].
func (s *stage) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	trial, err := s.get()
	if err != nil {
		return func(yield func(events.Event, error) bool) { yield(events.Event{}, err) }
	}
	return trial.Stream(ctx, aggregateType, aggregateID, afterVersion)
}
