package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/healz/worker/internal/observe"
)

const (
	// pruneInterval is how often old rows are deleted.
	pruneInterval = time.Minute
	// pruneBatch is how many rows are deleted in one transaction, and pruneBreak the wait until the next: some thousands per
	// second, more than a worker adds, in transactions of milliseconds.
	pruneBatch = 500
	pruneBreak = 50 * time.Millisecond
)

// prune prunes a table until ctx is done. once deletes up to [pruneBatch] rows, and returns how many.
func (w *Worker) prune(ctx context.Context, table string, once func(context.Context) (int, error)) {
	outage := observe.Outage{After: observe.Moment}
	for {
		pruned, err := once(ctx)
		if err == nil {
			outage.Over(ctx, w.logger, "a table can be pruned again", "table", table)
		} else if ctx.Err() == nil {
			outage.Fails(ctx, w.logger, slog.LevelWarn, "cannot prune a table, will try again", "table", table, "error", err)
		}
		wait := pruneInterval
		if pruned == pruneBatch {
			wait = pruneBreak
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (w *Worker) pruneInbox(ctx context.Context) (int, error) {
	return w.parts.Inbox.PruneHandled(ctx, w.parts.InboxRetention, pruneBatch)
}

func (w *Worker) pruneLetters(ctx context.Context) (int, error) {
	return w.parts.Letters.PurgeDecided(ctx, time.Now().Add(-w.parts.LetterRetention), pruneBatch, nil)
}
