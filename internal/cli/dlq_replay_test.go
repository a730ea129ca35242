package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

// mixed are dead letters of five groups, three tenants and 200 aggregates, some of them of other programs.
type mixed struct {
	letters []amqp091.Publishing
	// chosen are the events of the replayed group, in order.
	chosen []wire
}

func mix(n int) mixed {
	var m mixed
	var tenants, aggregates []string
	for range 3 {
		tenants = append(tenants, uuid.NewString())
	}
	for range 200 {
		aggregates = append(aggregates, uuid.NewString())
	}
	versions := map[string]int{}
	for i := range n {
		aggregate := i % len(aggregates)
		e := wire{
			EventID: uuid.NewString(), EventType: "PatientRegistered", AggregateID: aggregates[aggregate],
			TenantID: tenants[aggregate%len(tenants)], CorrelationID: uuid.NewString(),
		}
		versions[e.AggregateID]++
		e.Version = versions[e.AggregateID]
		body := fmt.Sprintf(`{"event_id":%q,"event_type":%q,"aggregate_type":"Patient","aggregate_id":%q,"aggregate_version":%d,`+
			`"tenant_id":%q,"correlation_id":%q,"created_at":"2026-01-02T03:04:05.000Z","event_data":{"name":"P%d"}}`,
			e.EventID, e.EventType, e.AggregateID, e.Version, e.TenantID, e.CorrelationID, i)
		failed := func(handler, reason string) amqp091.Table {
			return amqp091.Table{
				"reason_poisoned": reason, "handler_poisoned": handler, "attempts_poisoned": "4", "dead_letter_id": fmt.Sprintf("L%07d", i),
				"first_failed_at": "2026-01-02T03:04:05.000Z", "last_failed_at": "2026-01-02T03:04:09.000Z",
			}
		}
		p := amqp091.Publishing{DeliveryMode: amqp091.Persistent, Body: []byte(body), MessageId: "M" + strconv.Itoa(i)}
		switch (i / 7) % 5 {
		case 0:
			p.Headers = failed("welcome-patient", fmt.Sprintf("directory answered 503 for %s after %d ms", uuid.New(), i))
			m.chosen = append(m.chosen, e)
		case 1:
			p.Headers = failed("welcome-patient", fmt.Sprintf("timed out after %ds", i%60))
		case 2:
			p.Headers = failed("remind", fmt.Sprintf("no such clinic %q", "Clinic "+strconv.Itoa(i)))
		case 3: // of a consumer that rejects, and tells nothing
			p.Headers = amqp091.Table{"x-death": []any{amqp091.Table{
				"queue": "billing", "reason": "rejected", "count": int64(1), "time": time.Unix(1_767_300_000, 0),
			}}}
		default: // of nobody knows whom
			p.Body = fmt.Appendf(nil, "\x00\xff%d", i)
			p.Headers = amqp091.Table{"n": int16(7), "when": time.Unix(1_767_300_000, 0), "deep": amqp091.Table{"a": []any{true, nil}}}
		}
		m.letters = append(m.letters, p)
	}
	return m
}

// publish publishes the letters to the queue.
func (m mixed) publish(t *testing.T, url string) {
	t.Helper()
	conn, err := amqp091.Dial(url)
	require.NoError(t, err)
	defer conn.Close()
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.Confirm(false))
	var confirms []*amqp091.DeferredConfirmation
	for _, p := range m.letters {
		c, err := ch.PublishWithDeferredConfirm("healz.events.dlx", "failed", true, false, p)
		require.NoError(t, err)
		if confirms = append(confirms, c); len(confirms) == 1000 {
			confirms[0].Wait()
			confirms = confirms[1:]
		}
	}
	for _, c := range confirms {
		require.True(t, c.Wait())
	}
}

// LETTERS sets another number of letters: 50 000 take some minutes.
func numberOfLetters(t *testing.T) int {
	t.Helper()
	n := 1500
	if text := os.Getenv("LETTERS"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	return n
}

// A replay of one group is killed and resumed while a worker consumes and new letters arrive: the events of the group take
// effect once and in the order of each aggregate, and all other letters stay waiting.
func TestAReplayOfOneGroupIsKilledAndResumed(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	w := p.start()
	m := mix(numberOfLetters(t))
	m.publish(t, strings.TrimPrefix(p.env[1], "RABBITMQ_URL="))
	long := func(args ...string) result {
		ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
		defer cancel()
		c := p.command(ctx, "", args...)
		var out, errOut strings.Builder
		c.Stdout, c.Stderr = &out, &errOut
		_ = c.Run() // the code tells
		return result{c.ProcessState.ExitCode(), out.String(), errOut.String()}
	}
	list := func() []letter {
		r := long("dlq", "list", "--letters", "--format", "json")
		require.Equal(t, 0, r.code, r.err)
		return decodeLines[letter](t, r.out)
	}
	require.Eventually(t, func() bool { return len(list()) == len(m.letters) }, 10*patience, commandTick, "the worker takes them in")
	began := time.Now()
	groups := decodeLines[groupLine](t, long("dlq", "list", "--format", "json").out)
	t.Logf("%d letters: groups in %s", len(m.letters), time.Since(began))
	require.Len(t, groups, 5)
	var group groupLine
	for _, g := range groups {
		if strings.HasPrefix(g.Pattern, "directory") {
			group = g
		}
	}
	require.Equal(t, "directory answered N for ID after N ms", group.Pattern)
	require.Equal(t, len(m.chosen), group.Count)
	require.Len(t, group.Tenants, 3)
	before := list()
	require.Len(t, before, len(m.letters))

	f := p.follow("dlq", "list", "--letters", "--format", "json")
	f.kill()
	require.Equal(t, before, list(), "a list that is killed changes nothing")

	p.append(registration(uuid.NewString(), `{"name":""}`, "")) // it fails meanwhile
	f = p.follow("dlq", "replay", "--group", group.Group, "--parallel", "50", "--format", "json")
	require.Eventually(t, func() bool { return strings.Count(f.out.String(), `"step":"handled"`) > len(m.chosen)/4 }, 10*patience, time.Millisecond)
	f.kill()
	first := f.out.String()
	_, rest, _ := strings.Cut(first, `"replay_id":"`)
	replayID := rest[:26]
	began = time.Now()
	r := long("dlq", "replay", "--group", group.Group, "--resume", replayID, "--format", "json")
	require.Equal(t, 0, r.code, r.err)
	t.Logf("the rest of %d replayed in %s: %s", len(m.chosen), time.Since(began), r.err)

	db, err := pgx.Connect(t.Context(), strings.TrimPrefix(p.env[0], "DATABASE_URL="))
	require.NoError(t, err)
	defer db.Close(context.WithoutCancel(t.Context()))
	var effects []string
	require.Eventually(t, func() bool { // what the killed replay has released is handled, too
		rows, err := db.Query(t.Context(), "SELECT causation_id::text FROM events WHERE event_type = 'WelcomeMessageRequested' ORDER BY id")
		require.NoError(t, err)
		effects, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return len(effects) >= len(m.chosen)
	}, patience, tick)
	require.Len(t, effects, len(m.chosen), "each takes effect once")
	versions, byEvent := map[string]int{}, map[string]wire{}
	for _, e := range m.chosen {
		byEvent[e.EventID] = e
	}
	for _, id := range effects {
		e, chosen := byEvent[id]
		require.True(t, chosen, "event %s was not chosen", id)
		require.Less(t, versions[e.AggregateID], e.Version, "aggregate %s is out of order", e.AggregateID)
		versions[e.AggregateID] = e.Version
	}

	require.Eventually(t, func() bool { return len(list()) == len(before)-len(m.chosen)+1 }, patience, commandTick)
	want := slices.DeleteFunc(slices.Clone(before), func(l letter) bool { return strings.HasPrefix(l.Reason, "directory") })
	after := list()
	require.Equal(t, want, after[:len(want)], "the others are untouched, in order")
	require.Len(t, after, len(want)+1)
	require.Equal(t, "patient has no name", after[len(want)].Reason)
	w.stop()
}

// The letter of a renamed handler is replayed to its new name.
func TestAReplayToAHandlerOfAnotherName(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		w := p.start()
		tenant := uuid.NewString()
		e := p.append(fmt.Sprintf(`{"event_type":"Mendable","aggregate_type":"Car","aggregate_id":%q,"tenant_id":%q,"event_data":{"mode":"gone"}}`,
			uuid.NewString(), tenant))[0]
		p.awaitLetters(2)
		p.must("", "dlq", "discard", "--handler", "mend", "--reason", "the other is to be handled")
		letter := p.awaitLetters(1)[0]
		require.Equal(t, "gone", letter.Handler)
		w.stop()
		next := newProgram(t, append(p.env, asMended+"=1")...)
		next.start()

		r := next.run("", "dlq", "replay", letter.ID)
		require.Equal(t, 0, r.code, r.err)
		require.Contains(t, r.err, "1 failed again")
		failed := p.awaitLetters(1)[0]
		require.Equal(t, []string{letter.ID, "gone"}, []string{failed.ID, failed.Handler}, "a letter keeps its id and its handler")
		require.Contains(t, failed.Reason, `handler "gone" is not registered for Mendable`)
		r = next.run("", "dlq", "replay", letter.ID, "--to", "gone")
		require.Equal(t, 2, r.code)
		require.Contains(t, r.err, `no handler has the name "gone"`)
		require.Equal(t, failed, p.awaitLetters(1)[0])

		r = next.run("", "dlq", "replay", letter.ID, "--to", "mend")
		require.Equal(t, 0, r.code, r.out+r.err)
		require.Contains(t, r.err, "1 of 1 replayed, 1 handled, 0 failed again")
		require.Equal(t, []string{e.EventID}, p.causesOf(tenant, "Mended"))
		require.Empty(t, p.letters())
		shown := p.must("", "dlq", "show", letter.ID)
		require.Regexp(t, `state +handled\n`, shown)
		require.Regexp(t, `handler +mend\n`, shown)
		require.Contains(t, shown, `from handler "gone" to "mend"`)
	})
}

// kill ends the command like a crash.
func (f *following) kill() {
	f.t.Helper()
	require.NoError(f.t, f.process.Kill())
	<-f.done
}
