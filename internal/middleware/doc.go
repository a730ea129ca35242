// Package middleware is what a message passes through on its way to the handlers, one middleware a file.
//
// Around the whole message, outermost first, as the worker puts them:
//
//	Detach      the router's shutdown must not cancel what is in hand
//	Correlation the correlation id is known from here on, in every log line too
//	Observe     one count per outcome, and a log line if no handler was reached
//	Receive     (package tracing's, if traces are sent) the span of the message
//	DeadLetter  what failed for good is postponed or goes to the dead letters, and only then is the message acked
//	MaxSize     what is too large is not looked into
//	Recoverer   (Watermill's) a panic is an error
//
// and around each handler that the message is for:
//
//	Retry       tries again, unless the error is permanent or the worker stops
//	Recoverer   (Watermill's) a panicking handler has failed, no more
//
// The timeout of an attempt is no middleware: package handlers sets it on the context of the handler alone, so that it does
// not bound the store's record of what follows.
package middleware
