// Package lease elects one leader for each task: the worker that holds the lease of the task, a row in the database that
// expires unless it is renewed.
//
// A leader that is killed is replaced within five seconds, and one that stops within one. The holder renews the lease by
// the clock of the database. It counts the time to live by its own monotonic clock, from before the renewal was sent: so
// it stops before another worker can begin, as long as both clocks run equally fast. A holder that was frozen between two
// instructions may still execute one more; where that matters, the database compares the [store.Fence].
package lease

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/store"
)

const (
	// ttl is how long a lease is held without being renewed.
	ttl = 4 * time.Second
	// renewInterval is how often the holder renews it, and takeInterval how often others try to take it.
	renewInterval = time.Second
	takeInterval  = 500 * time.Millisecond
	// statementTimeout is how long one try may take: after it there is time for another.
	statementTimeout = ttl / 2
)

// ErrPending says that it is not known yet who holds the lease.
var ErrPending = errors.New("it is not known yet who holds the lease")

// errExpired says that the lease was not renewed in time.
var errExpired = errors.New("the lease could not be renewed in time")

// Lease is the lease of one task, for one holder.
type Lease struct {
	tail   *store.Tail
	task   string
	holder string
	yields chan time.Duration

	mu     sync.Mutex
	status Status
	change func()
	until  time.Time   // until when the lease is held
	expiry *time.Timer // ends the status then
}

// Status says who holds a lease.
type Status struct {
	// Fence is that of the holder's period if this is the holder.
	Fence store.Fence
	// Err is nil if this is the holder, [store.ErrNotLeader] if another is, [ErrPending], or why it is not known.
	Err error
	// Changed is closed when another status follows.
	Changed <-chan struct{}
}

// While returns a context that ends with the status.
func (s Status) While(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-s.Changed:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// New returns the lease of a task. It is not taken before [Lease.Run].
func New(tail *store.Tail, task string) *Lease {
	l := &Lease{tail: tail, task: task, holder: uuid.NewString(), yields: make(chan time.Duration)}
	l.set(Status{Err: ErrPending})
	return l
}

// Run takes the lease when it is free, and renews it, until ctx is done. Then it gives it back.
func (l *Lease) Run(ctx context.Context) {
	l.expiry = time.AfterFunc(ttl, l.expire)
	defer l.expiry.Stop()
	defer l.giveBack(ctx)
	for {
		wait := l.try(ctx)
		select {
		case <-ctx.Done():
			return
		case pause := <-l.yields:
			l.giveBack(ctx)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		case <-time.After(wait):
		}
	}
}

// try tries once to take or to renew the lease, and returns when to try again.
func (l *Lease) try(ctx context.Context) time.Duration {
	sent := time.Now()
	// Of a statement that is cancelled it would not be known whether it still follows the one that gives the lease back.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	fence, err := l.tail.TakeLease(ctx, l.task, l.holder, ttl)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		// A fault may have hidden a renewal. What was held is held until it expires.
		if errors.Is(err, store.ErrNotLeader) || !l.holds() {
			l.setLocked(Status{Err: err})
		}
		return takeInterval
	}
	l.until = sent.Add(ttl)
	l.expiry.Reset(time.Until(l.until))
	if l.holds() {
		l.setLocked(Status{Fence: fence})
	}
	return max(0, renewInterval-time.Since(sent))
}

// holds tells whether the lease, as far as it was taken and renewed, has not expired.
func (l *Lease) holds() bool { return time.Now().Before(l.until) }

// expire ends the status of a holder that did not renew the lease in time.
func (l *Lease) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.Err == nil && !l.holds() {
		l.setLocked(Status{Err: errExpired})
	}
}

// Status says who holds the lease now.
func (l *Lease) Status() Status {
	l.expire() // the timer of a process that was frozen comes late
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Held tells whether this is the holder.
func (l *Lease) Held() bool { return l.Status().Err == nil }

// Yield gives the lease back and leaves it to others for a while. [Lease.Run] must be running until ctx is done.
func (l *Lease) Yield(ctx context.Context, pause time.Duration) {
	select {
	case l.yields <- pause:
	case <-ctx.Done():
	}
}

// Do runs work while the lease is held, each time anew, with a context that ends when it no longer is. It returns when
// ctx is done or work has ended by itself. [Lease.Run] must be running.
func (l *Lease) Do(ctx context.Context, work func(ctx context.Context)) {
	l.do(ctx, work, func(err error) bool { return err != nil })
}

// RunUntilTaken is Run, with work that begins when the lease is held and ends when another is known to hold it. While the
// database is unavailable, work goes on: something else has to keep two from doing it at once.
func (l *Lease) RunUntilTaken(ctx context.Context, work func(ctx context.Context)) {
	leasing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer stop() // once work has ended
	running.Go(func() { l.Run(leasing) })
	l.do(ctx, work, func(err error) bool { return errors.Is(err, store.ErrNotLeader) })
}

func (l *Lease) do(ctx context.Context, work func(ctx context.Context), lost func(error) bool) {
	held := func(err error) bool { return err == nil }
	for l.await(ctx, held) {
		working, cancel := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() {
			l.await(working, lost)
			cancel()
		})
		work(working)
		ended := working.Err() == nil
		cancel()
		watching.Wait()
		if ended {
			return
		}
	}
}

// await waits for a status, and tells whether it has come before the end of ctx.
func (l *Lease) await(ctx context.Context, is func(err error) bool) bool {
	for ctx.Err() == nil {
		status := l.Status()
		if is(status.Err) {
			return true
		}
		select {
		case <-ctx.Done():
		case <-status.Changed:
		}
	}
	return false
}

// giveBack ends the status and lets others take the lease at once.
func (l *Lease) giveBack(ctx context.Context) {
	l.mu.Lock()
	held := l.holds()
	l.until = time.Time{}
	l.setLocked(Status{Err: ErrPending})
	l.mu.Unlock()
	if !held {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	_ = l.tail.GiveLease(ctx, l.task, l.holder) // it expires anyway
}

func (l *Lease) set(s Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setLocked(s)
}

// setLocked keeps a status that says the same.
func (l *Lease) setLocked(s Status) {
	old := l.status
	if old.Changed != nil && old.Fence == s.Fence && errors.Is(s.Err, store.ErrNotLeader) == errors.Is(old.Err, store.ErrNotLeader) &&
		(s.Err == nil) == (old.Err == nil) && errors.Is(s.Err, ErrPending) == errors.Is(old.Err, ErrPending) {
		l.status.Err = s.Err
		return
	}
	if l.change != nil {
		l.change()
	}
	changed := make(chan struct{})
	s.Changed, l.change = changed, func() { close(changed) }
	l.status = s
}
