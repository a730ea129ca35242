package relay

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/healz/worker/internal/store"
)

const (
	// takeOverInterval is how often a relay on standby looks whether the one that relays is gone.
	takeOverInterval = time.Second
	// errorInterval is the wait after an error of the store.
	errorInterval = time.Second
)

// followUpPolls are the waits before the polls after a wake: an event can be announced a moment before the horizon of
// the tail has passed it.
var followUpPolls = [...]time.Duration{time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} //nolint:gochecknoglobals // a constant

// pacer paces the polls of the subscriber, which calls it between two of them, with no transaction open. It may block:
// that is how a poll waits for an append rather than for time to pass.
type pacer struct {
	relay *Relay
	// fresh counts the polls since the last wake that found nothing.
	fresh int
}

// HandleError implements [wsql.BackoffManager]. The error is the last poll's.
func (p *pacer) HandleError(_ watermill.LoggerAdapter, noMsg bool, err error) time.Duration {
	r := p.relay
	if r.isStopping() {
		r.rest()
		<-r.released
		return 0
	}
	var wait time.Duration
	var wake <-chan struct{} // only a relay that found nothing waits for an append
	switch {
	case errors.Is(err, store.ErrNotLeader):
		r.become(Standby, nil)
		wait = takeOverInterval + rand.N(takeOverInterval/4)
	case err != nil:
		r.become(Failing, err)
		wait = errorInterval
	case r.wasUnpublished():
		wait = 2 * takeOverInterval // another worker, which may reach the bus, comes first
	case noMsg && p.fresh < len(followUpPolls):
		wait, wake = followUpPolls[p.fresh], r.tail.Wake
		p.fresh++
	case noMsg:
		r.become(Idle, nil)
		wait, wake = r.config.Poll, r.tail.Wake
	default:
		p.fresh = 0
	}
	p.wait(wait, wake)
	return 0
}

// wait waits for time to pass, for a wake, or for the stop, after which it rests until the subscription has ended.
func (p *pacer) wait(d time.Duration, wake <-chan struct{}) {
	r := p.relay
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.stopping:
	case <-timer.C:
	case <-wake:
		p.fresh = 0
	}
	if r.isStopping() {
		r.rest()
		<-r.released
	}
}
