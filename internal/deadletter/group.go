package deadletter

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Group are the letters of one handler and event type that failed alike.
type Group struct {
	// ID is short, and the same for the same handler, type and pattern everywhere and always.
	ID string
	// Handler and Type are those of its letters; either may be "".
	Handler, Type string
	// Pattern is the reason without what differs from letter to letter.
	Pattern string
	Count   int
	// Tenants are the different tenants of its letters, in order, [MaxTenants] at the most.
	Tenants []uuid.UUID
	// FirstFailed and LastFailed are the earliest and the latest failure.
	FirstFailed, LastFailed time.Time
	// Newest is the reason of the letter that failed last.
	Newest string
	// Replayed is how many of its letters were replayed before, and have failed again.
	Replayed int
}

// MaxTenants bounds [Group.Tenants].
const MaxTenants = 1000

// groupsOf folds letters into groups, the one that failed last first. It holds one letter at a time.
func groupsOf(letters iter.Seq2[Letter, error]) ([]Group, error) {
	found := map[string]*tally{}
	for l, err := range letters {
		if err != nil {
			return nil, err
		}
		t := found[l.Group]
		if t == nil {
			t = &tally{Group: Group{ID: l.Group, FirstFailed: l.FirstFailed}, tenants: map[uuid.UUID]struct{}{}}
			found[l.Group] = t
		}
		one := Group{Count: 1, FirstFailed: l.FirstFailed, LastFailed: l.LastFailed}
		if l.Replays > 0 {
			one.Replayed = 1
		}
		if !l.LastFailed.Before(t.LastFailed) {
			t.Handler, t.Type, t.Newest = l.Handler, l.Type, l.Reason
			_, t.Pattern = Fingerprint(l.Handler, l.Type, l.Reason)
		}
		t.merge(one, l.Event.TenantID)
	}
	return inOrder(found), nil
}

// inOrder are the groups, the one that failed last first.
func inOrder(found map[string]*tally) []Group {
	groups := make([]Group, 0, len(found))
	for _, t := range found {
		for tenant := range t.tenants {
			t.Tenants = append(t.Tenants, tenant)
		}
		slices.SortFunc(t.Tenants, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
		groups = append(groups, t.Group)
	}
	slices.SortFunc(groups, func(a, b Group) int {
		return cmp.Or(b.LastFailed.Compare(a.LastFailed), cmp.Compare(b.Count, a.Count), cmp.Compare(a.ID, b.ID))
	})
	return groups
}

// tally is a group that grows.
type tally struct {
	Group

	tenants map[uuid.UUID]struct{}
}

// merge adds the counts and times of some letters of the group, which are of one tenant or of none.
func (t *tally) merge(some Group, tenant uuid.UUID) {
	t.Count += some.Count
	t.Replayed += some.Replayed
	if tenant != uuid.Nil && len(t.tenants) < MaxTenants {
		t.tenants[tenant] = struct{}{}
	}
	if some.FirstFailed.Before(t.FirstFailed) {
		t.FirstFailed = some.FirstFailed
	}
	if some.LastFailed.After(t.LastFailed) {
		t.LastFailed = some.LastFailed
	}
}
