package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

// foreign is the number of letters of the messages of [publishForeign], two of which are equal.
const foreign = 3

// failMendable makes n events fail, each of a different aggregate, and stops the worker. With a broker it adds foreign
// messages.
func (p *program) failMendable(n int) []wire {
	p.t.Helper()
	w := p.start()
	var sent []wire
	for range n {
		sent = append(sent, p.append(fmt.Sprintf(
			`{"event_type":"Mendable","aggregate_type":"Car","aggregate_id":%q,"tenant_id":%q,`+
				`"event_data":{"mode":"first","mileage":9007199254740993}}`,
			uuid.NewString(), uuid.NewString()))...)
		p.awaitLetters(len(sent))
	}
	if url := p.setting("RABBITMQ_URL"); url != "" {
		publishForeign(p.t, url)
		p.awaitLetters(n + foreign)
	}
	w.stop()
	return sent
}

// publishForeign publishes messages to the failed queue that no worker publishes.
func publishForeign(t *testing.T, url string) {
	t.Helper()
	conn, err := amqp091.Dial(url)
	require.NoError(t, err)
	defer conn.Close()
	channel, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, channel.Confirm(false))
	headers := amqp091.Table{
		"bool": true, "int8": int8(-1), "uint8": uint8(255), "int16": int16(-300), "uint16": uint16(65000), "int32": int32(1 << 30),
		"uint32": uint32(1 << 31), "int64": int64(1 << 60), "float32": float32(0.1), "float64": 0.1, "text": "größe", "binary": []byte{0, 0xff},
		"time": time.Unix(1_700_000_000, 0), "nothing": nil, "decimal": amqp091.Decimal{Scale: 2, Value: 1210},
		"list": []any{int32(1), "two", amqp091.Table{"three": 3.0}}, "table": amqp091.Table{"deep": amqp091.Table{"deeper": int64(4)}},
		"x-death": []any{amqp091.Table{
			"count": int64(1), "reason": "expired", "queue": "healz.events.consumer", "time": time.Unix(4_000_000_000, 0),
			"exchange": "healz.events", "routing-keys": []any{"Mendable"},
		}},
	}
	for _, m := range []amqp091.Publishing{
		{Body: []byte("no event \x00\xff"), Headers: headers, ContentType: "text/plain", Priority: 3, CorrelationId: "c", ReplyTo: "r"},
		{Body: []byte("twins"), MessageId: "same"},
		{Body: []byte("twins"), MessageId: "same"},
		{Headers: amqp091.Table{}, Timestamp: time.Unix(1_700_000_001, 0), AppId: "portal", ContentEncoding: "none", Type: "Strange"},
	} {
		m.DeliveryMode = amqp091.Persistent // as letters become
		confirm, err := channel.PublishWithDeferredConfirmWithContext(t.Context(), "healz.events.dlx", "failed", true, false, m)
		require.NoError(t, err)
		require.True(t, confirm.Wait())
	}
}

// wholeLetters are the waiting letters as an export, in order.
func (p *program) wholeLetters() []string {
	p.t.Helper()
	r := p.run("", "dlq", "export", "-")
	require.Equal(p.t, 0, r.code, r.err)
	whole := strings.SplitAfter(r.out, "\n")
	return whole[:len(whole)-1]
}

// withoutDecisions are whole letters that never failed again, without the decisions in their history.
func withoutDecisions(whole []string) []string {
	history := regexp.MustCompile(`"history":\[\{[^]]*\}\],`)
	list := slices.Clone(whole)
	for i := range list {
		list[i] = history.ReplaceAllString(list[i], "")
	}
	return list
}

func TestArchivedLettersComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		sent := p.failMendable(4)
		before := p.wholeLetters()

		require.Equal(t, 2, p.run("", "dlq", "archive", "--all").code, "not without a reason")
		require.Equal(t, 2, p.run("", "dlq", "archive", "--reason", "why").code, "not without a choice")
		require.Equal(t, exitNotFound, p.run("", "dlq", "archive", uuid.NewString(), "--reason", "why").code)
		out := p.must("", "dlq", "archive", sent[0].EventID, sent[2].EventID, "--reason", "CLINIC-512", "--by", "ana")
		require.Contains(t, out, "archived: 2")
		require.Contains(t, p.must("", "dlq", "discard", sent[1].EventID, "--reason", "CLINIC-513"), "discarded: 1")
		require.Equal(t, before[3:], p.wholeLetters())
		list := p.must("", "dlq", "archived", "list")
		require.Equal(t, 3, strings.Count(list, "\n"), list)
		require.Contains(t, list, "CLINIC-512")
		require.Contains(t, p.must("", "dlq", "archived", "list", "--all"), "CLINIC-513")
		require.Contains(t, p.must("", "dlq", "archived", "list", sent[1].EventID), "CLINIC-513")
		lines := decodeLines[struct {
			letter

			State string `json:"state"`
			By    string `json:"archived_by"`
			Why   string `json:"archived_reason"`
		}](t, p.must("", "dlq", "archived", "list", "--format", "json"))
		require.Len(t, lines, 2)
		require.Equal(t, []string{"archived", sent[0].EventID, "ana", "CLINIC-512"},
			[]string{lines[0].State, lines[0].EventID, lines[0].By, lines[0].Why})
		require.NotContains(t, p.must("", "dlq", "archived", "show", sent[1].EventID), "9007199254740993")
		require.Contains(t, p.must("", "dlq", "archived", "show", sent[1].EventID, "--reveal"), "9007199254740993")
		shown := p.must("", "dlq", "show", sent[0].EventID)
		require.Regexp(t, `state +archived\ndecided +\S+ \S+\ndecided by +ana\ndecided why +CLINIC-512\n`, shown)

		require.Contains(t, p.must("", "dlq", "restore", "--all", "--by", "ben"), "restored: 2")
		require.Contains(t, p.must("", "dlq", "restore", "--all"), "restored: 0")
		require.Equal(t, exitNotFound, p.run("", "dlq", "restore", sent[0].EventID).code, "it waits")
		require.Contains(t, p.must("", "dlq", "restore", sent[1].EventID), "restored: 1")
		restored := p.wholeLetters()
		require.Equal(t, before, withoutDecisions(restored))
		require.Contains(t, restored[0], `"history":[{"kind":"archived",`)
		require.Contains(t, restored[0], `"reason":"CLINIC-512","by":"ana"`)
		require.Regexp(t, `decided by +ben`, p.must("", "dlq", "show", sent[0].EventID))

		require.Contains(t, p.must("", "dlq", "archive", "--all", "--reason", "all of it"), fmt.Sprint("archived: ", len(before)))
		require.Empty(t, p.wholeLetters())
		require.Contains(t, p.must("", "dlq", "restore", "--all"), fmt.Sprint("restored: ", len(before)))
		require.Equal(t, before, withoutDecisions(p.wholeLetters()))
		require.Empty(t, p.must("", "dlq", "archived", "list", "--all"))
	})
}

// A purge by age deletes only old letters in a final state.
func TestPurgeOlderThan(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		sent := p.failMendable(4)
		before := p.wholeLetters()
		p.must("", "dlq", "archive", sent[0].EventID, "--reason", "why")
		p.must("", "dlq", "discard", sent[1].EventID, "--reason", "why")
		require.Contains(t, p.must("", "dlq", "purge", "--older-than", "1d", "--yes"), "purged: 0")
		require.Contains(t, p.must("", "dlq", "archived", "list", "--all"), "discarded")
		require.Contains(t, p.must("", "dlq", "purge", "--older-than", "1us", "--yes"), "purged: 2")
		require.Empty(t, p.must("", "dlq", "archived", "list", "--all"))
		require.Equal(t, before[2:], p.wholeLetters())
		require.Equal(t, exitNotFound, p.run("", "dlq", "restore", sent[0].EventID).code)
	})
}

func TestExportedLettersAreImportedAsTheyWere(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		p.failMendable(3)
		before := p.wholeLetters()
		folder := t.TempDir()
		file, half := filepath.Join(folder, "letters.jsonl"), filepath.Join(folder, "half.jsonl")

		require.Contains(t, p.must("", "dlq", "export", file), fmt.Sprint("exported: ", len(before)))
		require.Equal(t, before, p.wholeLetters())
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode())
		require.Equal(t, exitUsage, p.run("", "dlq", "export", file).code, "it does not write over a file")
		p.must("", "dlq", "purge", "--yes")

		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(half, append(text[:len(text)-1:len(text)-1], "\n{\"id\":\"Kova\n"...), 0o600))
		r := p.run("", "dlq", "import", half)
		require.Equal(t, exitInvalid, r.code)
		require.Contains(t, r.err, fmt.Sprintf("line %d: ", len(before)+1))
		require.NotContains(t, r.err, "Kova")
		require.Empty(t, p.wholeLetters(), "all or nothing")

		require.Contains(t, p.must("", "dlq", "import", file), fmt.Sprintf("imported: %d, skipped: 0", len(before)))
		require.Equal(t, before, p.wholeLetters())
		require.Contains(t, p.must("", "dlq", "import", file), fmt.Sprintf("imported: 0, skipped: %d", len(before)))
		require.Equal(t, before, p.wholeLetters())

		removed := filepath.Join(folder, "removed.jsonl")
		require.Contains(t, p.must("", "dlq", "export", removed, "--remove", "--limit", "2"), "exported: 2")
		require.Equal(t, before[2:], p.wholeLetters())
		require.Contains(t, p.must("", "dlq", "import", removed), "imported: 2, skipped: 0")
		require.Equal(t, before, p.wholeLetters())

		p.must("", "dlq", "archive", "--all", "--limit", "1", "--reason", "why")
		require.Contains(t, p.must("", "dlq", "import", file), fmt.Sprintf("imported: 0, skipped: %d", len(before)), "the table has it")
		require.Contains(t, p.must("", "dlq", "import", file, "--again"), fmt.Sprintf("imported: 1, skipped: %d", len(before)-1))
		require.Equal(t, before, p.wholeLetters())
	})
}

// A filter without matches is an error, other letters are not changed, and a limit of rows does not limit counts.
func TestChoicesOfDeadLetters(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		sent := p.failMendable(3)
		before := p.wholeLetters()

		limited := decodeLines[groupLine](t, p.must("", "dlq", "list", "--type", "Mendable", "--limit", "1", "--format", "json"))
		require.Len(t, limited, 1)
		require.Equal(t, len(sent), limited[0].Count, "a limit of rows leaves the count as it is")

		r := p.run("", "dlq", "replay")
		require.Equal(t, 2, r.code)
		require.Contains(t, r.err, "--all")
		for _, args := range [][]string{
			{"list"}, {"replay"}, {"try"}, {"archive", "--reason", "why"}, {"discard", "--reason", "why"}, {"restore"}, {"export", "-"},
		} {
			r := p.run("", append([]string{"dlq", args[0], "--group", "00000000"}, args[1:]...)...)
			require.Equal(t, exitNotFound, r.code, args)
			require.Contains(t, r.err, "no dead letter matches", args)
			require.NotContains(t, r.out, "letter", args)
		}

		r = p.run("", "dlq", "replay", "--all", "--dry-run", "--patience", "1h") // it waits for no outcome
		require.Equal(t, 0, r.code, r.err)
		require.Contains(t, r.err, fmt.Sprint("would be replayed: ", len(before)))

		empty := filepath.Join(t.TempDir(), "empty.jsonl")
		require.Equal(t, exitNotFound, p.run("", "dlq", "export", empty, "--group", "00000000").code)
		require.NoFileExists(t, empty)
		require.Equal(t, 2, p.run("", "dlq", "export", "-", "--remove").code)
		r = p.run("", "dlq", "export", "-")
		require.Equal(t, 0, r.code, r.err)
		require.Equal(t, len(before), strings.Count(r.out, "\n"))
		require.Contains(t, r.err, fmt.Sprint("exported: ", len(before)))
		require.Equal(t, before, p.wholeLetters())
	})
}

// An export moves letters from one platform to another.
func TestLettersMoveToAnotherPlatform(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	p.failMendable(1)
	file := filepath.Join(t.TempDir(), "letters.jsonl")
	p.must("", "dlq", "export", file)
	other := embedded(t)
	other.must("", "migrate", "up")
	require.Contains(t, other.must("", "dlq", "import", file), fmt.Sprintf("imported: %d, skipped: 0", 1+foreign))
	require.Equal(t, p.wholeLetters(), other.wholeLetters())
}
