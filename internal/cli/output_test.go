package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

func TestTables(t *testing.T) {
	t.Parallel()
	recent := localTime(time.Now().Add(-time.Hour))
	const id, long = "0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11", "a text that is too long for a table of eighty columns, as it has more of them"
	for name, test := range map[string]struct {
		output  format
		columns []column
		row     []string
		want    string
	}{
		"what fits is whole": {
			formatTable, []column{{name: "AT"}, {name: "ID"}}, []string{recent, id}, recent + "  " + id,
		},
		"times are shortened first": {
			formatTable,
			[]column{{name: "AT"}, {name: "ID"}, {name: "TYPE"}},
			[]string{recent, id, "WelcomeMessageRequested"},
			recent[5:19] + "  " + id + "  WelcomeMessageRequested",
		},
		"an old time has no hour": {
			formatTable,
			[]column{{name: "AT"}, {name: "ID"}, {name: "TYPE"}},
			[]string{"2020-01-02 03:04:05.000Z", id, "WelcomeMessageRequested"},
			"2020-01-02  " + id + "  WelcomeMessageRequested",
		},
		"the spare column goes first": {
			formatTable, []column{{name: "A", spare: 2}, {name: "B", spare: 1}, {name: "C"}}, []string{id, id, id}, id + "  " + id,
		},
		"a long text is cut": {
			formatTable, []column{{name: "ID"}, {name: "WHY", least: 20}}, []string{id, long}, id + "  " + long[:41] + "…",
		},
		"where nothing can be left out, more is cut": {
			formatTable, []column{{name: "ID"}, {name: "ID"}, {name: "WHY", least: 20}}, []string{id, id, long}, id + "  " + id + "  a t…",
		},
		"what wraps is whole where there is no terminal": {
			formatTable, []column{{name: "ID"}, {name: "WHY", least: 20, wraps: true}}, []string{id, long}, id + "  " + long,
		},
		"a wide table is whole": {
			formatWide,
			[]column{{name: "AT", spare: 1}, {name: "ID"}, {name: "WHY", least: 20}},
			[]string{recent, id, long},
			recent + "  " + id + "  " + long,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, out := &cobra.Command{}, &bytes.Buffer{}
			c.SetOut(out)
			p := newPrinter(c, test.output, test.columns...)
			require.NoError(t, p.print(nil, test.row...))
			require.NoError(t, p.flush())
			require.Equal(t, test.want, strings.Split(out.String(), "\n")[1])
		})
	}
}

func TestColours(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]string{"auto": "STATE\nwaiting\n", "never": "STATE\nwaiting\n", "always": "\x1b[1mSTATE\x1b[0m\n\x1b[31mwaiting\x1b[0m\n"} {
		c, out := &cobra.Command{}, &bytes.Buffer{}
		c.SetOut(out)
		addColor(c)
		require.NoError(t, c.ParseFlags([]string{"--color", when}))
		p := newPrinter(c, formatTable, column{name: "STATE"})
		require.NoError(t, p.print(nil, "waiting"))
		require.NoError(t, p.flush())
		require.Equal(t, want, out.String(), when)
	}
}

func TestReflowed(t *testing.T) {
	t.Parallel()
	require.Equal(t, "one two\nthree\n\nfour", reflowed("one\ntwo three\n\nfour", 8))
}
