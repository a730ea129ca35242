package deadletter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// sendAtOnce is the most letters that a [Sender] gets at a time.
	sendAtOnce = 200
	// firstLook and lastLook bound the time between two looks for outcomes, which grows while there are none.
	firstLook = 10 * time.Millisecond
	lastLook  = 200 * time.Millisecond
)

// Sender is what a [Run] needs of a queue.
type Sender interface {
	// Send sends letters in their order. It returns, for each, nil once it is safe and has left the queue, or why it is
	// kept. On an error it is not certain which were sent.
	Send(ctx context.Context, letters []Letter) (kept []error, err error)
	// Outcomes tells which of the letters were handled, by their ids, and which letters have come back since the last
	// call. The letters are in the order in which they were sent; it need not look at all of them.
	Outcomes(ctx context.Context, sent []Letter) (handled []string, back []Letter, err error)
	// Traceable tells whether it can become known that the letter was handled.
	Traceable(l Letter) bool
}

// Run is a replay under way, which is alike on all queues: it sends at the rate and as many at once as it is told,
// follows what becomes of the letters, and shows each step. It belongs to one goroutine.
type Run struct {
	options ReplayOptions
	sender  Sender
	yield   func(Progress, error) bool

	p     Progress
	batch []Letter
	// sent are the letters that may come back, and order those of them whose handling will be known, oldest first.
	sent  map[string]*flight
	order []*flight

	begun        time.Time
	offered      int
	look         time.Duration
	looked, news time.Time
}

// flight is a letter on its way.
type flight struct {
	letter    Letter
	traceable bool
	landed    bool
}

// errStopped says that nobody wants to see more.
var errStopped = errors.New("the replay is no longer watched")

// NewRun begins a replay of so many letters. The options are checked.
func NewRun(o ReplayOptions, s Sender, chosen int, yield func(Progress, error) bool) (*Run, error) {
	now := time.Now()
	r := &Run{
		options: o, sender: s, yield: yield, sent: map[string]*flight{}, begun: now, looked: now, news: now, look: firstLook,
		p: Progress{ReplayID: o.Resume, Counts: Counts{Chosen: chosen}},
	}
	return r, r.step(Begun, Letter{}, nil)
}

// Offer sends a letter, if not at once then with the next ones. It waits until it may. The error ends the run; it is to be
// given to [Run.End].
func (r *Run) Offer(ctx context.Context, l Letter) error {
	if r.options.DryRun {
		r.p.Sent++
		return r.step(Sent, l, nil)
	}
	if err := r.await(ctx, func() bool { return r.flying()+len(r.batch) < r.most() }); err != nil {
		return err
	}
	if err := r.keepPace(ctx); err != nil {
		return err
	}
	r.offered++
	r.batch = append(r.batch, l)
	if len(r.batch) == sendAtOnce {
		return r.Flush(ctx)
	}
	return nil
}

// Flush sends what was offered and waits to be sent with the next.
func (r *Run) Flush(ctx context.Context) error {
	if len(r.batch) == 0 {
		return nil
	}
	batch := r.batch
	r.batch = nil
	kept, err := r.sender.Send(ctx, batch)
	if err != nil {
		return err
	}
	for i, l := range batch {
		if kept[i] != nil {
			r.p.Kept++
			err = r.step(Kept, l, kept[i])
		} else {
			r.fly(l)
			err = r.step(Sent, l, nil)
		}
		if err != nil {
			return err
		}
	}
	r.news = time.Now()
	if time.Since(r.looked) < r.look {
		return nil
	}
	return r.outcomes(ctx)
}

func (r *Run) fly(l Letter) {
	r.p.Sent++
	f := &flight{letter: l.light(), traceable: r.sender.Traceable(l)}
	r.sent[l.ID] = f
	if f.traceable {
		r.order = append(r.order, f)
		return
	}
	f.letter = Letter{}
	r.p.Unknown++
}

func (r *Run) flying() int { return r.p.InFlight() }

// most is how many letters may be on their way at once. They begin with as many as would end the run if all failed again,
// and become more with each that is handled: of a mistake not yet mended no more letters have to fail than it takes to see it.
func (r *Run) most() int {
	if r.options.MaxFailures < 0 || r.options.Patience == 0 {
		return r.options.Parallel
	}
	return min(r.options.Parallel, r.options.MaxFailures+1-r.p.FailedAgain+r.p.Handled)
}

// await looks for outcomes until there is room. It gives up when there were none for too long.
func (r *Run) await(ctx context.Context, room func() bool) error {
	if room() {
		return nil
	}
	if err := r.Flush(ctx); err != nil {
		return err
	}
	for !room() {
		if r.options.Patience > 0 && time.Since(r.news) > r.options.Patience {
			return ErrNoOutcome
		}
		if err := r.pause(ctx, r.look); err != nil {
			return err
		}
		if err := r.outcomes(ctx); err != nil {
			return err
		}
	}
	return nil
}

// keepPace waits until the next letter is due, and looks for outcomes meanwhile.
func (r *Run) keepPace(ctx context.Context) error {
	if r.options.Rate == 0 {
		return nil
	}
	due := r.begun.Add(time.Duration(float64(r.offered) / r.options.Rate * float64(time.Second)))
	for wait := time.Until(due); wait > 0; wait = time.Until(due) {
		if err := r.Flush(ctx); err != nil {
			return err
		}
		if err := r.pause(ctx, min(wait, lastLook)); err != nil {
			return err
		}
		if err := r.outcomes(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *Run) pause(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// outcomes looks what has become of the letters that are on their way.
func (r *Run) outcomes(ctx context.Context) error {
	letters := make([]Letter, len(r.order))
	for i, f := range r.order {
		letters[i] = f.letter
	}
	handled, back, err := r.sender.Outcomes(ctx, letters)
	r.looked = time.Now()
	if err != nil {
		return err
	}
	if r.look = min(2*r.look, lastLook); len(handled)+len(back) > 0 {
		r.look, r.news = firstLook, r.looked
	}
	for _, l := range back { // first: a letter that is gone and has come back was not handled
		if err := r.cameBack(l); err != nil {
			return err
		}
	}
	for _, id := range handled {
		if f := r.sent[id]; f != nil && f.traceable {
			r.land(id)
			r.p.Handled++
			if err := r.step(Handled, f.letter, nil); err != nil {
				return err
			}
		}
	}
	r.order = slices.DeleteFunc(r.order, func(f *flight) bool { return f.landed })
	if r.options.MaxFailures >= 0 && r.p.FailedAgain > r.options.MaxFailures {
		return fmt.Errorf("%w: %d", ErrTooManyFailures, r.p.FailedAgain)
	}
	return nil
}

func (r *Run) cameBack(l Letter) error {
	f := r.sent[l.ReplayOf]
	if f == nil || l.ReplayID != r.options.Resume {
		return nil // it was sent by another, or before it was resumed
	}
	r.land(l.ReplayOf)
	r.p.FailedAgain++
	if !f.traceable {
		r.p.Unknown--
	}
	return r.step(FailedAgain, l, nil)
}

func (r *Run) land(id string) {
	r.sent[id].landed = true
	delete(r.sent, id)
}

func (r *Run) step(s Step, l Letter, problem error) error {
	r.p.Step, r.p.Letter, r.p.Problem = s, l, problem
	if !r.yield(r.p, nil) {
		return errStopped
	}
	return nil
}

// Finish sends what is left, waits for the outcomes as long as it is told, and shows that the run is done. The error is to
// be given to [Run.End].
func (r *Run) Finish(ctx context.Context) error {
	if r.options.DryRun {
		return r.step(Done, Letter{}, nil)
	}
	if err := r.Flush(ctx); err != nil {
		return err
	}
	err := r.outcomes(ctx)
	if err == nil && r.options.Patience > 0 {
		err = r.await(ctx, func() bool { return r.flying() == 0 })
	}
	if err != nil && !errors.Is(err, ErrNoOutcome) {
		return err
	}
	return r.step(Done, Letter{}, nil)
}

// End shows the error that ended the run, if there is one to be shown.
func (r *Run) End(err error) {
	if err != nil && !errors.Is(err, errStopped) {
		r.p.Step, r.p.Letter, r.p.Problem = "", Letter{}, nil
		r.yield(r.p, err)
	}
}
