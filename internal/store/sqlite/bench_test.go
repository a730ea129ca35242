package sqlite_test

import (
	"database/sql"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/storetest"
)

// The benchmarks write the same rows through the store and as bare statements of the same driver, with the same log and
// the same care for the disk: only their ratio, of one run, means anything.

// insertOwnSQL spares the checks that rows of other programs are put to.
const insertOwnSQL = `INSERT INTO events (` + contractColumns + `, own) VALUES (` + placeholders + `, 1)`

func BenchmarkAppend(b *testing.B) {
	b.Run("store", func(b *testing.B) {
		s, stream := open(b, migrated(b)), storetest.NewStream()
		for b.Loop() {
			require.NoError(b, s.Append(b.Context(), stream.Next()))
		}
	})
	b.Run("raw", func(b *testing.B) {
		db, stream := raw(b), storetest.NewStream()
		insert, err := db.PrepareContext(b.Context(), insertOwnSQL)
		require.NoError(b, err)
		defer insert.Close()
		for b.Loop() {
			_, err := insert.ExecContext(b.Context(), row(stream.Next())...)
			require.NoError(b, err)
		}
	})
}

func BenchmarkAppendMany(b *testing.B) {
	const size = 100
	b.Run("store", func(b *testing.B) {
		s, stream := open(b, migrated(b)), storetest.NewStream()
		for b.Loop() {
			require.NoError(b, s.AppendMany(b.Context(), stream.Take(size)))
		}
		b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("raw", func(b *testing.B) {
		db, stream := raw(b), storetest.NewStream()
		for b.Loop() {
			insertMany(b, db, stream.Take(size))
		}
		b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

func insertMany(b *testing.B, db *sql.DB, batch []events.Event) {
	b.Helper()
	tx, err := db.BeginTx(b.Context(), nil)
	require.NoError(b, err)
	insert, err := tx.PrepareContext(b.Context(), insertOwnSQL)
	require.NoError(b, err)
	for _, e := range batch {
		_, err := insert.ExecContext(b.Context(), row(e)...)
		require.NoError(b, err)
	}
	require.NoError(b, insert.Close())
	require.NoError(b, tx.Commit())
}

func raw(b *testing.B) *sql.DB {
	b.Helper()
	dsn := url.URL{Scheme: "file", Path: migrated(b), RawQuery: "_synchronous=FULL&_txlock=immediate"}
	db, err := sql.Open("sqlite", dsn.String())
	require.NoError(b, err)
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { require.NoError(b, db.Close()) })
	return db
}

func BenchmarkLoad(b *testing.B) { storetest.BenchmarkLoad(b, open(b, migrated(b))) }
