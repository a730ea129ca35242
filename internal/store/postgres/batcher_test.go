package postgres

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// statement is what a batcher executes; a test decides when and how it ends.
type statement struct {
	ctx   context.Context //nolint:containedctx // what the test is about
	units []int
	end   chan error
}

// outcome is the result of a call.
type outcome struct {
	shared bool
	err    error
}

// traffic is a batcher whose statements a test controls. Units with the same tens fit into one batch.
type traffic struct {
	batcher[int]
	statements chan statement
	calls      sync.WaitGroup
}

func newTraffic(t *testing.T) *traffic {
	t.Helper()
	tr := &traffic{statements: make(chan statement)}
	tr.execute = func(ctx context.Context, units []int) error {
		s := statement{ctx, units, make(chan error)}
		tr.statements <- s
		return <-s.end
	}
	tr.fitter = func(first int) func(int) bool { return func(next int) bool { return next/10 == first/10 } }
	t.Cleanup(func() {
		tr.calls.Wait()
		synctest.Wait()
		require.False(t, tr.running)
		require.Empty(t, tr.queue)
	})
	return tr
}

// call makes a call, and returns once it is executed or queued.
func (tr *traffic) call(ctx context.Context, unit int) <-chan outcome {
	done := make(chan outcome, 1)
	tr.calls.Go(func() {
		shared, err := tr.do(ctx, unit)
		done <- outcome{shared, err}
	})
	synctest.Wait()
	return done
}

func TestCallsDuringAStatementFormTheNextBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		first := tr.call(t.Context(), 1)
		alone := <-tr.statements
		require.Equal(t, []int{1}, alone.units, "a single caller does not wait")
		second, other, third := tr.call(t.Context(), 2), tr.call(t.Context(), 11), tr.call(t.Context(), 3)
		alone.end <- nil
		require.Equal(t, outcome{false, nil}, <-first)

		together := <-tr.statements
		require.Equal(t, []int{2, 3}, together.units)
		fault := errors.New("a fault")
		together.end <- fault
		require.Equal(t, outcome{true, fault}, <-second)
		require.Equal(t, outcome{true, fault}, <-third)

		last := <-tr.statements
		require.Equal(t, []int{11}, last.units)
		last.end <- nil
		require.Equal(t, outcome{false, nil}, <-other)
	})
}

func TestBatcherLingersForTheCallersOfTheLastBatch(t *testing.T) {
	t.Parallel()
	const took = 4 * time.Millisecond
	// afterTwo returns a batcher whose last batch had two calls.
	afterTwo := func(t *testing.T) *traffic {
		t.Helper()
		tr := newTraffic(t)
		tr.linger = true
		tr.call(t.Context(), 1)
		alone := <-tr.statements
		one, other := tr.call(t.Context(), 2), tr.call(t.Context(), 3)
		alone.end <- nil
		together := <-tr.statements
		time.Sleep(took) //nolint:forbidigo // the bubble's time
		together.end <- nil
		<-one
		<-other
		return tr
	}
	t.Run("until as many have arrived", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := afterTwo(t)
			began := time.Now()
			one, other := tr.call(t.Context(), 4), tr.call(t.Context(), 5)
			together := <-tr.statements
			require.Equal(t, []int{4, 5}, together.units)
			require.Zero(t, time.Since(began))
			together.end <- nil
			<-one
			<-other
		})
	})
	t.Run("at most a quarter of the statement's time", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := afterTwo(t)
			began := time.Now()
			one := tr.call(t.Context(), 4)
			alone := <-tr.statements
			require.Equal(t, took/4, time.Since(began))
			alone.end <- nil
			<-one

			tr.call(t.Context(), 5)
			alone = <-tr.statements
			require.Equal(t, took/4, time.Since(began), "a single caller has nobody to wait for")
			alone.end <- nil
		})
	})
	t.Run("not when the batch was long ago", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := afterTwo(t)
			time.Sleep(took) //nolint:forbidigo // the bubble's time
			began := time.Now()
			tr.call(t.Context(), 4)
			alone := <-tr.statements
			require.Zero(t, time.Since(began))
			alone.end <- nil
		})
	})
}

func TestBlockedStatementDoesNotBlockTheNextBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		began := time.Now()
		first := tr.call(t.Context(), 1)
		blocked := <-tr.statements
		second := tr.call(t.Context(), 2)
		next := <-tr.statements
		require.Equal(t, statementTimeout, time.Since(began))
		next.end <- nil
		require.NoError(t, (<-second).err)
		blocked.end <- nil
		require.NoError(t, (<-first).err)
	})
}

func TestQueuedCallEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		first := tr.call(t.Context(), 1)
		running := <-tr.statements
		ctx, cancel := context.WithCancel(t.Context())
		leaving, staying := tr.call(ctx, 2), tr.call(t.Context(), 3)
		cancel()
		left := <-leaving
		require.ErrorIs(t, left.err, context.Canceled)
		require.ErrorAs(t, left.err, new(unsentError))
		running.end <- nil
		<-first

		running = <-tr.statements
		require.Equal(t, []int{3}, running.units)
		running.end <- nil
		require.NoError(t, (<-staying).err)
	})
}

// Calls whose contexts end just when their batch begins are either dequeued or executed with that context. Neither loses
// the calls behind them.
func TestCanceledCallsLoseNoOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		first := tr.call(t.Context(), 1)
		running := <-tr.statements
		ctx, cancel := context.WithCancel(t.Context())
		var leaving []<-chan outcome
		for range 50 {
			leaving = append(leaving, tr.call(ctx, 2))
		}
		staying := tr.call(t.Context(), 13)
		running.end <- nil
		cancel()
		<-first

		for running = range tr.statements {
			running.end <- running.ctx.Err()
			if running.units[0] == 13 {
				break
			}
		}
		require.NoError(t, (<-staying).err)
		for _, left := range leaving {
			if err := (<-left).err; err != nil {
				require.ErrorIs(t, err, context.Canceled)
			}
		}
	})
}

func TestContextEndsDuringAStatement(t *testing.T) {
	t.Parallel()
	// begin returns a statement of two, and their outcomes: that of one whose context can be canceled, and another's.
	begin := func(t *testing.T) (running statement, cancel func(), one, other <-chan outcome) {
		t.Helper()
		tr := newTraffic(t)
		ctx, cancel := context.WithCancel(t.Context())
		first := tr.call(t.Context(), 1)
		running = <-tr.statements
		one, other = tr.call(ctx, 2), tr.call(t.Context(), 3)
		running.end <- nil
		<-first
		return <-tr.statements, cancel, one, other
	}
	t.Run("it goes on for the others", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			running, cancel, one, other := begin(t)
			cancel()
			synctest.Wait()
			require.NoError(t, running.ctx.Err())
			running.end <- nil
			require.Equal(t, outcome{true, nil}, <-one, "the true outcome")
			require.Equal(t, outcome{true, nil}, <-other)
		})
	})
	t.Run("it is canceled when it has not ended in time", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			running, cancel, one, other := begin(t)
			began := time.Now()
			cancel()
			<-running.ctx.Done()
			require.Equal(t, cancelTimeout, time.Since(began))
			running.end <- running.ctx.Err()
			require.Equal(t, outcome{true, context.Canceled}, <-one)
			require.Equal(t, outcome{true, context.Canceled}, <-other)
		})
	})
	t.Run("it is canceled at once when there are no others", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := newTraffic(t)
			ctx, cancel := context.WithCancel(t.Context())
			alone := tr.call(ctx, 1)
			running := <-tr.statements
			began := time.Now()
			cancel()
			<-running.ctx.Done()
			require.Zero(t, time.Since(began))
			running.end <- running.ctx.Err()
			require.Equal(t, outcome{false, context.Canceled}, <-alone)
		})
	})
}

func TestPanicOfAStatement(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		execute := tr.execute
		tr.execute = func(ctx context.Context, units []int) error {
			if slices.Contains(units, 2) {
				panic("a fault")
			}
			return execute(ctx, units)
		}
		require.Equal(t, outcome{true, errPanicked}, <-tr.call(t.Context(), 2))
		first := tr.call(t.Context(), 1)
		running := <-tr.statements
		one, other, behind := tr.call(t.Context(), 2), tr.call(t.Context(), 3), tr.call(t.Context(), 11)
		running.end <- nil
		<-first
		require.Equal(t, outcome{true, errPanicked}, <-one)
		require.Equal(t, outcome{true, errPanicked}, <-other)
		running = <-tr.statements
		require.Equal(t, []int{11}, running.units)
		running.end <- nil
		require.Equal(t, outcome{false, nil}, <-behind)
	})
}

// Row 16 of issue 11: whatever panics, the callers get an answer and the batcher goes on.
func TestPanicAroundAStatement(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(tr *traffic, ctx context.Context) context.Context{
		"fitter of the first call": func(tr *traffic, ctx context.Context) context.Context {
			tr.fitter = func(int) func(int) bool { panic("a fault") }
			return ctx
		},
		"fit of the next call": func(tr *traffic, ctx context.Context) context.Context {
			tr.fitter = func(int) func(int) bool { return func(int) bool { panic("a fault") } }
			return ctx
		},
		"context of a batch": func(_ *traffic, ctx context.Context) context.Context { return brokenContext{ctx} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tr := newTraffic(t)
				ctx := breakIt(tr, t.Context())
				first := tr.call(t.Context(), 1)
				running := <-tr.statements
				var waiting []<-chan outcome
				for unit := range 4 {
					waiting = append(waiting, tr.call(ctx, 2+unit))
				}
				running.end <- nil
				<-first
				var served sync.WaitGroup
				stop := make(chan struct{})
				served.Go(func() {
					for {
						select {
						case s := <-tr.statements:
							s.end <- nil
						case <-stop:
							return
						}
					}
				})
				for _, w := range waiting {
					if err := (<-w).err; err != nil {
						require.Equal(t, errPanicked, err)
					}
				}
				require.NoError(t, (<-tr.call(t.Context(), 21)).err, "it goes on")
				close(stop)
				served.Wait()
			})
		})
	}
}

// brokenContext panics when it is to be shared by a batch.
type brokenContext struct{ context.Context }

func (c brokenContext) Value(key any) any {
	if c.Err() == nil && key != nil {
		panic("a fault")
	}
	return nil
}
