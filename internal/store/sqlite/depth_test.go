package sqlite_test

import (
	"testing"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/storetest"
)

func TestDepth(t *testing.T) {
	t.Parallel()
	storetest.RunDepth(t, func(t *testing.T) (storetest.Measured, func(*testing.T, events.Event)) {
		t.Helper()
		database := migrated(t)
		return open(t, database), func(t *testing.T, e events.Event) {
			t.Helper()
			insert(t, connect(t, database), e)
		}
	})
}
