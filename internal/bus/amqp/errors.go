package amqp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
)

var (
	// ErrUnavailable is wrapped by errors that may pass: the broker cannot be reached, or the connection was lost.
	ErrUnavailable = errors.New("RabbitMQ is unavailable")
	// ErrRefused is wrapped by errors of a connection that the broker refuses: credentials, vhost, rights.
	ErrRefused = errors.New("refused by RabbitMQ")
	// ErrBlocked says that the broker accepts no messages at present, for lack of memory or disk.
	ErrBlocked = errors.New("RabbitMQ blocks its publishers")
	// ErrUnconfirmed is wrapped by errors of a publish of which it is unknown whether the broker has it.
	ErrUnconfirmed = errors.New("not confirmed by RabbitMQ")
	// errNacked is wrapped, with ErrUnconfirmed, when the broker says that it does not store a message.
	errNacked = errors.New("the broker could not store it")
	// errNotTaken is wrapped by the error of a batch in which the broker does not take a message (406, or 403 of its topic).
	errNotTaken = errors.New("not taken by RabbitMQ")
	// ErrTooLarge is wrapped by errors of a message that exceeds the limits of AMQP or the broker.
	ErrTooLarge = errors.New("message too large for RabbitMQ")
	// ErrClosed is returned after a Close.
	ErrClosed = errors.New("closed")
)

// TopologyError says that an exchange, a queue or a binding could not be declared, as when it exists with other
// properties (406) or rights are missing (403). It wraps the broker's *[amqp091.Error].
type TopologyError struct {
	// Kind is "exchange", "queue", "binding of queue" or the like; "no …" of what should not be there.
	Kind string
	Name string
	Err  error
}

func (e *TopologyError) Error() string {
	return fmt.Sprintf("declare %s %q: %s%s", e.Kind, e.Name, e.Err, e.advice())
}

// advice says what to do about the broker's refusal.
func (e *TopologyError) advice() string {
	answer, ok := errors.AsType[*amqp091.Error](e.Err)
	switch {
	case !ok:
		return ""
	case strings.HasSuffix(e.Name, ".partitioned") && answer.Code == amqp091.PreconditionFailed:
		return ": the broker has another number of partitions than the settings; see --partitions and --leave-partitions"
	case e.Kind == "queue" && strings.Contains(answer.Reason, "'x-queue-type'"):
		return ": the queue is of another type than the settings have it; see --queue-type"
	case answer.Code == amqp091.CommandInvalid:
		return ": partitions need the broker's plugin rabbitmq_consistent_hash_exchange"
	default:
		return ""
	}
}

func (e *TopologyError) Unwrap() error { return e.Err }

// adviceOnClose says what to do about the broker's reason for closing a channel.
func adviceOnClose(err *amqp091.Error) string {
	if err.Code == amqp091.PreconditionFailed && strings.Contains(err.Reason, "timed out") {
		return ": the handling of a message took longer than the broker's consumer_timeout; raise that, or lower " +
			"--handler-timeout and --retry-attempts"
	}
	return ""
}

// UnroutableError says that the broker found no queue for a message and returned it.
type UnroutableError struct {
	Exchange   string
	RoutingKey string
	EventType  string
}

func (e *UnroutableError) Error() string {
	return fmt.Sprintf("event type %q: exchange %q has no queue for routing key %q", e.EventType, e.Exchange, e.RoutingKey)
}

// isMissing tells whether a message was not taken because an exchange, a queue or a binding is missing.
func isMissing(err error) bool {
	_, unroutable := errors.AsType[*UnroutableError](err)
	return unroutable || isNotFound(err)
}

// isDeclined tells whether the broker has answered that it does not take a message, other than being unavailable.
func isDeclined(err error) bool {
	_, refused := errors.AsType[*bus.RefusedError](err)
	answer, ok := errors.AsType[*amqp091.Error](err)
	return refused || ok && answer.Code == amqp091.AccessRefused || errors.Is(err, ErrTooLarge) || errors.Is(err, errNacked) || isMissing(err)
}

// isOfTopic tells whether the broker refuses a message for its routing key, by a topic permission, and not all messages.
// RabbitMQ 3.10 says "access to topic 'a' in exchange …", later versions "write access to topic …".
func isOfTopic(answer *amqp091.Error) bool {
	return answer.Code == amqp091.AccessRefused && strings.Contains(answer.Reason, "access to topic '")
}

// classify wraps an error in [ErrRefused], if trying again is useless until something is changed, or in
// [ErrUnavailable]. A [TopologyError] of the first kind is not wrapped, and neither are errors of certificates.
func classify(err error) error {
	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrRefused) {
		return err // it is already
	}
	refused := errors.Is(err, amqp091.ErrCredentials) || errors.Is(err, amqp091.ErrVhost) || errors.Is(err, amqp091.ErrSASL)
	if answer, ok := errors.AsType[*amqp091.Error](err); ok && answer.Server {
		switch answer.Code {
		case amqp091.AccessRefused, amqp091.NotAllowed, amqp091.PreconditionFailed, amqp091.ResourceLocked,
			amqp091.NotImplemented, amqp091.CommandInvalid:
			refused = true
		}
	}
	if _, ok := errors.AsType[*TopologyError](err); ok && refused {
		return err
	}
	if refused {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok { // a certificate's file that the URL names
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
