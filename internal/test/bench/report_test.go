package bench_test

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/bench"
)

func result() *bench.Result {
	return &bench.Result{
		Date: "2026-01-02", CPUs: 2, Go: "go1.26", Postgres: "15", Fsync: "on", RabbitMQ: "3.10", Rounds: 3,
		Rows: []*bench.Row{
			{
				Name: "publish", What: "publish", Unit: "events/s", Date: "2026-01-02", Reach: 0.9,
				Raw: bench.Series{10_000, 20_000, 8_000}, Stock: bench.Series{500, 400, 600}, Ours: bench.Series{9_500, 18_000, 8_000},
			},
			{
				Name: "latency-p50", What: "append to handler", Unit: "ms", Date: "2026-01-02", LessIsBetter: true, Reach: 2, Limit: 5,
				Raw: bench.Series{2, 2, 3}, Stock: bench.Series{800, 900, 700}, Ours: bench.Series{3, 5.5, 6},
			},
			{Name: "memory", What: "memory", Unit: "MiB", Date: "2026-01-02", LessIsBetter: true, Limit: 64, Ours: bench.Series{41.5}},
		},
	}
}

func TestAResultIsKeptAndShown(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	page := filepath.Join(folder, "performance.md")
	const begins, ends = "<!-- The table is written by `make bench`. -->\n", "<!-- End of the table. -->\n"
	require.NoError(t, os.WriteFile(page, []byte("before\n"+begins+"old\n"+ends+"after\n"), 0o600))

	var out strings.Builder
	require.NoError(t, result().Write(&out, folder))

	require.Contains(t, out.String(),
		"| publish | 10\u202f000 | 500 | 9\u202f500 | events/s | 0.95 (0.90–1.00) | ≥ 0.9 × raw | met |  |\n")
	require.Contains(t, out.String(),
		"| append to handler | 2.0 | 800 | 5.5 | ms | 2.00 (1.50–2.75) | ≤ 2 × raw, ≤ 5 ms | not met |  |\n")
	require.Contains(t, out.String(), "| memory | – | – | 41.5 | MiB |  | ≤ 64 MiB | met |  |\n")
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, "before\n"+begins+out.String()+ends+"after\n", string(text))
	kept, err := bench.Read(folder)
	require.NoError(t, err)
	require.Equal(t, result(), kept)
}

func TestARunOfSomeRowsKeepsTheOthers(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	require.NoError(t, result().Write(io.Discard, folder))
	later := result()
	later.Date, later.Rows = "2026-01-03", later.Rows[1:2]
	later.Rows[0].Date, later.Rows[0].Ours = later.Date, bench.Series{4, 4, 4}

	require.NoError(t, later.Write(io.Discard, folder))

	kept, err := bench.Read(folder)
	require.NoError(t, err)
	require.Equal(t, "2026-01-03", kept.Date)
	require.Len(t, kept.Rows, 3)
	require.Equal(t, result().Rows[0], kept.Rows[0])
	require.Equal(t, later.Rows[1], kept.Rows[1])
	require.InDelta(t, 4, kept.Rows[1].Ours.Median(), 0)
	require.Equal(t, result().Rows[2], kept.Rows[2])
}

func TestTheChartIsWellFormed(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	require.NoError(t, result().Write(io.Discard, folder))
	chart, err := os.Open(filepath.Join(folder, "performance.svg"))
	require.NoError(t, err)
	defer chart.Close()
	decoder := xml.NewDecoder(chart)
	for err == nil {
		_, err = decoder.Token()
	}
	require.True(t, errors.Is(err, io.EOF), "%v", err)
}
