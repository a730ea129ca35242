package events_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

// streams keeps events in memory, with optimistic locking.
type streams struct {
	events []events.Event
	// appendErrors are returned, one a call, instead of appending.
	appendErrors []error
	readError    error
	appends      int
}

func (s *streams) AppendMany(_ context.Context, batch []events.Event) error {
	s.appends++
	if len(s.appendErrors) > 0 {
		err := s.appendErrors[0]
		s.appendErrors = s.appendErrors[1:]
		return err
	}
	for _, e := range batch {
		if slices.ContainsFunc(s.events, func(other events.Event) bool {
			return other.AggregateID == e.AggregateID && other.AggregateVersion == e.AggregateVersion
		}) {
			return events.ErrConflict
		}
	}
	s.events = append(s.events, batch...)
	return nil
}

func (s *streams) Stream(_ context.Context, kind string, id uuid.UUID, after int) iter.Seq2[events.Event, error] {
	var found []events.Event
	for _, e := range s.events {
		if e.AggregateType == kind && e.AggregateID == id && e.AggregateVersion > after {
			found = append(found, e)
		}
	}
	return each(found, s.readError)
}

func deposit(amount int) func(*account) error {
	return func(a *account) error { return events.Raise(a, deposited{Amount: amount}) }
}

func TestRepository(t *testing.T) {
	t.Parallel()
	s, id, origin := &streams{}, uuid.New(), originOf(t)
	accounts := events.NewRepository(s, newAccount)

	_, err := accounts.Load(t.Context(), origin, id)
	require.ErrorIs(t, err, events.ErrNotFound)

	a := newAccount()
	require.NoError(t, events.Begin(a, id, origin))
	require.NoError(t, deposit(5)(a))
	require.NoError(t, deposit(2)(a))
	require.NoError(t, accounts.Save(t.Context(), a))
	require.Empty(t, a.Uncommitted())
	require.NoError(t, accounts.Save(t.Context(), a), "nothing to save")
	require.Equal(t, 1, s.appends)

	next := events.Origin{TenantID: origin.TenantID, CorrelationID: uuid.New()}
	a, err = accounts.Load(t.Context(), next, id)
	require.NoError(t, err)
	require.Equal(t, 2, a.Version())
	require.Equal(t, 7, a.balance)
	require.NoError(t, deposit(1)(a))
	require.NoError(t, accounts.Save(t.Context(), a))
	require.Equal(t, next.CorrelationID, s.events[2].CorrelationID)
	require.Equal(t, 3, s.events[2].AggregateVersion)
}

func TestRepositoryKeepsTenantsApart(t *testing.T) {
	t.Parallel()
	s, id, origin := &streams{}, uuid.New(), originOf(t)
	accounts := events.NewRepository(s, newAccount)
	_, err := accounts.Execute(t.Context(), origin, id, deposit(5))
	require.NoError(t, err)
	origin.TenantID = uuid.New()

	a, err := accounts.Load(t.Context(), origin, id)
	require.ErrorIs(t, err, events.ErrOtherTenant)
	require.Nil(t, a, "the other tenant's state")
	never := func(*account) error { return errors.New("ran") }
	a, err = accounts.Execute(t.Context(), origin, id, never)
	require.ErrorIs(t, err, events.ErrOtherTenant)
	require.Nil(t, a)
	_, err = accounts.Decide(t.Context(), origin, id, never)
	require.ErrorIs(t, err, events.ErrOtherTenant)
}

func TestSaveOfAnAggregateThatMovedOn(t *testing.T) {
	t.Parallel()
	s, id, origin := &streams{}, uuid.New(), originOf(t)
	accounts := events.NewRepository(s, newAccount)
	_, err := accounts.Execute(t.Context(), origin, id, deposit(5))
	require.NoError(t, err)
	a, err := accounts.Load(t.Context(), origin, id)
	require.NoError(t, err)
	_, err = accounts.Execute(t.Context(), origin, id, deposit(1))
	require.NoError(t, err)

	require.NoError(t, deposit(2)(a))
	err = accounts.Save(t.Context(), a)
	require.ErrorIs(t, err, events.ErrConflict)
	require.ErrorContains(t, err, "save Account "+id.String())
	require.Len(t, a.Uncommitted(), 1)
	require.Len(t, s.events, 2)
}

func TestExecute(t *testing.T) {
	t.Parallel()
	s, id, origin := &streams{}, uuid.New(), originOf(t)
	accounts := events.NewRepository(s, newAccount)
	a, err := accounts.Execute(t.Context(), origin, id, deposit(5))
	require.NoError(t, err)
	require.Equal(t, 1, a.Version())
	a, err = accounts.Execute(t.Context(), origin, id, deposit(2))
	require.NoError(t, err)
	require.Equal(t, 7, a.balance)
	require.Empty(t, a.Uncommitted())

	_, err = accounts.Execute(t.Context(), origin, id, func(*account) error { return nil })
	require.NoError(t, err, "a command that raises nothing")
	require.Equal(t, 2, s.appends)

	refused := errors.New("refused")
	_, err = accounts.Execute(t.Context(), origin, id, func(a *account) error {
		require.NoError(t, deposit(1)(a))
		return refused
	})
	require.Equal(t, refused, err, "as it is")
	require.Len(t, s.events, 2)
}

func TestExecuteRunsAgainOnAConflict(t *testing.T) {
	t.Parallel()
	s, id, origin := &streams{}, uuid.New(), originOf(t)
	accounts := events.NewRepository(s, newAccount)
	var found []int
	a, err := accounts.Execute(t.Context(), origin, id, func(a *account) error {
		found = append(found, a.balance)
		if len(found) <= 2 { // somebody else is faster
			_, err := accounts.Execute(t.Context(), origin, id, deposit(10))
			require.NoError(t, err)
		}
		return deposit(1)(a)
	})
	require.NoError(t, err)
	require.Equal(t, []int{0, 10, 20}, found, "each attempt sees the winner's events")
	require.Equal(t, 21, a.balance)
	require.Equal(t, 3, a.Version())
	require.Len(t, s.events, 3)
}

func TestExecuteGivesUp(t *testing.T) {
	t.Parallel()
	away := errors.New("the store is away")
	for name, test := range map[string]struct {
		appendErrors []error
		want         error
		attempts     int
	}{
		"after five conflicts": {slices.Repeat([]error{events.ErrConflict}, 9), events.ErrConflict, 5},
		"at another error":     {[]error{events.ErrConflict, away}, away, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &streams{appendErrors: test.appendErrors}
			_, err := events.NewRepository(s, newAccount).Execute(t.Context(), originOf(t), uuid.New(), deposit(1))
			require.ErrorIs(t, err, test.want)
			require.Equal(t, test.attempts, s.appends)
			require.Empty(t, s.events)
		})
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	s, id, cause := &streams{}, uuid.New(), parsed(t, nil)
	accounts := events.NewRepository(s, newAccount)
	origin := events.CausedBy(cause)
	_, err := accounts.Execute(t.Context(), origin, id, deposit(5))
	require.NoError(t, err)

	raised, err := accounts.Decide(t.Context(), origin, id, deposit(2))
	require.NoError(t, err)
	require.Len(t, raised, 1)
	require.Equal(t, 2, raised[0].AggregateVersion)
	require.Equal(t, cause.ID, raised[0].CausationID.UUID)
	require.Len(t, s.events, 1, "nothing is saved")

	refused := errors.New("refused")
	raised, err = accounts.Decide(t.Context(), origin, id, func(*account) error { return refused })
	require.Equal(t, refused, err)
	require.Empty(t, raised)
}

func TestRepositoryReturnsTheErrorOfTheStore(t *testing.T) {
	t.Parallel()
	s := &streams{readError: errors.New("the store is away")}
	accounts := events.NewRepository(s, newAccount)
	_, err := accounts.Load(t.Context(), originOf(t), uuid.New())
	require.ErrorIs(t, err, s.readError)
	_, err = accounts.Execute(t.Context(), originOf(t), uuid.New(), deposit(1))
	require.ErrorIs(t, err, s.readError)
	require.Zero(t, s.appends)
}
