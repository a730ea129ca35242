package postgres

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// statement is a run of a lane, which ends when it is told how.
type statement struct {
	ctx   context.Context //nolint:containedctx // what the test is about
	units []int
	end   chan error
}

// outcome is what became of a call.
type outcome struct {
	company bool
	err     error
}

// traffic is a lane of which a test has each statement in its hand.
type traffic struct {
	lane[int]
	statements chan statement
	calls      sync.WaitGroup
}

func newTraffic(t *testing.T) *traffic {
	t.Helper()
	tr := &traffic{statements: make(chan statement)}
	tr.run = func(ctx context.Context, units []int) error {
		s := statement{ctx, units, make(chan error)}
		tr.statements <- s
		return <-s.end
	}
	tr.sharing = func(first int) func(int) bool { return func(next int) bool { return next/10 == first/10 } }
	t.Cleanup(func() {
		tr.calls.Wait()
		require.False(t, tr.busy)
		require.Empty(t, tr.waiting)
	})
	return tr
}

// call calls, and returns when the call has come to a statement, or waits.
func (tr *traffic) call(ctx context.Context, unit int) <-chan outcome {
	done := make(chan outcome, 1)
	tr.calls.Go(func() {
		company, err := tr.do(ctx, unit)
		done <- outcome{company, err}
	})
	synctest.Wait()
	return done
}

func TestLaneIsSharedByThoseWhoComeMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		first := tr.call(t.Context(), 1)
		alone := <-tr.statements
		require.Equal(t, []int{1}, alone.units, "nobody waits for company")
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

func TestLaneWaitsForThoseWhoRodeTogether(t *testing.T) {
	t.Parallel()
	const took = 4 * time.Millisecond
	// ride returns a lane on which two have just shared a statement.
	ride := func(t *testing.T) *traffic {
		t.Helper()
		tr := newTraffic(t)
		tr.regroups = true
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
	t.Run("the last to come ends the wait", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := ride(t)
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
	t.Run("for a quarter of the time", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := ride(t)
			began := time.Now()
			one := tr.call(t.Context(), 4)
			alone := <-tr.statements
			require.Equal(t, took/4, time.Since(began))
			alone.end <- nil
			<-one

			tr.call(t.Context(), 5)
			alone = <-tr.statements
			require.Equal(t, took/4, time.Since(began), "who was alone is not waited for")
			alone.end <- nil
		})
	})
	t.Run("not when it was long ago", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			tr := ride(t)
			time.Sleep(took) //nolint:forbidigo // the bubble's time
			began := time.Now()
			tr.call(t.Context(), 4)
			alone := <-tr.statements
			require.Zero(t, time.Since(began))
			alone.end <- nil
		})
	})
}

func TestLaneIsFreeAgainWhenAStatementHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraffic(t)
		began := time.Now()
		first := tr.call(t.Context(), 1)
		hanging := <-tr.statements
		second := tr.call(t.Context(), 2)
		next := <-tr.statements
		require.Equal(t, lanePatience, time.Since(began))
		next.end <- nil
		require.NoError(t, (<-second).err)
		hanging.end <- nil
		require.NoError(t, (<-first).err)
	})
}

func TestLaneIsLeftByThoseWhoseContextEnds(t *testing.T) {
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

// Of those whose contexts have ended when the lead comes to them, some run a statement with that context, which is none,
// and others hand the lead on: nobody is forgotten.
func TestLaneIsHandedOnByThoseWhoLeave(t *testing.T) {
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

func TestLaneAndTheEndOfAContextDuringAStatement(t *testing.T) {
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
			require.Equal(t, outcome{true, nil}, <-one, "the outcome is the true one")
			require.Equal(t, outcome{true, nil}, <-other)
		})
	})
	t.Run("it is canceled when it does not end", func(t *testing.T) {
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
