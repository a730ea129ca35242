package handlers

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/healz/worker/internal/events"
)

// attempt runs the handler once, and gives what follows to record. It is the same for a delivery and for a dry run. The
// timeout is the handler's alone: a store that does not answer is not its failure. A panic is an error, whose stack goes
// to the log; the error's text holds no values of the event.
func (h handler) attempt(
	ctx context.Context, e events.Event, timeout time.Duration, record func(context.Context, []events.Event) error,
) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			h.logger.ErrorContext(ctx, "handler panicked", "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", panicked)
		}
		if err != nil {
			err = redact(err, e)
		}
	}()
	followUps, err := h.run(ctx, e, timeout)
	if err != nil {
		return err
	}
	if err := checkFollowUps(e, followUps); err != nil {
		return Permanent(err)
	}
	return record(ctx, followUps)
}

// run calls the handler's function.
func (h handler) run(ctx context.Context, e events.Event, timeout time.Duration) ([]events.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	followUps, err := h.call(ctx, e)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return nil, fmt.Errorf("timed out after %s: %w", timeout, err)
	}
	return followUps, err
}

// checkFollowUps refuses events that would mix tenants or break the chain of causes.
func checkFollowUps(cause events.Event, followUps []events.Event) error {
	for _, f := range followUps {
		var field string
		switch {
		case f.TenantID != cause.TenantID:
			field = "tenant_id"
		case f.CorrelationID != cause.CorrelationID:
			field = "correlation_id"
		case !f.CausationID.Valid || f.CausationID.UUID != cause.ID:
			field = "causation_id"
		default:
			continue
		}
		return fmt.Errorf("follow-up event %s has another %s than its cause: make it with events.Follow or events.CausedBy",
			f.Type, field)
	}
	return nil
}
