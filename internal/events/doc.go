// Package events is the language of the worker: the event with its envelope, the origin it inherits
// from its cause, the aggregate that raises it and the repository that keeps aggregates.
//
// The package does no input or output and depends on no other package of the worker. An event is made
// in one of three ways, and each of them fills the envelope by construction, so that no caller can
// forget a tenant or a correlation id:
//
//   - an aggregate raises it ([Raise]),
//   - a handler lets it follow from another event ([Follow], [CausedBy]),
//   - it is read from the wire ([Parse]).
//
// All values are plain data: an [Event] may be copied and shared, but its Data and Metadata must not be
// modified after it was made.
package events
