// Package deadletter keeps the messages that no handler could handle, until an operator decides about them.
//
// A message that failed for good is put into a [Sink]: without a broker into the [Table], a table of the store; with
// RabbitMQ into the failed queue of the contract, from which a worker takes it into the same table. Commands and the
// console work on the table only.
package deadletter

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Keys under which a letter's [Failure] travels with its message. The first three are Watermill's own, so that its
// tools understand them.
const (
	ReasonKey      = "reason_poisoned"
	HandlerKey     = "handler_poisoned"
	TopicKey       = "topic_poisoned"
	AttemptsKey    = "attempts_poisoned"
	FirstFailedKey = "first_failed_at" // RFC 3339 with milliseconds, UTC
	LastFailedKey  = "last_failed_at"

	// IDKey is the letter's id, and SourceKey the queue that its message came from.
	IDKey     = "dead_letter_id"
	SourceKey = "source_queue"
)

// serviceSeparator ends the name of a service in that of a handler, which contains it nowhere else.
const serviceSeparator = "/"

// OfService is the name of a handler of a service in the inbox, letters, log and metrics: SERVICE/NAME. Without a service it is
// the handler's.
func OfService(service, handler string) string {
	if service == "" {
		return handler
	}
	return service + serviceSeparator + handler
}

// ServiceOf is the service in the name of a handler; "" if it is of none.
func ServiceOf(handler string) string {
	service, _, found := strings.Cut(handler, serviceSeparator)
	if !found {
		return ""
	}
	return service
}

// MaxReasonBytes bounds a reason, which travels in a header: longer ones are cut at a character's edge.
const MaxReasonBytes = 1024

var errEncoding = errors.New("this is no dead letter as an export writes it")

// Sink takes the messages that failed.
type Sink interface {
	// Put makes m a dead letter; its body and headers stay as they are. When it returns nil the letter is safe, and m
	// can be acked; on an error m must stay where it is. It keeps trying for as long as ctx lives only where the fault
	// is certain to pass. The context must not be that of a handler, which may be over.
	Put(ctx context.Context, m *message.Message, f Failure) error
}

// Postponer is a Sink that can first have a message handled again later.
type Postponer interface {
	Sink
	// Postpone has the handler that failed handle m again, and returns after how long, or 0 if m is to be Put, as it was
	// postponed often enough or the failure will not pass. For errors and ctx see Sink.
	Postpone(ctx context.Context, m *message.Message, f Failure) (time.Duration, error)
}
