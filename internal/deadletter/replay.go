package deadletter

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/bus"
)

// Destination is to whom a replay sends a letter.
type Destination string

// Destinations of a replay.
const (
	// ToHandler sends a letter to the queue that it comes from, for the handler that failed alone: others succeeded.
	ToHandler Destination = "handler"
	// ToBus publishes its message anew, for all handlers; those that have handled the event pass it over.
	ToBus Destination = "bus"
)

// ReplayOptions say how to replay. The zero value sends all, as fast as it goes, and stops at the first letter that fails
// again while it sends.
type ReplayOptions struct {
	// DryRun sends nothing: each letter that would be is yielded as Sent.
	DryRun bool
	// Rate is the most letters to send in a second; 0: no bound.
	Rate float64
	// Parallel is the most letters that are released and of which the outcome is not known yet; [DefaultParallel] if 0.
	Parallel int
	// To is [ToHandler] if empty.
	To Destination
	// Handler, if it is not "", is the handler that the letters are for from now on: theirs has another name now.
	Handler string
	// MaxFailures is how many letters may fail again: one more ends the replay. Below 0 there is no bound. With Patience
	// the replay begins with so few letters at once that no more can fail, and sends more with each that is handled.
	MaxFailures int
	// Patience is how long to wait for the next outcome, when no more can be sent before; then the replay ends, and the
	// outcomes that are missing stay unknown. 0: it does not wait once all is sent, and for ever before.
	Patience time.Duration
	// By is who replays, and why.
	By audit.Actor
	// Resume is the id of an earlier replay to go on with: what failed again in it is passed over. "" begins a new one.
	Resume string
}

// DefaultParallel is how many letters of a replay are on their way at once.
const DefaultParallel = 1000

// Check says what is out of range, and fills in the defaults, a new replay's id as Resume among them.
func (o ReplayOptions) Check() (ReplayOptions, error) {
	switch o.To {
	case "":
		o.To = ToHandler
	case ToHandler, ToBus:
	default:
		return o, fmt.Errorf("a replay goes to %s or to %s, not to %q", ToHandler, ToBus, o.To)
	}
	if o.Rate < 0 || o.Parallel < 0 || o.Patience < 0 {
		return o, errors.New("rate, parallel and patience of a replay must not be negative")
	}
	if o.Parallel == 0 {
		o.Parallel = DefaultParallel
	}
	if o.Resume == "" {
		o.Resume = ulid.Make().String()
	} else if _, err := ulid.ParseStrict(o.Resume); err != nil {
		return o, fmt.Errorf("%q is no id of a replay", o.Resume)
	}
	return o, nil
}

// Step is what happened in a replay.
type Step string

// Steps of a replay.
const (
	// Begun: the letters have been counted, none is sent.
	Begun Step = "begun"
	// NoWorker: letters are released, and for some seconds no worker has led that would send them, as Problem says. The replay
	// waits for one. It is yielded at most once.
	NoWorker Step = "no worker"
	// Sent: the worker has put its message on the bus, and the bus has it safely.
	Sent Step = "sent"
	// Handled: the handler that had failed has handled it.
	Handled Step = "handled"
	// FailedAgain: it is a dead letter again.
	FailedAgain Step = "failed again"
	// Kept: it could not be sent, as Problem tells, and stays a dead letter.
	Kept Step = "kept"
	// Done: the replay is over. It is the last step of one that was not cut off by an error.
	Done Step = "done"
)

// Progress is one step of a replay, and where it stands then.
type Progress struct {
	// ReplayID is what to resume it by.
	ReplayID string
	Step     Step
	// Letter is the one that the step is about. That of FailedAgain tells the new failure.
	Letter Letter
	// Problem says why the letter was kept, or what the replay waits for.
	Problem error
	Counts
}

// Counts are the letters of a replay. Of those sent, the ones neither handled nor failed again are in flight or their
// outcome is unknown.
type Counts struct {
	Chosen, Sent, Handled, FailedAgain, Kept int
	// Unknown are those of Sent of which it will not become known that they are handled.
	Unknown int
}

// InFlight is how many were sent of which the outcome is still to come.
func (c Counts) InFlight() int { return c.Sent - c.Handled - c.FailedAgain - c.Unknown }

var (
	// ErrTooManyFailures ends a replay in which more than [ReplayOptions.MaxFailures] letters failed again. The others
	// stay dead letters.
	ErrTooManyFailures = errors.New("too many letters failed again")
	// ErrNoOutcome ends a replay of which no outcome came for as long as [ReplayOptions.Patience], before all were sent.
	ErrNoOutcome = errors.New("no outcome came in time")
)

// ReplayHeaders are the headers that a letter's message gets for a replay, besides those that it had before its failure.
func (l Letter) ReplayHeaders(replayID string, to Destination, at time.Time) map[string]string {
	history := l.past().With(Incident{Kind: Replayed, At: at.UTC().Truncate(time.Second), ReplayID: replayID})
	headers := map[string]string{
		ReplayCountKey: strconv.Itoa(l.Replays + 1), ReplayIDKey: replayID, ReplayOfKey: l.ID, HistoryKey: history.Header(),
	}
	if to == ToHandler && l.Handler != "" {
		headers[bus.ReplayHandlerKey] = l.Handler
	}
	return headers
}
