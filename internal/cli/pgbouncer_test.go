package cli

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

// Everything works through a pooler without any setting: worker, relay, dead letters, commands and doctor.
func TestThroughPGBouncer(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			database := testservers.PGBouncer(t, testservers.Postgres(t), mode)
			p := newProgram(t, "DATABASE_URL="+database)
			p.must("", "migrate", "up")
			w, other := p.start("--chaos", "--retry-initial", "1ms"), p.start("--chaos", "--retry-initial", "1ms")
			tenant := uuid.NewString()
			for range 3 { // the second time prepared statements would exist
				p.awaitFollowUp(p.append(registration(tenant, `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
			}
			failing := p.append(registration(tenant, `{"name":"Ben"}`, `,"metadata":{"fail_times":5}`))[0]
			letter := p.awaitLetters(1)[0]
			p.must("", "dlq", "show", letter.ID)
			p.must("", "dlq", "try")
			p.must("", "dlq", "replay", letter.ID)
			p.awaitFollowUp(failing, "WelcomeMessageRequested")
			require.Empty(t, p.letters())
			p.must("", "trace", failing.CorrelationID)

			examined := p.run("", "doctor")
			require.Less(t, examined.code, 2, examined.out)
			require.Contains(t, examined.out, "a pooler stands before Postgres")
			refused := newProgram(t, "DATABASE_URL="+database+"&search_path=public").run("", "doctor")
			require.Contains(t, refused.out, "ALTER ROLE")
			w.stop()
			other.stop()
			require.NotContains(t, w.log.String()+other.log.String(), "SQLSTATE")
		})
	}
}
