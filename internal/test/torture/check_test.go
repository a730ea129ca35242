package torture

import (
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
)

// traces are those of a small run in which all went well: one event was handled, one failed, one has no handler and was
// published by another program, and one was refused.
type traces struct {
	rows    []row
	dead    letters
	written map[uuid.UUID]entry
	seen    testimony
}

// What the traces name.
const (
	one byte = iota + 1
	two
	three
	four
	follower
	patient
	message
	tenant
	chain
)

func id(n byte) uuid.UUID { return uuid.UUID{15: n} }

func written(event uuid.UUID, version int, f fate, w writer, o outcome) entry {
	return entry{
		event: events.Event{ID: event, AggregateID: id(patient), AggregateVersion: version, TenantID: id(tenant), CorrelationID: id(chain)},
		fate:  f, writer: w, outcome: o,
	}
}

func letterOf(event uuid.UUID, state deadletter.State) []letter {
	return []letter{{Event: event, ID: event.String(), State: state, Reason: "it failed"}}
}

func wellDone() *traces {
	stored := func(event uuid.UUID, version int) row {
		return row{Event: event, Aggregate: id(patient), Version: version, Tenant: id(tenant), Correlation: id(chain)}
	}
	welcome := stored(id(follower), 1)
	welcome.Aggregate, welcome.Cause = id(message), uuid.NullUUID{UUID: id(one), Valid: true}
	return &traces{
		rows: []row{stored(id(one), 1), welcome, stored(id(two), 2)},
		dead: letters{id(two): letterOf(id(two), deadletter.Waiting)},
		written: map[uuid.UUID]entry{
			id(one): written(id(one), 1, handled, byStore, kept), id(two): written(id(two), 2, failing, bySQL, unknown),
			id(three): written(id(three), 1, unhandled, byPublisher, kept), id(four): written(id(four), 3, handled, byCommand, refused),
		},
		seen: testimony{seen: map[uuid.UUID]struct{}{id(one): {}, id(two): {}, id(three): {}, id(follower): {}}},
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	never := func(tr *traces, event uuid.UUID) {
		tr.rows = slices.DeleteFunc(tr.rows, func(r row) bool { return r.Event == event || r.Cause.UUID == event })
	}
	for name, test := range map[string]struct {
		harm                            func(*traces)
		lost, doubled, misordered, rest int
	}{
		"all went well":                         {harm: func(*traces) {}},
		"an appended event is not in the table": {harm: func(tr *traces) { never(tr, id(one)) }, lost: 2},
		"an event never came to the bus":        {harm: func(tr *traces) { delete(tr.seen.seen, id(one)) }, lost: 2},
		"a follow-up never came to the bus":     {harm: func(tr *traces) { delete(tr.seen.seen, id(follower)) }, lost: 1},
		"a confirmed message is gone":           {harm: func(tr *traces) { delete(tr.seen.seen, id(three)) }, lost: 1},
		"an event was not handled":              {harm: func(tr *traces) { tr.rows = slices.Delete(tr.rows, 1, 2) }, lost: 1},
		"a dead letter is gone":                 {harm: func(tr *traces) { clear(tr.dead) }, lost: 1},
		"an event took effect twice":            {harm: func(tr *traces) { tr.rows = append(tr.rows, tr.rows[1]) }, doubled: 1},
		"the bus has an order of its own":       {harm: func(tr *traces) { tr.seen.misordered = []string{"2 before 1"} }, misordered: 1},
		"a refused event is in the table": {harm: func(tr *traces) {
			tr.rows = append(tr.rows, row{Event: id(four)})
			tr.seen.seen[id(four)] = struct{}{}
			tr.written[id(four)] = written(id(four), 3, unhandled, byCommand, refused)
		}, rest: 1},
		"a good event is a dead letter": {harm: func(tr *traces) { tr.dead[id(one)] = letterOf(id(one), deadletter.Waiting) }, rest: 1},
		"a dead letter of nobody's": {harm: func(tr *traces) {
			tr.dead[id(four+100)] = letterOf(id(four+100), deadletter.Waiting)
		}, rest: 1},
		"an unhandled one is a dead letter": {harm: func(tr *traces) { tr.dead[id(three)] = letterOf(id(three), deadletter.Waiting) }, rest: 1},
		"a dead letter is there twice": {harm: func(tr *traces) {
			tr.dead[id(two)] = append(tr.dead[id(two)], tr.dead[id(two)]...)
		}, rest: 1},
		"a dead letter is not done with": {harm: func(tr *traces) { tr.dead[id(two)][0].State = deadletter.Replaying }, lost: 1},
		"an event to be replayed is gone": {harm: func(tr *traces) {
			tr.written[id(two)] = written(id(two), 2, mended, bySQL, unknown)
			clear(tr.dead)
		}, lost: 1},
		"a failing event has effects": {harm: func(tr *traces) { tr.rows[1].Cause.UUID = id(two) }, lost: 1, rest: 1},
		"a chain changes its tenant":  {harm: func(tr *traces) { tr.rows[1].Tenant = uuid.New() }, rest: 1},
		"a chain changes its id":      {harm: func(tr *traces) { tr.rows[1].Correlation = uuid.New() }, rest: 1},
		"a cause that there is not":   {harm: func(tr *traces) { tr.rows[1].Cause.UUID = uuid.New() }, lost: 1, rest: 1},
		"an event of nobody's":        {harm: func(tr *traces) { tr.rows[1].Cause.Valid = false }, lost: 1, rest: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := wellDone()
			test.harm(tr)
			v := judge(tr.rows, tr.dead, tr.written, tr.seen)
			require.Len(t, v.lost, test.lost, "lost: %v", v.lost)
			require.Len(t, v.doubled, test.doubled, "doubled: %v", v.doubled)
			require.Len(t, v.misordered, test.misordered, "misordered: %v", v.misordered)
			require.Len(t, v.other, test.rest, "other: %v", v.other)
		})
	}
}

func TestJudgeCounts(t *testing.T) {
	t.Parallel()
	tr := wellDone()
	v := judge(tr.rows, tr.dead, tr.written, tr.seen)
	require.Equal(t, map[writer]int{byStore: 1, byPublisher: 1}, v.appended)
	require.Equal(t, 2, v.appendedInAll())
	require.Equal(t, 1, v.refused)
	require.Equal(t, 1, v.unknown)
	require.Equal(t, 4, v.delivered)
	require.Equal(t, map[deadletter.State]int{deadletter.Waiting: 1}, v.letters)
	require.Zero(t, v.unmended)
	require.Zero(t, v.handledOrder)
}

func TestAReplayedEventIsHandledAndItsLetterSaysSo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		state    deadletter.State
		handled  bool
		unmended int
	}{
		"all went well":          {deadletter.Settled, true, 0},
		"it waits":               {deadletter.Waiting, false, 1},
		"its letter still waits": {deadletter.Waiting, true, 1},
		"its letter lies":        {deadletter.Settled, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := wellDone()
			tr.written[id(two)] = written(id(two), 2, mended, bySQL, kept)
			tr.dead = letters{id(two): letterOf(id(two), test.state)}
			if test.handled {
				welcome := tr.rows[1]
				welcome.Event, welcome.Cause.UUID = id(follower+100), id(two)
				tr.rows = append(tr.rows, welcome)
				tr.seen.seen[welcome.Event] = struct{}{}
			}
			v := judge(tr.rows, tr.dead, tr.written, tr.seen)
			require.Empty(t, v.lost)
			require.Empty(t, v.other)
			require.Equal(t, test.unmended, v.unmended)
		})
	}
}

func TestHandledOutOfOrder(t *testing.T) {
	t.Parallel()
	tr := wellDone()
	effectOf := func(cause uuid.UUID) row {
		return row{Event: uuid.New(), Cause: uuid.NullUUID{UUID: cause, Valid: true}}
	}
	tr.rows = []row{effectOf(id(two)), effectOf(id(one))}
	require.Equal(t, 1, judge(tr.rows, tr.dead, tr.written, tr.seen).handledOrder)
}

func TestAuthorsOfOneSeedMakeUpTheSame(t *testing.T) {
	t.Parallel()
	tell := func(seed uint64, name string) []entry {
		a := newAuthor(seed, name)
		story := a.some(a.newStream(), 20)
		for i := range story {
			story[i].event.CreatedAt = story[0].event.CreatedAt
		}
		return story
	}
	require.Equal(t, idsIn(tell(1, "a")), idsIn(tell(1, "a")))
	require.NotEqual(t, idsIn(tell(1, "a")), idsIn(tell(1, "b")))
	require.NotEqual(t, idsIn(tell(1, "a")), idsIn(tell(2, "a")))
	for _, e := range tell(3, "valid") {
		require.NoError(t, e.event.Validate())
	}
}

func idsIn(story []entry) []uuid.UUID {
	ids := make([]uuid.UUID, len(story))
	for i, e := range story {
		ids[i] = e.event.ID
	}
	return ids
}
