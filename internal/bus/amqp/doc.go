// Package amqp is the bus on RabbitMQ: the contract's topology, a publisher whose every message is confirmed, a
// subscriber that keeps the order of each aggregate, and the failed queue.
//
// It speaks watermill-amqp's [wamqp.Config], [wamqp.TopologyBuilder] and [wamqp.Marshaler], but owns connection,
// publisher and subscriber: there, a reconnect is a data race and leaks a slot of the channel pool, confirms are
// awaited one by one without a bound, and one delivery at a time is in hand.
package amqp
