package cli

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestRevealsAndAppendsAreRecorded(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.start()
	name := "Anastasia Nobody"
	sent := p.append(`{"event_type":"Mendable","aggregate_type":"Car","aggregate_id":"` + uuid.NewString() + `","tenant_id":"` + uuid.NewString() +
		`","event_data":{"mode":"first","name":"` + name + `"}}`)
	letter := p.awaitLetters(1)[0]
	type entry struct {
		ID      int64          `json:"id"`
		Action  string         `json:"action"`
		By      string         `json:"by"`
		Source  string         `json:"source"`
		Count   int            `json:"count"`
		Subject map[string]any `json:"subject"`
		Reason  string         `json:"reason"`
	}
	for _, args := range [][]string{
		{"events"},
		{"dlq", "show", letter.ID}, // not recorded: they show no data
		{"events", "--type", "Mendable", "--reveal"},
		{"dlq", "show", letter.ID, "--reveal", "-o", "json"},
		{"dlq", "restore", "--all"}, // nothing is archived
		{"dlq", "archive", letter.ID, "--by", "ana", "--reason", "CLINIC-3"},
		{"dlq", "purge", "--yes"},
		{"dlq", "purge", "--older-than", "0.001s", "--yes", "--reason", "CLINIC-4"},
	} {
		p.run("", args...)
	}
	r := p.run("", "audit", "list", "-o", "json")
	require.NotContains(t, r.out, name)
	found := decodeLines[entry](t, r.out)
	var actions []string
	for _, e := range found {
		actions = append(actions, e.Action)
		require.Regexp(t, "^command line, .+@.+", e.Source)
	}
	require.Equal(t, []string{"purge", "archive", "reveal", "reveal", "append"}, actions)
	require.Equal(t, sent[0].EventID, found[4].Subject["event_id"])
	require.Equal(t, map[string]any{"type": "Mendable", "limit": "100"}, found[3].Subject)
	require.Equal(t, []any{letter.ID}, found[2].Subject["ids"])
	require.Equal(t, "ana", found[1].By)
	require.Equal(t, "CLINIC-3", found[1].Reason)
	require.Equal(t, 1, found[0].Count)
	require.Equal(t, "CLINIC-4", found[0].Reason)

	r = p.run("", "audit", "list", "--by", "ana", "--limit", "1")
	require.Contains(t, r.out, "archive")
	require.NotContains(t, r.out, "reveal")
	r = p.run("", "audit", "list", "--limit", "2")
	require.Contains(t, r.err, "there are more entries: --before ")
	r = p.run("", "audit", "list", "--action", "reveals")
	require.Equal(t, exitUsage, r.code)
	require.Contains(t, r.err, "reveal")
	require.Equal(t, exitUsage, p.run("", "audit", "list", "--limit", "0").code)
}
