package deadletter_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

func benchTable(b *testing.B) (*deadletter.Table, *pgx.Conn) {
	b.Helper()
	url := testservers.Postgres(b)
	s, err := postgres.Open(b.Context(), url, postgres.Options{MaxConns: 10})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	require.NoError(b, s.Migrate(b.Context()))
	conn, err := pgx.Connect(b.Context(), url)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, conn.Close(context.WithoutCancel(b.Context()))) })
	return deadletter.NewTable(s.SQL()), conn
}

// fillLetters puts in letters of 20 groups × 50 tenants, with bodies of some hundred bytes.
func fillLetters(b *testing.B, conn *pgx.Conn, n int) {
	b.Helper()
	_, err := conn.Exec(b.Context(), `INSERT INTO dead_letters (id, identity, arrival, state, event_id, event_type, aggregate_type,
			aggregate_id, aggregate_version, tenant_id, correlation_id, handler, group_id, reason, attempts, first_failed_at,
			last_failed_at, replays, replay_id, source, headers, body, bytes)
		SELECT 'id' || g, md5('i' || g), '', 'waiting', md5('e' || g)::uuid, 'Type' || g % 5, 'Patient', md5('a' || g / 10)::uuid, g % 10 + 1,
			md5('t' || g % 50)::uuid, md5('c' || g)::uuid, 'handler' || g % 20, 'group' || g % 20, 'no address ' || g, 3,
			now() - g * interval '1 second', now() - g * interval '1 second', g % 2, '', 'healz.events', '{"a":"b"}',
			convert_to(repeat(md5('b' || g), 20), 'UTF8'), 640
		FROM generate_series(1, $1::int) AS g`, n)
	require.NoError(b, err)
}

func BenchmarkIngest(b *testing.B) {
	table, _ := benchTable(b)
	const batch = 200
	for b.Loop() {
		b.StopTimer()
		arrivals := make([]deadletter.Arrival, batch)
		for i := range arrivals {
			e := storetest.NewStream().Next()
			e.Data = []byte(`{"text":"` + strings.Repeat("x", 700) + `"}`)
			body, err := e.MarshalJSON()
			require.NoError(b, err)
			now := time.Now()
			arrivals[i] = deadletter.Arrival{MessageID: uuid.NewString(), Letter: deadletter.Complete(deadletter.Letter{
				ID: uuid.NewString(), Body: body, Source: "healz.events", Raw: []byte(`{"headers":["a","b"],"message_id":"x"}`),
				Failure: deadletter.Failure{Handler: "send-invoice", Reason: "no address " + strconv.Itoa(i), Attempts: 3, FirstFailed: now, LastFailed: now},
			})}
		}
		b.StartTimer()
		require.NoError(b, table.Ingest(b.Context(), arrivals))
	}
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "letters/s")
}

// BenchmarkReads reads from ten thousand letters.
func BenchmarkReads(b *testing.B) {
	const n = 10_000
	table, conn := benchTable(b)
	fillLetters(b, conn, n)
	count := func(b *testing.B, f deadletter.Filter) {
		b.Helper()
		for b.Loop() {
			for _, err := range table.List(b.Context(), f) {
				require.NoError(b, err)
			}
		}
	}
	groups := func(b *testing.B) {
		b.Helper()
		for b.Loop() {
			groups, err := table.Groups(b.Context(), deadletter.Filter{})
			require.NoError(b, err)
			require.Len(b, groups, 20)
		}
	}
	b.Run("groups, never vacuumed", groups)
	_, err := conn.Exec(b.Context(), "VACUUM ANALYZE dead_letters")
	require.NoError(b, err)
	b.Run("groups", groups)
	b.Run("groups of a tenant", func(b *testing.B) {
		var tenant uuid.UUID
		require.NoError(b, conn.QueryRow(b.Context(), "SELECT tenant_id FROM dead_letters LIMIT 1").Scan(&tenant))
		for b.Loop() {
			_, err := table.Groups(b.Context(), deadletter.Filter{Tenant: tenant})
			require.NoError(b, err)
		}
	})
	b.Run("page of a group", func(b *testing.B) { count(b, deadletter.Filter{Group: "group7", Limit: 100}) })
	b.Run("deep page of a group", func(b *testing.B) {
		count(b, deadletter.Filter{Group: "group7", Limit: 100, Since: time.Now().Add(-time.Duration(n) * time.Second / 2)})
	})
	b.Run("first page", func(b *testing.B) { count(b, deadletter.Filter{Limit: 100}) })
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			_, err := table.Count(b.Context())
			require.NoError(b, err)
		}
	})
	b.Run("find", func(b *testing.B) {
		for b.Loop() {
			_, err := table.Find(b.Context(), "id77")
			require.NoError(b, err)
		}
	})
	b.Run("dry run of all", func(b *testing.B) {
		for b.Loop() {
			for p, err := range table.Replay(b.Context(), deadletter.Filter{}, deadletter.ReplayOptions{DryRun: true}) {
				require.NoError(b, err)
				if p.Step == deadletter.Begun {
					require.Equal(b, n, p.Chosen)
					break
				}
			}
		}
	})
}

// settler is a bus on which letters are handled at once by some consumers, or by nobody.
type settler struct {
	table     *deadletter.Table
	consumers int
}

func (s settler) PublishLetters(ctx context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	var done sync.WaitGroup
	for i := range s.consumers {
		done.Go(func() {
			for n := i; n < len(letters); n += s.consumers {
				if err := s.table.Settled(ctx, letters[n].ID, letters[n].ReplayID, []string{letters[n].Handler}, true); err != nil {
					panic(err)
				}
			}
		})
	}
	done.Wait()
	return make([]deadletter.Sending, len(letters)), nil
}

func BenchmarkReplay(b *testing.B) {
	for _, consumers := range []int{0, 4, 32} {
		b.Run(fmt.Sprintf("%d consumers", consumers), func(b *testing.B) {
			const n = 5000
			table, conn := benchTable(b)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			go deadletter.NewReplayer(table, settler{table, consumers}, testLogger(b)).Run(ctx, nil)
			for b.Loop() {
				b.StopTimer()
				_, err := conn.Exec(b.Context(), "TRUNCATE dead_letters")
				require.NoError(b, err)
				fillLetters(b, conn, n)
				b.StartTimer()
				o := deadletter.ReplayOptions{MaxFailures: -1}
				if consumers == 0 {
					o.Parallel = n
				}
				for p, err := range table.Replay(b.Context(), deadletter.Filter{}, o) {
					require.NoError(b, err)
					if p.Step == deadletter.Done {
						require.Equal(b, n, p.Sent)
					}
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "letters/s")
		})
	}
}
