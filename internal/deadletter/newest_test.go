package deadletter_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store/storetest"
)

func TestNewestGoesBackPageByPage(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ctx := t.Context()
		var arrivals []deadletter.Arrival
		var want []string
		for i := range 7 {
			a := letterOf(t, storetest.NewStream(), "send-invoice", "no address")
			a.ID, a.LastFailed = fmt.Sprint("letter-", i), a.LastFailed.Add(time.Duration(i/3)*time.Millisecond) // three at a time
			arrivals, want = append(arrivals, a), append([]string{a.ID}, want...)
		}
		arrivals = append(arrivals, letterOf(t, storetest.NewStream(), "other", "gone"))
		require.NoError(t, table.Ingest(ctx, arrivals))

		var got []string
		for after := ""; ; after = got[len(got)-1] {
			page, err := table.Newest(ctx, deadletter.Filter{Handler: "send-invoice"}, after, 2)
			require.NoError(t, err)
			if len(page) == 0 {
				break
			}
			for _, l := range page {
				require.Nil(t, l.Body)
				got = append(got, l.ID)
			}
		}
		require.Equal(t, want, got)

		n, err := table.PutAside(ctx, deadletter.Filter{IDs: []string{want[0]}}, deadletter.Archived, audit.Actor{})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		page, err := table.Newest(ctx, deadletter.Filter{Handler: "send-invoice"}, want[0], 1)
		require.NoError(t, err)
		require.Equal(t, want[1], page[0].ID, "a letter that waits no longer still says where to go on")
		_, err = table.Newest(ctx, deadletter.Filter{}, "unknown", 1)
		require.ErrorIs(t, err, deadletter.ErrNotFound)
	})
}
