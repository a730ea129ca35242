package worker

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/handlers"
)

// Tuning is how a worker works. [DefaultTuning] is fit for production.
type Tuning struct {
	// Concurrency is how many events are handled at once; those of one aggregate never are.
	Concurrency int
	// MaxMessage is the most bytes of an event's JSON; a larger one becomes a dead letter and is not parsed.
	MaxMessage int
	// RetryAttempts is how many attempts a handler has before its event becomes a dead letter; the first counts.
	RetryAttempts int
	// RetryInitial and RetryMax are the first and the longest wait between two attempts.
	RetryInitial, RetryMax time.Duration
	// AfterDeadLetter says what happens to the events that follow a dead letter in its aggregate.
	AfterDeadLetter handlers.AfterDeadLetter
	// HandlerTimeout bounds one attempt of one handler.
	HandlerTimeout time.Duration
	// GracePeriod is how long a stop waits for messages in flight.
	GracePeriod time.Duration
	// RelayPoll is how often the relay polls for events that no notification told of.
	RelayPoll time.Duration
}

// DefaultTuning returns the defaults.
func DefaultTuning() Tuning {
	return Tuning{
		Concurrency:     amqp.DefaultConcurrency,
		MaxMessage:      amqp.DefaultMaxMessage,
		RetryAttempts:   4,
		RetryInitial:    100 * time.Millisecond,
		RetryMax:        5 * time.Second,
		AfterDeadLetter: handlers.Continue,
		HandlerTimeout:  30 * time.Second,
		GracePeriod:     20 * time.Second,
		RelayPoll:       time.Second,
	}
}

// ConsumerTimeout is RabbitMQ's default of the setting consumer_timeout: it closes the channel of a consumer that does not
// ack a message for so long. A worker cannot ask what it is.
const ConsumerTimeout = 30 * time.Minute

// AdviceOnConsumerTimeout goes with [Tuning.OutlastsConsumerTimeout].
const AdviceOnConsumerTimeout = "lower --handler-timeout, --retry-attempts or --retry-max, or raise consumer_timeout"

// LongestHandling is how long an event with so many handlers is in flight at most, if all attempts of all of them time out.
func (t Tuning) LongestHandling(handlers int) time.Duration {
	wait, waits := t.RetryInitial, time.Duration(0)
	left := t.RetryAttempts - 1
	for ; left > 0 && wait < t.RetryMax; left-- {
		waits += wait
		wait *= 2
	}
	all := float64(handlers) * (float64(waits) + float64(left)*float64(t.RetryMax) + float64(t.RetryAttempts)*float64(t.HandlerTimeout))
	return time.Duration(min(all, math.MaxInt64/2))
}

// OutlastsConsumerTimeout says so of the longest handling, or "".
func (t Tuning) OutlastsConsumerTimeout(handlers int) string {
	longest := t.LongestHandling(handlers)
	if longest <= ConsumerTimeout {
		return ""
	}
	return fmt.Sprintf("all attempts of an event may take %s, but by default RabbitMQ requeues a message that is not acked "+
		"within %s (consumer_timeout)", longest.Round(time.Second), ConsumerTimeout)
}

// Check says what is out of range.
func (t Tuning) Check() error {
	var problems []error
	atLeast := func(name string, value, least int) {
		if value < least {
			problems = append(problems, fmt.Errorf("%s must be at least %d, but is %d", name, least, value))
		}
	}
	positive := func(name string, value time.Duration) {
		if value <= 0 {
			problems = append(problems, fmt.Errorf("%s must be positive, but is %s", name, value))
		}
	}
	atLeast("concurrency", t.Concurrency, 1)
	atLeast("max-message", t.MaxMessage, 1)
	atLeast("retry-attempts", t.RetryAttempts, 1)
	positive("retry-initial", t.RetryInitial)
	positive("retry-max", t.RetryMax)
	positive("handler-timeout", t.HandlerTimeout)
	positive("grace-period", t.GracePeriod)
	positive("relay-poll", t.RelayPoll)
	if t.AfterDeadLetter != handlers.Continue && t.AfterDeadLetter != handlers.Park {
		problems = append(problems, fmt.Errorf("after-dead-letter must be continue or park, not %q", t.AfterDeadLetter))
	}
	if t.RetryMax < t.RetryInitial {
		problems = append(problems, fmt.Errorf("retry-max (%s) is below retry-initial (%s)", t.RetryMax, t.RetryInitial))
	}
	return errors.Join(problems...)
}
