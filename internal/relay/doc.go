// Package relay carries events from the store to the bus. The events table itself is the outbox: the relay tails it in
// commit order, publishes a batch, and moves its position once the bus has taken responsibility for it.
package relay
