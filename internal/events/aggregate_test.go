package events_test

import (
	"errors"
	"iter"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

// account is an aggregate that counts what it applies.
type account struct {
	events.Root

	balance int
	applied []string
}

type (
	deposited struct{ Amount int }
	renamed   struct{}
	broken    struct{}
)

func (deposited) EventType() string { return "Deposited" }
func (renamed) EventType() string   { return "Renamed" }
func (broken) EventType() string    { return "Broken" }

var errBroken = errors.New("cannot be understood")

func newAccount() *account { return &account{} }

func (a *account) AggregateType() string { return "Account" }

func (a *account) Apply(e events.Event) error {
	switch e.Type {
	case "Deposited":
		d, err := events.DataOf[deposited](e)
		if err != nil {
			return err
		}
		a.balance += d.Amount
	case "Broken":
		return errBroken
	}
	a.applied = append(a.applied, e.Type)
	return nil
}

func begun(t *testing.T) *account {
	t.Helper()
	a := newAccount()
	require.NoError(t, events.Begin(a, uuid.New(), originOf(t)))
	return a
}

// history is what an aggregate that raised data leaves behind.
func history(t *testing.T, data ...events.Data) []events.Event {
	t.Helper()
	a := begun(t)
	for _, d := range data {
		require.NoError(t, events.Raise(a, d))
	}
	return a.Uncommitted()
}

// each yields the events, then err if there is one.
func each(history []events.Event, err error) iter.Seq2[events.Event, error] {
	return func(yield func(events.Event, error) bool) {
		for _, e := range history {
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(events.Event{}, err)
		}
	}
}

func TestRaise(t *testing.T) {
	t.Parallel()
	a, id, origin := newAccount(), uuid.New(), originOf(t)
	require.Zero(t, a.Version())
	require.NoError(t, events.Begin(a, id, origin))
	require.Zero(t, a.Version())
	require.Equal(t, id, a.ID())
	require.Equal(t, origin.TenantID, a.TenantID())

	require.NoError(t, events.Raise(a, deposited{Amount: 5}))
	require.NoError(t, events.Raise(a, renamed{}))
	require.NoError(t, events.Raise(a, deposited{Amount: 2}))

	require.Equal(t, 3, a.Version())
	require.Equal(t, 7, a.balance)
	raised := a.Uncommitted()
	require.Len(t, raised, 3)
	for i, e := range raised {
		require.NoError(t, e.Validate())
		require.Equal(t, []string{"Deposited", "Renamed", "Deposited"}[i], e.Type)
		require.Equal(t, i+1, e.AggregateVersion)
		require.Equal(t, "Account", e.AggregateType)
		require.Equal(t, id, e.AggregateID)
		require.Equal(t, origin, events.Origin{
			TenantID: e.TenantID, ClinicID: e.ClinicID, UserID: e.UserID,
			CorrelationID: e.CorrelationID, CausationID: e.CausationID,
		})
	}

	a.ClearUncommitted()
	require.Empty(t, a.Uncommitted())
	require.Equal(t, 3, a.Version())
}

func TestUncommittedIsACopy(t *testing.T) {
	t.Parallel()
	a := begun(t)
	require.Empty(t, a.Uncommitted())
	require.NoError(t, events.Raise(a, renamed{}))
	copied := a.Uncommitted()
	copied[0].Type = "Other"
	_ = append(copied, events.Event{})
	require.NoError(t, events.Raise(a, renamed{}))
	require.Len(t, copied, 1)
	require.Equal(t, "Renamed", a.Uncommitted()[0].Type)
	require.Equal(t, 2, a.Uncommitted()[1].AggregateVersion)
}

func TestEventsOfAnUnnamedChainAreOfOneChain(t *testing.T) {
	t.Parallel()
	a := newAccount()
	require.NoError(t, events.Load(a, each(history(t, renamed{}), nil)))
	require.NoError(t, events.Raise(a, renamed{}))
	require.NoError(t, events.Raise(a, renamed{}))
	raised := a.Uncommitted()
	require.Equal(t, raised[0].CorrelationID, raised[1].CorrelationID)
}

func TestRaiseThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		begin func(*testing.T) *account
		data  events.Data
		check func(*testing.T, error)
	}{
		"Apply fails": {begun, broken{}, func(t *testing.T, err error) {
			t.Helper()
			require.ErrorIs(t, err, errBroken)
			require.ErrorContains(t, err, "raise Broken: apply: ")
		}},
		"data the store cannot hold": {begun, strange{"Deposited", secret + "\x00"}, func(t *testing.T, err error) {
			t.Helper()
			requireInvalid(t, err, "event_data")
		}},
		"an aggregate that has not begun": {
			func(*testing.T) *account { return newAccount() }, renamed{}, func(t *testing.T, err error) {
				t.Helper()
				requireInvalid(t, err, "aggregate_id", "tenant_id")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := test.begin(t)
			test.check(t, events.Raise(a, test.data))
			require.Zero(t, a.Version())
			require.Empty(t, a.Uncommitted())
			require.Empty(t, a.applied)
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	past := history(t, deposited{Amount: 5}, renamed{}, deposited{Amount: 2})
	a := newAccount()
	require.NoError(t, events.Load(a, each(past, nil)))
	require.Equal(t, 3, a.Version())
	require.Equal(t, past[0].AggregateID, a.ID())
	require.Equal(t, past[0].TenantID, a.TenantID())
	require.Equal(t, 7, a.balance)
	require.Empty(t, a.Uncommitted())

	require.NoError(t, events.Load(newAccount(), each(nil, nil)), "no history")

	more := past[2]
	more.AggregateVersion = 4
	require.NoError(t, events.Load(a, each([]events.Event{more}, nil)), "the rest of a history")
	require.Equal(t, 4, a.Version())
	require.Equal(t, 9, a.balance)
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	gone := errors.New("the store is away")
	for name, test := range map[string]struct {
		spoil func(past []events.Event) ([]events.Event, error)
		want  error
		text  string
		// version is how far the load came.
		version int
	}{
		"an error of the history": {
			func(past []events.Event) ([]events.Event, error) { return past[:2], gone },
			gone, "load Account: the store is away", 2,
		},
		"another kind of aggregate": {func(past []events.Event) ([]events.Event, error) {
			past[1].AggregateType = "Patient"
			return past, nil
		}, nil, "is of a Patient", 1},
		"another aggregate": {func(past []events.Event) ([]events.Event, error) {
			past[1].AggregateID = uuid.New()
			return past, nil
		}, nil, "event", 1},
		"another tenant": {func(past []events.Event) ([]events.Event, error) {
			past[2].TenantID = uuid.New()
			return past, nil
		}, events.ErrOtherTenant, "belongs to another tenant", 2},
		"no beginning": {
			func(past []events.Event) ([]events.Event, error) { return past[1:], nil }, nil, "version 2 follows version 0", 0,
		},
		"a gap": {func(past []events.Event) ([]events.Event, error) {
			return []events.Event{past[0], past[2]}, nil
		}, nil, "version 3 follows version 1", 1},
		"the same twice": {func(past []events.Event) ([]events.Event, error) {
			return []events.Event{past[0], past[0]}, nil
		}, nil, "version 1 follows version 1", 1},
		"newest first": {func(past []events.Event) ([]events.Event, error) {
			return []events.Event{past[2], past[1], past[0]}, nil
		}, nil, "version 3 follows version 0", 0},
		"an event that cannot be applied": {func(past []events.Event) ([]events.Event, error) {
			past[1].Type = "Broken"
			return past, nil
		}, errBroken, "apply version 2: cannot be understood", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			past, err := test.spoil(history(t, deposited{Amount: 5}, renamed{}, deposited{Amount: 2}))
			a := newAccount()
			err = events.Load(a, each(past, err))
			require.ErrorContains(t, err, test.text)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			}
			require.Equal(t, test.version, a.Version())
		})
	}
}

func TestBeginOnALoadedAggregate(t *testing.T) {
	t.Parallel()
	past := history(t, renamed{})
	loaded := func(t *testing.T) *account {
		t.Helper()
		a := newAccount()
		require.NoError(t, events.Load(a, each(past, nil)))
		return a
	}

	a := loaded(t)
	origin := events.Origin{TenantID: a.TenantID(), CorrelationID: uuid.New()}
	require.NoError(t, events.Begin(a, a.ID(), origin))
	require.NoError(t, events.Raise(a, renamed{}))
	require.Equal(t, 2, a.Version())
	require.Equal(t, origin.CorrelationID, a.Uncommitted()[0].CorrelationID)

	a = loaded(t)
	require.ErrorContains(t, events.Begin(a, uuid.New(), origin), "it already is "+past[0].AggregateID.String())
	require.ErrorIs(t, events.Begin(a, a.ID(), events.Origin{TenantID: uuid.New()}), events.ErrOtherTenant)
	require.Equal(t, past[0].AggregateID, a.ID())
	require.Equal(t, past[0].TenantID, a.TenantID())
}
