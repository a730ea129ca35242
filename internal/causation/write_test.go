package causation_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
)

// tree is a tree with all features.
func tree() causation.Tree {
	list := chain("chain", "Requested", "Checked<Requested", "Confirmed<Checked", "Noted<Requested", "Imported<elsewhere")
	list[1].Type = "Check\x1b[2J\"ed\""
	n := []causation.Node{
		{Event: list[0], Parent: -1, Cause: causation.CauseNone, Stored: true},
		{Event: list[1], Parent: 0, Depth: 1, Cause: causation.CauseKnown, Stored: true},
		{Event: list[2], Parent: 1, Depth: 2, Last: true, Cause: causation.CauseKnown, Stored: true},
		{Event: list[3], Parent: 0, Depth: 1, Last: true, Cause: causation.CauseKnown},
		{Event: list[4], Parent: -1, Last: true, Cause: causation.CauseMissing, Stored: true},
	}
	n[0].Handled = []store.Handling{
		{Handler: "check", At: began().Add(12345 * time.Microsecond)}, {Handler: "note", At: began().Add(3 * time.Second)},
	}
	n[2].Failures = []causation.Failure{{LetterID: "7", Replays: 1, State: deadletter.Waiting, Failure: deadletter.Failure{
		Reason: `clinic has no "hours"` + "\nat all", Handler: "confirm", Attempts: 3,
		FirstFailed: began().Add(2 * time.Second), LastFailed: began().Add(2 * time.Minute),
	}}}
	return causation.Tree{CorrelationID: id("chain"), Nodes: n}
}

// named replaces ids by names.
func named(text string) string {
	for _, name := range []string{"chain", "tenant", "Requested", "Checked", "Confirmed", "Noted", "Imported", "elsewhere"} {
		text = strings.ReplaceAll(text, id(name).String(), "["+name+"]")
		text = strings.ReplaceAll(text, id("aggregate of "+name).String(), "…")
	}
	return text
}

func TestWriteText(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, tree().WriteText(&out, 0))
	require.Equal(t, `correlation  [chain]
tenant       [tenant]
began        2026-07-30 09:00:00.000Z
             5 events in 2m0s, 1 dead letter

      +0ms  Requested  Patient/… v1  [Requested]
            │  ✓ check after 12ms
            │  ✓ note after 3s
       +1s  ├─ Check·[2J"ed"  Patient/… v1  [Checked]
       +2s  │  └─ Confirmed  Patient/… v1  [Confirmed]
            │        ✗ confirm (3 attempts, 1 replay, dead letter 7): clinic has no "hours"·at all
       +3s  └─ Noted  Patient/… v1  [Noted]
                  ? it is not in the store

       +4s  Imported  Patient/… v1  [Imported]
               ? its cause [elsewhere] is not in this trace
`, named(out.String()))
}

// In a narrow terminal no line is wider than that, and the ids and reasons are whole.
func TestWriteTextFitsATerminal(t *testing.T) {
	t.Parallel()
	deep := tree()
	deep.Nodes[2].Event.Type = strings.Repeat("Confirmed", 4)
	var out strings.Builder
	require.NoError(t, deep.WriteText(&out, 80))
	for line := range strings.Lines(out.String()) {
		require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSpace(line)), 80, line)
	}
	require.NotContains(t, out.String(), "Patient/")
	require.Contains(t, named(out.String()), "  │  └─ ConfirmedConfirmedConfi…  [Confirmed]\n")
	require.Contains(t, named(out.String()), `            │        ✗ confirm (3 attempts, 1 replay, dead letter 7): clinic
            │          has no "hours"·at all
`)
}

func TestWriteTextOfSeveralTenants(t *testing.T) {
	t.Parallel()
	mixed := tree()
	mixed.Truncated = true
	mixed.Nodes[2].Event.TenantID = uuid.Max
	var out strings.Builder
	require.NoError(t, mixed.WriteText(&out, 0))
	require.Contains(t, named(out.String()), "            │        tenant ffffffff-ffff-ffff-ffff-ffffffffffff\n")
	require.Contains(t, named(out.String()), "            │  tenant [tenant]\n")
	require.Contains(t, out.String(), "incomplete: these are the oldest events")
}

func TestWriteArchived(t *testing.T) {
	t.Parallel()
	archived := tree()
	archived.Nodes[2].Failures[0].State = deadletter.Archived
	var text, dot, object strings.Builder
	require.NoError(t, archived.WriteText(&text, 0))
	require.Contains(t, text.String(), "5 events in 2m0s, 0 dead letters\n")
	require.Contains(t, text.String(), "– confirm (3 attempts, 1 replay, archived letter 7): clinic")
	require.NoError(t, archived.WriteDOT(&dot))
	require.NotContains(t, dot.String(), "red")
	require.NoError(t, archived.WriteJSON(&object))
	require.Contains(t, object.String(), `"state":"archived"`)
}

func TestWriteDOT(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, tree().WriteDOT(&out))
	dot := named(out.String())
	require.Contains(t, dot, `digraph "[chain]" {`)
	require.Contains(t, dot, `  n1 [label="Check·[2J\"ed\"\lPatient/… v1\l[Checked]\l+1s\l", color=black];`)
	require.Contains(t, dot, `✗ confirm (3 attempts, 1 replay, dead letter 7): clinic has no \"hours\"·at all\l", color=red];`)
	require.Contains(t, dot, `  n1 -> n2 [label="1s"];`)
	require.NotContains(t, dot, "-> n4")
}

func TestWriteJSON(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, tree().WriteJSON(&out))
	var got struct {
		CorrelationID string `json:"correlation_id"`
		DeadLetters   int    `json:"dead_letters"`
		Events        []map[string]any
	}
	require.NoError(t, json.Unmarshal([]byte(out.String()), &got))
	require.Equal(t, id("chain").String(), got.CorrelationID)
	require.Equal(t, 1, got.DeadLetters)
	require.Len(t, got.Events, 5)
	require.Equal(t, id("Checked").String(), got.Events[2]["causation_id"])
	require.Equal(t, []any{map[string]any{
		"letter_id": "7", "handler": "confirm", "reason": "clinic has no \"hours\"\nat all", "attempts": 3.0, "replays": 1.0, "state": "waiting",
		"first_failed_at": "2026-07-30T09:00:02Z", "last_failed_at": "2026-07-30T09:02:00Z",
	}}, got.Events[2]["failures"])
	require.Equal(t, []any{}, got.Events[2]["handled"])
	require.Equal(t, 12.345, got.Events[0]["handled"].([]any)[0].(map[string]any)["after_ms"])
	require.NotContains(t, out.String(), "Ana")
}
