package postgres

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// lanePatience is how long a statement keeps its lane. Others need not wait for what hangs.
	lanePatience = 200 * time.Millisecond
	// maxRegroup is the longest wait for those who rode together before.
	maxRegroup = 5 * time.Millisecond
)

// lane lets concurrent calls share statements, and makes none wait that is alone: while a statement is under way, those
// who come queue up, and when it has ended, the first of them runs the next for all who may share it. There is no
// goroutine behind it.
type lane[U any] struct {
	// run runs a statement for all units, and leaves in each what became of it. The error is that of all.
	run func(ctx context.Context, units []U) error
	// sharing returns what tells of one unit after another whether it may share the statement with the first.
	sharing func(first U) (may func(next U) bool)
	// regroups is for statements that cost much even when they do little. Those who shared one mostly come again at
	// once, a little one after another; the first then waits for as many, for no longer than a quarter of the time that
	// it took.
	regroups bool

	mu      sync.Mutex
	busy    bool
	waiting []*rider[U]
	// riders is how many shared the last statement, and until when as many are waited for.
	riders   int
	until    time.Time
	complete chan struct{} // closed when so many wait, if somebody wants to know
}

// rider is a call on a lane.
type rider[U any] struct {
	ctx  context.Context //nolint:containedctx // the call's: whoever runs a statement minds those of all
	unit U
	// signal receives true when the lead has come to the rider, or else false when its statement has ended.
	signal  chan bool
	leads   bool
	company bool
	err     error
}

// do runs the unit, alone or in company, in which case the error may be another's fault. When ctx ends before the turn
// has come, nothing is run and the error is an [unsentError]. Otherwise the outcome is waited for; a statement is
// canceled at once when the caller is alone with it, and else only if it does not end by itself soon after.
func (l *lane[U]) do(ctx context.Context, unit U) (company bool, err error) {
	r := &rider[U]{ctx: ctx, unit: unit, signal: make(chan bool, 1)}
	if l.enter(r) {
		l.lead(ctx, r)
		return r.company, r.err
	}
	select {
	case leads := <-r.signal:
		if leads {
			l.lead(ctx, r)
		}
	case <-ctx.Done():
		if l.leave(r) {
			return false, unsentError{ctx.Err()}
		}
		<-r.signal
	}
	return r.company, r.err
}

// enter tells whether the lane was free and the lead is the rider's.
func (l *lane[U]) enter(r *rider[U]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.busy {
		l.busy = true
		return true
	}
	l.waiting = append(l.waiting, r)
	if l.complete != nil && len(l.waiting)+1 >= l.riders {
		close(l.complete)
		l.complete = nil
	}
	return false
}

// leave tells whether the rider was still waiting, or has just got the lead, which then goes on to the next.
func (l *lane[U]) leave(r *rider[U]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.leads {
		l.handOn()
		return true
	}
	i := slices.Index(l.waiting, r)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return true
}

// handOn gives the lead to the first who waits.
func (l *lane[U]) handOn() {
	if len(l.waiting) == 0 {
		l.busy = false
		return
	}
	next := l.waiting[0]
	l.waiting = l.waiting[1:]
	next.leads = true
	next.signal <- true
}

// lead runs the statement of the rider and of those who may share it.
func (l *lane[U]) lead(ctx context.Context, r *rider[U]) {
	if l.regroups {
		l.regroup(ctx)
	}
	riders := l.take(r)
	units := make([]U, len(riders))
	for i, r := range riders {
		units[i] = r.unit
	}
	shared, release := together(ctx, riders)
	began := time.Now()
	end := sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		now := time.Now()
		l.riders, l.until = len(riders), now.Add(min(now.Sub(began)/4, maxRegroup))
		l.handOn()
	})
	hanging := time.AfterFunc(lanePatience, end)
	err := l.run(shared, units)
	hanging.Stop()
	release()
	end()

	for _, other := range riders {
		other.company, other.err = len(riders) > 1, err
		if other != r {
			other.signal <- false
		}
	}
}

// regroup waits a moment for as many to wait as shared the last statement.
func (l *lane[U]) regroup(ctx context.Context) {
	l.mu.Lock()
	wait := time.Until(l.until)
	if wait <= 0 || len(l.waiting)+1 >= l.riders {
		l.mu.Unlock()
		return
	}
	complete := make(chan struct{})
	l.complete = complete
	l.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-complete:
	case <-timer.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	l.complete = nil
	l.mu.Unlock()
}

// take takes those from among the waiting who may share the rider's statement.
func (l *lane[U]) take(r *rider[U]) []*rider[U] {
	l.mu.Lock()
	defer l.mu.Unlock()
	riders := []*rider[U]{r}
	if len(l.waiting) == 0 {
		return riders
	}
	may := l.sharing(r.unit)
	l.waiting = slices.DeleteFunc(l.waiting, func(next *rider[U]) bool {
		if !may(next.unit) {
			return false
		}
		riders = append(riders, next)
		return true
	})
	return riders
}

// together is the context of a statement that the rider of ctx runs for all. When the context of one of them ends, the
// statement of the others goes on, for as long as it would take to cancel it.
func together[U any](ctx context.Context, riders []*rider[U]) (shared context.Context, release func()) {
	if len(riders) == 1 {
		return ctx, func() {}
	}
	shared, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stops := make([]func() bool, len(riders))
	for i, r := range riders {
		stops[i] = context.AfterFunc(r.ctx, func() { time.AfterFunc(cancelTimeout, cancel) })
	}
	return shared, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}
