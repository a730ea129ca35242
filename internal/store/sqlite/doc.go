// Package sqlite is the embedded event store: one file, and no server.
//
// Several processes may share the file, as `worker run`, `worker append` and `worker events` do. It is in WAL mode, so
// that readers and the one writer do not wait for each other; writers of all processes take turns. What an append has
// returned for is on the disk, and outlives a power cut.
//
// Two more files lie beside the database for as long as it is open, its -wal and -shm, and one that is empty, its
// -setup.lock. All belong to the user who runs the worker and to no one else. A copy of a database in
// use is made with VACUUM INTO, not by copying the file. The file must not be on a network file system.
//
// A symbolic link to the file is the file. A file with several names (hard links) is refused, as SQLite keeps a log for
// each. Which worker relays is decided by the leases in the database, not by a file beside it: the lock is for the creation
// of the file and for migrations only.
package sqlite
