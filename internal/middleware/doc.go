// Package middleware has the router middlewares through which each message passes to the handlers. Outermost first:
//
//	Correlation the correlation id goes into the context, and so into every log line
//	Deliver     the message gets a context that lives as long as the worker's grace period, and its outcome is reported
//	PoisonQueue what failed for good is postponed or becomes a dead letter; only then is the message acked
//	Retry       what fails before a handler runs is tried again, without limit while the store is unavailable
//	Recoverer   (Watermill's) a panic outside the handlers is an error
//
// The dispatcher (package handlers) tries each handler of the message by itself, with the same [Retry]: a handler that
// fails neither stops the others nor makes them run again.
package middleware
