package cli

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

// If no worker ingests, letters stay in the failed queue until dlq ingest ingests them. The commands print their number.
func TestLettersStayInTheQueueUntilTheyAreIngested(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) *program{
		"Postgres": onServers,
		"SQLite": func(t *testing.T) *program {
			t.Helper()
			p := embedded(t)
			p.env = append(p.env, "RABBITMQ_URL="+testservers.RabbitMQ(t))
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			p.start("--ingest-dead-letters=false")
			const two = "2 dead letters in queue healz.events.failed not ingested yet: `worker dlq ingest`, or a running worker that ingests, does that\n"
			awaitQueued := func() {
				t.Helper()
				require.Eventually(t, func() bool {
					r := p.run("", "dlq", "list")
					require.Equal(t, 0, r.code, r.err)
					require.Empty(t, r.out)
					return strings.HasSuffix(r.err, "no dead letters\n"+two)
				}, patience, commandTick)
			}
			first := p.append(registration(uuid.NewString(), `{"name":""}`, "") + registration(uuid.NewString(), `{"name":""}`, ""))[0]
			awaitQueued()
			r := p.run("", "dlq", "show", first.EventID)
			require.Equal(t, exitNotFound, r.code)
			require.Contains(t, r.err, two)
			r = p.run("", "dlq", "replay", "--all")
			require.Equal(t, 0, r.code)
			require.Contains(t, r.err, two)
			require.Contains(t, r.err, "0 of 0 replayed")

			require.Equal(t, "ingested: 2\n", p.must("", "dlq", "ingest"))
			require.Equal(t, "ingested: 0\n", p.must("", "dlq", "ingest"))
			letters := p.letters()
			require.Len(t, letters, 2)
			r = p.run("", "dlq", "list")
			require.Equal(t, 0, r.code)
			require.Empty(t, r.err, "nothing is left in the queue")

			r = p.run("", "dlq", "replay", "--all", "--patience", "1s")
			require.Equal(t, 0, r.code, r.err)
			require.Contains(t, r.err, "2 with unknown outcome")
			r = p.run("", "dlq", "list")
			require.Equal(t, 0, r.code, r.err)
			require.Empty(t, r.out)
			require.Contains(t, r.err, "being replayed: 2 dead letters (--state replaying)\nno dead letters\n")
			replaying := decodeLines[letterLine](t, p.must("", "dlq", "list", "--state", "replaying,archived", "--letters", "--format", "json"))
			require.Equal(t, []string{"replaying", "replaying"}, []string{replaying[0].State, replaying[1].State})
			awaitQueued()
			require.Equal(t, "ingested: 2\n", p.must("", "dlq", "ingest"))
			again := p.letters()
			require.Len(t, again, 2)
			require.ElementsMatch(t, []string{letters[0].ID, letters[1].ID}, []string{again[0].ID, again[1].ID}, "letters keep their ids")
		})
	}
}
