package handlers

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/test/posix"
)

func TestWithoutValues(t *testing.T) {
	t.Parallel()
	e := events.Event{
		Data: json.RawMessage(`{"name":"Ana Silva ","note":"said \"no\"","fee":80.50,"visits":9007199254740993,"ok":true,
			"address":{"street":"Main Road 7"},"tags":["diabetic"],"age":7}`),
		Metadata: json.RawMessage(`{"from":"10.1.2.3"}`),
	}
	for text, want := range map[string]string{
		"no place for Ana Silva":       "no place for ‹name›",
		"no place for ANA SILVA":       "no place for ‹name›",
		"Mrs Silva is unknown":         "Mrs ‹name› is unknown",
		`quoted: "said \"no\""`:        `quoted: "‹note›"`,
		"owes 80.5":                    "owes ‹fee›",
		"owes 80.50":                   "owes ‹fee›",
		"visit 9007199254740993":       "visit ‹visits›",
		"lives in Main Road 7, really": "lives in ‹street›, really",
		"is diabetic":                  "is ‹tags›",
		"dial 10.1.2.3: refused":       "dial ‹from›: refused",
		"true at 7":                    "true at 7",
		"no paper in the printer":      "no paper in the printer",
	} {
		require.Equal(t, want, withoutValues(text, e))
	}
	require.Equal(t, "as it is", withoutValues("as it is", events.Event{Data: json.RawMessage("no JSON")}))
}

// Row 13 of issue 11: words of technical errors stay, whichever values the event has; a patient's do not, however they are
// written.
func TestRedactionKeepsOrdinaryWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, data, text, want string }{
		{"technical words", `{"note":"database: timeout","status":"connect","kind":"the"}`, "connect to the database: timeout", ""},
		{"several of them", `{"note":"connection refused"}`, "dial: connection refused", ""},
		{"with a short name", `{"note":"Bo timeout"}`, "it says bo timeout", "it says ‹note›"},
		{"part of another word", `{"name":"Ana"}`, "analysis of Ana's banana", "analysis of ‹name›'s banana"},
		{"long part of a word", `{"name":"Kovačević"}`, "file-KOVAČEVIĆS.pdf", "file-‹name›S.pdf"},
		{"camel case", `{"a":"Ana","b":"Silva"}`, "no file AnaSilva.pdf", "no file ‹a›‹b›.pdf"},
		{"number by a unit", `{"took":"350"}`, "took 350ms, not 3500", "took ‹took›ms, not 3500"},
		{"without blanks", `{"name":"田中太"}`, "患者田中太郎", "患者‹name›郎"},
		{"combining marks", `{"name":"मीना देवी"}`, "no देवी here", "no ‹name› here"},
		{"escaped", `{"name":"Koji\u0107"}`, `no "Koji\u0107", "koji\\u0107", KOJIĆ`, `no "‹name›", "‹name›", ‹name›`},
		{"half a character", `{"name":"Koji \ud83d \/"}`, `no koji`, `no ‹name›`},
		{"backslash", `{"name":"C:\\new\\Ana"}`, `no C:\new\Ana`, `no ‹name›`},
		{"overlap", `{"a":"Ana Maria","b":"Maria Silva"}`, "no Ana Maria Silva", "no ‹b›"},
		{"name of a field that is data", `{"+351 911":{"Ana Silva":"Porto"}}`, "is in Porto", "is in ‹event_data›"},
		{"nested fields", `{"a":{"b":[{"c":"one1"}, "two2"]}, "d": "three3"}`, "one1 two2 three3", "‹c› ‹b› ‹d›"},
		{"negative number", `{"fee":-4711.25}`, "owes 4711.25 or -4711 or 4711.26", "owes ‹fee› or -‹fee› or ‹fee›.26"},
		{"broken JSON", `{"name":"Ana","x":"Sil`, "Ana Sil", "‹name› ‹x›"},
		{"no words", `{"note":"---"}`, "a --- b", ""},
	} {
		if c.want == "" {
			c.want = c.text
		}
		require.Equal(t, c.want, withoutValues(c.text, events.Event{Data: json.RawMessage(c.data)}), c.name)
	}
}

// A value on which the cut of a long text falls is not in what is kept.
func TestRedactionCutsLongTexts(t *testing.T) {
	t.Parallel()
	e := events.Event{Data: json.RawMessage(`{"name":"Kovacevic","note":"` + strings.Repeat("Kovacevic ", 5000) + `"}`)}
	for at := maxErrorBytes - 12; at < maxErrorBytes+3; at++ {
		kept := withoutValues(strings.Repeat("-", at)+"Kovacevic"+strings.Repeat("-", 2*searchedBytes), e)
		require.NotContains(t, kept, "K")
		require.Less(t, len(kept), maxErrorBytes+20)
	}
	require.NotContains(t, withoutValues(strings.Repeat("Kovacevic ", 5000), e), "K")
}

// What is held does not grow with the data: 16 times as many values take about the same memory.
// It is not parallel: the allocations of all goroutines are counted.
func TestRedactionIsBounded(t *testing.T) {
	allocated := func(values int) int64 {
		e := events.Event{Data: json.RawMessage(`[17.5` + strings.Repeat(`,"streets","patient Kovacevic",471.25,{"x":"\u0107 Kova"}`, values) + `]`)}
		require.Equal(t, "no place for ‹event_data› in street 9", withoutValues("no place for Kovacevic in street 9", e))
		return testing.Benchmark(func(b *testing.B) {
			b.Helper()
			b.ReportAllocs()
			for b.Loop() {
				withoutValues("no place for Kovacevic in street 9", e)
			}
		}).AllocedBytesPerOp()
	}
	few := allocated(1000)
	require.Positive(t, few)
	require.Less(t, allocated(16_000), 2*few+(1<<20))
}

func FuzzWithoutValues(f *testing.F) {
	f.Add(`{"a":"b\"c","d":[1.5,{}]}`, `b"c \u00e9 \"`)
	f.Add("\xff\"", "\xff\\")
	f.Fuzz(func(t *testing.T, data, text string) {
		got := withoutValues(text, events.Event{Data: json.RawMessage(data)})
		require.LessOrEqual(t, strings.Count(got, "›")-strings.Count(text, "›"), len(text))
	})
}

// The target is 5 ms of processor time for 1 MiB of data. The time by the clock depends on what else runs.
func BenchmarkRedaction(b *testing.B) {
	const short = `store patient: no place for Kovacevic at "main road 12": dial tcp 10.0.0.1:5432: connect: connection refused after 471 ms`
	var long, note []string // of like words: the parts of one are in the other
	for i, word := range strings.Fields(ordinary) {
		if i%2 == 0 {
			long = append(long, word+"s")
		} else {
			note = append(note, word+"er")
		}
	}
	for name, c := range map[string]struct{ text, value string }{
		"words":     {short, `{"name":"Kovacevic %d","street":"Main Road and some more words of a note that goes on for a while %d"}`},
		"numbers":   {short, `{"a":%d.25,"b":%d,"c":17.5,"d":12345678.25}`},
		"cyrillic":  {short, `{"name":"Иванов %d","street":"улица Гагарина и ещё несколько слов из записки %d"}`},
		"escapes":   {short, `{"name":"Kova\u010devi\u0107\n %d","street":"\"Main\" \u0107\u0107 %d"}`},
		"long text": {strings.Join(long, " "), `{"note":"` + strings.Join(note, " ") + ` %d %d"}`},
	} {
		b.Run(name, func(b *testing.B) {
			var data []byte
			for n := 0; len(data) < 1<<20; n++ {
				data = fmt.Appendf(append(data, ','), c.value, n, n)
			}
			data[0] = '['
			e := events.Event{Data: append(data, ']')}
			b.SetBytes(int64(len(e.Data)))
			b.ReportAllocs()
			began := processorTime(b)
			for b.Loop() {
				withoutValues(c.text, e)
			}
			b.ReportMetric(float64(processorTime(b)-began)/float64(b.N)/float64(len(e.Data))*(1<<20), "cpu-ns/MiB")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	used, err := posix.ProcessorTime()
	require.NoError(b, err)
	return used
}
