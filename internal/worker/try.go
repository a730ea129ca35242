package worker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
)

// maxTried is the most bytes of the bodies of one dry run. All are in memory, as letters of one aggregate may be anywhere
// among the others.
const maxTried = 256 << 20

// TryOptions are what [Settings.TryDeadLetters] needs besides the settings.
type TryOptions struct {
	// Register registers the handlers.
	Register func(*handlers.Registry)
	// AllHandlers tries each letter with all handlers of its event, and not only with the one that failed.
	AllHandlers bool
	// By is who tries; it is recorded before the first letter is tried.
	By     audit.Actor
	Logger *slog.Logger
}

// TryDeadLetters yields whether the dead letters that f chooses would pass if they were replayed now; see
// [handlers.DryRun]. It reads the letters first, and leaves queue and store as they are.
func (s Settings) TryDeadLetters(ctx context.Context, f deadletter.Filter, o TryOptions) iter.Seq2[handlers.Outcome, error] {
	return func(yield func(handlers.Outcome, error) bool) {
		going := true
		err := s.tryDeadLetters(ctx, f, o, func(outcome handlers.Outcome) bool {
			going = yield(outcome, nil)
			return going
		})
		if err != nil && going {
			yield(handlers.Outcome{}, err)
		}
	}
}

func (s Settings) tryDeadLetters(
	ctx context.Context, f deadletter.Filter, o TryOptions, yield func(handlers.Outcome) bool,
) (err error) {
	b, err := s.OpenExisting(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	letters, others, err := s.readDeadLetters(ctx, deadletter.NewTable(b.SQL()), f)
	if err != nil {
		return err
	}
	if n := len(letters) + len(others); n > 0 {
		if err := audit.NewLog(b.SQL()).Record(ctx, o.By.Did(audit.Try, f.Subject(), n)); err != nil {
			return err
		}
	}
	for _, outcome := range others {
		if !yield(outcome) {
			return nil
		}
	}
	dryRun, err := handlers.NewDryRun(b, s.Registry(o.Register), handlers.DryRunConfig{
		HandlerTimeout: s.Tuning.HandlerTimeout, MaxMessage: s.Tuning.MaxMessage, AllHandlers: o.AllHandlers,
	}, o.Logger)
	if err != nil {
		return err
	}
	for outcome, err := range dryRun.Run(ctx, letters) {
		if err != nil {
			return err
		}
		if !yield(outcome) {
			return nil
		}
	}
	return nil
}

// ofAnother says that a letter is of another service, whose handlers are not here; "" if it is not.
func (s Settings) ofAnother(l deadletter.Letter) string {
	switch service, known := amqp.ServiceOf(l); {
	case !known || service == s.AMQP.Service:
		return ""
	case service == "":
		return "it is of a worker that has no service name"
	default:
		return "it is of service " + service
	}
}

// readDeadLetters reads letters with their bodies, and the outcomes of those of other services.
func (s Settings) readDeadLetters(
	ctx context.Context, table *deadletter.Table, f deadletter.Filter,
) (letters []deadletter.Letter, others []handlers.Outcome, err error) {
	size := 0
	for l, err := range table.Read(ctx, f) {
		if err != nil {
			return nil, nil, err
		}
		other := s.ofAnother(l)
		l.Raw, l.Headers, l.Event.Data, l.Event.Metadata = nil, nil, nil, nil // a dry run reads the body
		if other != "" {
			l.Body = nil
			others = append(others, handlers.Outcome{Letter: l, Verdict: handlers.CannotTell, Reason: other + ": try it there"})
			continue
		}
		if size += len(l.Body); size > maxTried {
			return nil, nil, fmt.Errorf("the dead letters have more than %d MiB: choose fewer of them", maxTried>>20)
		}
		letters = append(letters, l)
	}
	return letters, others, nil
}
