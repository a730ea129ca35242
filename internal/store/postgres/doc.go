// Package postgres is the event store on PostgreSQL 13 or newer.
//
// All names in its SQL are unqualified: the search_path of the connection URL decides on the schema, so that several
// workers can share a database.
//
// # Commit order
//
// Each row carries the id of the transaction that wrote it. Readers in commit order ([Store.All] and the relay's
// [Store.Tail]) go by (transaction_id, id) and stop below the horizon, the oldest transaction that still runs anywhere
// in the cluster: below it no row can appear any more, so that none is skipped. A long transaction of any program holds
// the horizon back. A dump that is restored into another cluster brings transaction ids from
// which that cluster is far away: see [Store.MigrateRestored].
//
// # Outages
//
// Temporary errors wrap [store.ErrUnavailable]. A statement without an answer fails after a minute, so that no call
// blocks on a dead connection.
package postgres
