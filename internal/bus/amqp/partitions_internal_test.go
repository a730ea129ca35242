package amqp

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// A worker rebalances within the subscription to the contract's queue, whose end waits for it. It must not wait for a
// partition that opens a channel, which may last as long as an outage.
func TestRequestToASubscriptionThatOpensAChannel(t *testing.T) {
	t.Parallel()
	opening := &subscription{consuming: t.Context(), requests: make(chan func())}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, opening.do(ctx, opening.giveUp))
}
