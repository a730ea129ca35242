package deadletter

import (
	"context"
	"slices"
	"time"
)

// GiveUp is what a worker does once a minute, at a time.
func (t *Table) GiveUp(ctx context.Context, now time.Time) error { return t.giveUp(ctx, now) }

// Releases reads the letters that a replayer would send next.
func (t *Table) Releases(ctx context.Context) ([]Release, error) {
	letters, _, err := t.releases(ctx)
	return letters, err
}

// Choose returns the ids of the letters of a replay in their order, as SQL and as Go chooses them.
func (t *Table) Choose(ctx context.Context, f Filter, replayID string) (bySQL, byGo []string, err error) {
	fromSQL, err := t.choose(ctx, f, replayID)
	if err != nil {
		return nil, nil, err
	}
	fromGo, err := t.chooseSome(ctx, f, replayID)
	if err != nil {
		return nil, nil, err
	}
	letters, err := t.lettersOf(ctx, slices.Concat(fromSQL, fromGo))
	ids := func(seqs []int64) []string {
		ids := make([]string, len(seqs))
		for i, seq := range seqs {
			ids[i] = letters[seq].ID
		}
		return ids
	}
	return ids(fromSQL), ids(fromGo), err
}

// CountUpTo is Count with another bound.
func (t *Table) CountUpTo(ctx context.Context, most int) (int, error) { return t.countUpTo(ctx, most) }

// GroupsInGo are the groups as Go makes them of a list.
func (t *Table) GroupsInGo(ctx context.Context, f Filter) ([]Group, error) {
	return groupsOf(t.List(ctx, f))
}

// WithinBytes is how many letters with bodies of these sizes are read at once.
func WithinBytes(sizes ...int) int {
	page := make([]row, len(sizes))
	for i, size := range sizes {
		page[i].Bytes = size
	}
	return withinBytes(page)
}

// PageRows is how many letters are listed or changed at once.
const PageRows = pageRows

// Statements are some of the table's, each with its arguments: for lists of the filters, the first page and a later one.
func (t *Table) Statements(filters map[string]Filter) map[string][]any {
	conditions, args := t.conditions(Filter{})
	statements := map[string][]any{
		"groups":   append([]any{groupsStatement(conditions)}, args...),
		"releases": {selectReleases, pageRows},
		"silent":   {selectSilent, t.dialect.at(time.Now().Add(-time.Hour)), t.dialect.at(time.Now().Add(-time.Hour))},
		"settled":  {t.settledStatement(), t.dialect.at(time.Now()), `[["id7","r","h7"],["id8","r","h8"]]`},
		"decided":  {selectDecided + t.dialect.skipLocked(), t.dialect.at(time.Now()), pageRows},
		"unsettled": {
			"SELECT count(*) FROM dead_letters WHERE unsettled IS NOT NULL AND " + t.dialect.in("unsettled"), list(t.dialect, []string{"u50"}),
		},
		"identities": {
			"SELECT seq FROM dead_letters WHERE " + t.dialect.in("id") + " OR " + t.dialect.in("identity") + " ORDER BY seq",
			list(t.dialect, []string{"id7"}), list(t.dialect, []string{"i7"}),
		},
	}
	for name, f := range filters {
		for _, first := range []bool{true, false} {
			statement, args := t.pageStatement(f, first, time.Now().Add(-time.Hour), 7)
			if !first {
				name += ", page"
			}
			statements[name] = append(append([]any{statement}, args...), pageRows)
		}
	}
	for name, s := range statements {
		s[0] = t.dialect.bind(s[0].(string))
		statements[name] = s
	}
	return statements
}
