package postgres

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// statementTimeout is after how long the next batch may start, so that one blocked statement does not hold up everyone.
	statementTimeout = 200 * time.Millisecond
	// maxLinger bounds the wait for the callers of the previous batch.
	maxLinger = 5 * time.Millisecond
)

// batcher combines concurrent calls into one statement (group commit). A single caller does not wait for others, but
// for a moment of [batcher.linger]: calls that arrive while a statement runs are queued and form the next batch. One
// goroutine at a time runs the batches: that of the first caller, for its own batch, and then one that exists while calls
// are queued.
type batcher[U any] struct {
	// execute runs one statement for all units and stores in each its result. The error is that of all.
	execute func(ctx context.Context, units []U) error
	// fitter returns a function that decides, for one unit after the other, whether it fits into the batch of the first.
	fitter func(first U) (fits func(next U) bool)
	// linger is for statements whose fixed cost is high. The callers of a batch mostly call again at once; the next batch
	// waits until as many have arrived, but not longer than a quarter of the time of the last statement.
	linger bool

	mu      sync.Mutex
	running bool
	queue   []*call[U]
	// lastSize is the size of the previous batch, lingerUntil how long as many calls are awaited, and full is closed when
	// they have arrived. It is nil while nothing is awaited.
	lastSize    int
	lingerUntil time.Time
	full        chan struct{}
}

// call is one call of [batcher.do].
type call[U any] struct {
	ctx    context.Context //nolint:containedctx // the caller's: a batch has the contexts of all its callers
	unit   U
	done   chan struct{}
	shared bool
	err    error
}

// errPanicked says that a statement panicked. The calls of its batch count as shared, also a single one: each is then
// executed by its own caller, who meets the panic, if it comes again, where it belongs. Were it not recovered, it would
// end the process, or leave the other callers waiting for ever.
var errPanicked = errors.New("the statement panicked")

// do executes the unit in a batch. If the batch is shared, the error may be caused by another unit. If ctx ends while the
// call is queued, nothing is executed and the error is an [unsentError]. After that do waits for the result: the statement
// of a single caller is canceled at once, a shared one only if it has not ended [cancelTimeout] later.
func (b *batcher[U]) do(ctx context.Context, unit U) (shared bool, err error) {
	c := &call[U]{ctx: ctx, unit: unit, done: make(chan struct{})}
	if b.enqueue(c) {
		if b.runBatch() && !b.idle() {
			go b.run()
		}
		return c.shared, c.err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if b.dequeue(c) {
			return false, unsentError{ctx.Err()}
		}
		<-c.done
	}
	return c.shared, c.err
}

// enqueue reports whether no goroutine runs the batches, which then is up to the caller.
func (b *batcher[U]) enqueue(c *call[U]) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, c)
	if b.full != nil && len(b.queue) >= b.lastSize {
		close(b.full)
		b.full = nil
	}
	first = !b.running
	b.running = true
	return first
}

// dequeue removes a call whose context has ended, and reports whether it was still queued.
func (b *batcher[U]) dequeue(c *call[U]) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, c)
	if i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	return i >= 0
}

// run runs batches until the queue is empty or another goroutine has taken over.
func (b *batcher[U]) run() {
	for !b.idle() && b.runBatch() {
	}
}

// idle reports whether the queue is empty, and then ends the run.
func (b *batcher[U]) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = len(b.queue) > 0
	return !b.running
}

// runBatch executes the next batch. It reports false when the statement has exceeded [statementTimeout], upon which
// another goroutine has taken over.
func (b *batcher[U]) runBatch() bool {
	b.awaitCallers()
	batch := b.next()
	if len(batch) == 0 {
		return true
	}
	began := time.Now()
	takeover := time.AfterFunc(statementTimeout, b.run)
	err := b.recovered(batch)
	runs := takeover.Stop()
	if runs {
		b.ended(len(batch), time.Since(began))
	}
	for _, c := range batch {
		c.shared, c.err = len(batch) > 1 || errors.Is(err, errPanicked), err
		close(c.done)
	}
	return runs
}

// recovered executes a batch. A panic is an error.
func (b *batcher[U]) recovered(batch []*call[U]) (err error) {
	defer func() {
		if recover() != nil {
			err = errPanicked
		}
	}()
	units := make([]U, len(batch))
	for i, c := range batch {
		units[i] = c.unit
	}
	ctx, release := batchContext(batch)
	defer release()
	return b.execute(ctx, units)
}

func (b *batcher[U]) ended(size int, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastSize, b.lingerUntil = size, time.Now().Add(min(took/4, maxLinger))
}

// awaitCallers waits until as many calls are queued as the previous batch had, see [batcher.linger].
func (b *batcher[U]) awaitCallers() {
	b.mu.Lock()
	wait := time.Until(b.lingerUntil)
	if !b.linger || wait <= 0 || len(b.queue) == 0 || len(b.queue) >= b.lastSize {
		b.mu.Unlock()
		return
	}
	full := make(chan struct{})
	b.full = full
	b.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-full:
	case <-timer.C:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.full = nil
}

// next removes the next batch from the queue.
func (b *batcher[U]) next() []*call[U] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return nil
	}
	batch := []*call[U]{b.queue[0]}
	b.queue = b.queue[1:]
	if len(b.queue) == 0 {
		return batch
	}
	var fits func(next U) bool
	if !holds(func() bool { fits = b.fitter(batch[0].unit); return true }) {
		return batch
	}
	b.queue = slices.DeleteFunc(b.queue, func(c *call[U]) bool {
		if !holds(func() bool { return fits(c.unit) }) {
			return false
		}
		batch = append(batch, c)
		return true
	})
	return batch
}

// holds is the value of a condition, false if it panics: a unit that cannot be compared with others is executed alone.
func holds(condition func() bool) (value bool) {
	defer func() { _ = recover() }()
	return condition()
}

// batchContext is the context of a batch's statement. When one of several callers gives up, the statement goes on for the
// others, and is canceled only if it has not ended after [cancelTimeout].
func batchContext[U any](batch []*call[U]) (ctx context.Context, release func()) {
	if len(batch) == 1 {
		return batch[0].ctx, func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(batch[0].ctx))
	stops := make([]func() bool, len(batch))
	for i, c := range batch {
		stops[i] = context.AfterFunc(c.ctx, func() { time.AfterFunc(cancelTimeout, cancel) })
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}
