package cli

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Events after a dead letter of their aggregate are parked, even after a crash of the worker, and are replayed in order.
// Other aggregates continue.
func TestWhatFollowsADeadLetterIsParked(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		args := []string{"--after-dead-letter", "park", "--retry-attempts", "2", "--retry-initial", "1ms"}
		w := p.start(append(args, "--chaos")...)
		tenant, patient := uuid.NewString(), uuid.NewString()
		var sent []string
		register := func(metadata string) wire {
			e := p.append(fmt.Sprintf(`{"event_type":"PatientRegistered","aggregate_type":"Patient","aggregate_id":%q,"tenant_id":%q,`+
				`"event_data":{"name":"Ana"},"metadata":%s}`, patient, tenant, metadata))[0]
			sent = append(sent, e.EventID)
			return e
		}
		register(`{"fail_times":9}`)
		register("{}")
		register("{}")
		p.awaitLetters(3)
		other := p.append(registration(uuid.NewString(), `{"name":"Ben"}`, ""))[0]
		p.awaitFollowUp(other, "WelcomeMessageRequested")
		w.kill()

		register("{}")
		p.start(args...)
		letters := p.awaitLetters(4)
		require.Equal(t, "chaos: failure 2 of 9", letters[0].Reason)
		for i, l := range letters {
			require.Equal(t, sent[i], l.EventID)
			if i > 0 {
				require.Contains(t, l.Reason, "parked behind event "+sent[0])
				require.Zero(t, l.Attempts)
			}
		}
		require.Empty(t, p.welcomed(tenant))

		p.must("", "dlq", "replay", "--id", letters[2].ID)
		require.Eventually(t, func() bool {
			letters := p.letters()
			return len(letters) == 4 && letters[3].EventID == sent[2]
		}, patience, commandTick, "what would overtake is parked again")

		require.Eventually(t, func() bool {
			p.must("", "dlq", "replay", "--all") // more than once, as the letters are no longer in order
			return len(p.welcomed(tenant)) == len(sent)
		}, patience, commandTick)
		p.awaitFollowUp(register("{}"), "WelcomeMessageRequested")
		require.Equal(t, sent, p.welcomed(tenant))
		require.Empty(t, p.letters())
	})
}

// After a purge no event is parked.
func TestPurgeUnparks(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		p.start("--after-dead-letter", "park")
		tenant, patient := uuid.NewString(), uuid.NewString()
		register := func(name string) wire {
			return p.append(fmt.Sprintf(`{"event_type":"PatientRegistered","aggregate_type":"Patient","aggregate_id":%q,"tenant_id":%q,`+
				`"event_data":{"name":%q}}`, patient, tenant, name))[0]
		}
		register("")
		register("Ana")
		p.awaitLetters(2)
		require.Contains(t, p.must("", "dlq", "purge", "--yes"), "purged: 2")
		p.awaitFollowUp(register("Ana"), "WelcomeMessageRequested")
	})
}

// welcomed are the ids of the handled events of a tenant, in the order of handling.
func (p *program) welcomed(tenant string) []string {
	p.t.Helper()
	var ids []string
	for _, e := range decodeLines[wire](p.t, p.must("", "events", "--tenant", tenant, "--format", "json")) {
		if e.EventType == "WelcomeMessageRequested" {
			ids = append(ids, e.CausationID)
		}
	}
	slices.Reverse(ids) // the newest was the first
	return ids
}
