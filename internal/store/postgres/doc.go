// Package postgres is the event store on PostgreSQL 13 or newer.
//
// All names in its SQL are unqualified: the search_path of the connection URL decides on the schema, so that several
// workers can share a database.
//
// # Commit order
//
// Each row carries the id of the transaction that wrote it. Readers in commit order ([Store.All] and the relay's
// [Store.Tail]) go by (transaction_id, id) and stop below the oldest transaction that still runs anywhere in the
// cluster: behind that line nothing can appear any more, so that nothing is skipped. A transaction of any program that
// stays open for long holds that line back. A dump that is restored into another cluster brings transaction ids from
// which that cluster is far away: migrations/postgres/restored.sql tells what to do then.
//
// # Outages
//
// Errors that time may heal wrap [store.ErrUnavailable]. An answer that does not come is given up after a minute, so
// that no call hangs on a peer that is silent.
package postgres
