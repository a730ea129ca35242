package postgres

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/store"
)

// Pool is the pool of the store's calls.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// SearchStatements are the two statements of a search's scan of an index, and their arguments.
func SearchStatements(index store.Index, s store.Search) (statements []string, args any) {
	statement, end, args := scanStatements(s.Scan(index, store.DefaultLimit+1))
	return []string{statement, end}, args
}

// TailStatements are those that select a batch in one transaction.
func TailStatements(onlyOwnRows bool) (settings, statement string) {
	if onlyOwnRows {
		return planTailSQL, onlyOwn(tailSQL)
	}
	return planTailSQL, tailSQL
}
