package postgres

import "github.com/healz/worker/internal/store"

// SearchStatements are the two statements of a walk of a search, and their arguments.
func SearchStatements(w store.Walk, s store.Search) (statements []string, args any) {
	return []string{along(w, searchSQL), along(w, searchEndSQL)}, searchArgs(s, nil, store.DefaultLimit+1)
}

// TailStatements are those that select a batch in one transaction.
func TailStatements(onlyOwnRows bool) (settings, statement string) {
	if onlyOwnRows {
		return planTailSQL, onlyOwn(tailSQL)
	}
	return planTailSQL, tailSQL
}
