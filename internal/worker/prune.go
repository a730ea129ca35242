package worker

import (
	"context"
	"time"

	"github.com/healz/worker/internal/relay"
)

const (
	// pruneInterval is how often the inbox is looked through for records that are too old.
	pruneInterval = time.Minute
	// pruneBatch is how many are deleted in one transaction, and pruneBreak the wait until the next: some thousands a
	// second, more than a worker adds, in transactions of milliseconds.
	pruneBatch = 500
	pruneBreak = 50 * time.Millisecond
)

// prune prunes the inbox until ctx is done. Of several workers the one that relays does it.
func (w *Worker) prune(ctx context.Context) {
	for {
		wait := pruneInterval
		switch state, _ := w.relay.Status(); state {
		case relay.Starting:
			wait = pruneBreak
		case relay.Relaying, relay.Idle:
			pruned, err := w.parts.Inbox.PruneHandled(ctx, w.parts.InboxRetention, pruneBatch)
			if err != nil && ctx.Err() == nil {
				w.logger.WarnContext(ctx, "cannot prune the inbox, will try again", "error", err)
			}
			if pruned == pruneBatch {
				wait = pruneBreak
			}
		default: // the one that relays does it
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
