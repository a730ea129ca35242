package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/healz/worker/internal/store"
)

// SQLSTATEs by which the store decides.
const (
	uniqueViolation      = "23505"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	queryCanceled        = "57014"
	inFailedTransaction  = "25P02"
	idleInTransaction    = "25P03"
	transactionTimeout   = "25P04"
	lockNotAvailable     = "55P03"
	undefinedTable       = "42P01"
	undefinedColumn      = "42703"
	readOnlyTransaction  = "25006"

	numericOutOfRange    = "22003"
	invalidText          = "22P02"
	untranslatable       = "22P05"
	statementTooComplex  = "54001"
	programLimitExceeded = "54000"
)

// fault adds what was being done, and wraps the error of package store that err means, if any.
func fault(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	pgErr, answered := errors.AsType[*pgconn.PgError](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	switch {
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("%s: %w: %w", doing, ctx.Err(), err)
	case ctx.Err() != nil, errors.Is(err, puddle.ErrClosedPool), isTranslated(err):
		return fmt.Errorf("%s: %w", doing, err)
	case answered && pgErr.Where == "" && (pgErr.Code == undefinedTable || pgErr.Code == undefinedColumn): // not in a trigger
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrNoSchema, err)
	case answered && pgErr.Code == readOnlyTransaction:
		return fmt.Errorf("%s: %w: %w", doing, store.ErrReadOnly, err)
	case answered && isTemporary(pgErr.Code), !answered && (connecting || isBroken(err)):
		return fmt.Errorf("%s: %w: %w", doing, store.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// isTranslated reports whether err wraps an error of package store, or of a caller's transaction, already.
func isTranslated(err error) bool {
	_, ofTx := errors.AsType[txError](err)
	return ofTx || slices.ContainsFunc([]error{
		store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrNoSchema, store.ErrNewerSchema,
	}, func(name error) bool { return errors.Is(err, name) })
}

// isTemporary reports whether the same call may succeed later: the server lacks a resource, starts, stops, is a standby,
// or transactions collided.
func isTemporary(code string) bool {
	switch code[:2] {
	case "08", "53", "57", "58":
		return true
	}
	switch code {
	case readOnlyTransaction,
		lockNotAvailable,
		idleInTransaction, transactionTimeout,
		serializationFailure, deadlockDetected:
		return true
	}
	return false
}

// isBroken reports whether the connection failed.
func isBroken(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}

// unsentError is the error of a call that did nothing, as it got no connection or its context ended before.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

// SafeToRetry implements [pgconn.SafeToRetry].
func (unsentError) SafeToRetry() bool { return true }

// writeFault is fault for a statement that writes, once it may have been sent: without an answer its outcome is
// unknown. The server answers with an error only if nothing was written: a session that is terminated after its commit
// ends without an answer. Rows that it refuses are a *[store.RefusedError].
func writeFault(ctx context.Context, doing string, err error) error {
	pgErr, answered := serverError(err)
	switch {
	case answered && isRefusal(pgErr):
		return fmt.Errorf("%s: %w", doing, refused(pgErr))
	case err == nil || answered || pgconn.SafeToRetry(err):
		return fault(ctx, doing, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, store.ErrUnknownOutcome, err)
}

// serverError returns the server's own error. A pooler that has lost the connection to the server answers in its place, and
// does not know whether anything was written; only the server names the routine of its source.
func serverError(err error) (pgErr *pgconn.PgError, answered bool) {
	pgErr, answered = errors.AsType[*pgconn.PgError](err)
	return pgErr, answered && (pgErr.Routine != "" || !isTemporary(pgErr.Code) && !strings.HasPrefix(pgErr.Code, "XX"))
}

// isRefusal reports whether the rows are the reason why a statement or a commit failed: other rows may succeed. What
// concerns all rows alike, such as a missing right or a table that a trigger does not find, is none.
func isRefusal(err *pgconn.PgError) bool {
	if isTemporary(err.Code) {
		return false
	}
	switch err.Routine { // of the server's source, whatever its language
	case "exec_stmt_raise", // a RAISE of PL/pgSQL, which chooses its code
		"ExecWithCheckOptions": // a policy of row-level security
		return true
	}
	switch err.Code[:2] {
	case "09", // a trigger's action
		"21",       // cardinality, such as a subquery of a trigger that finds two rows
		"22",       // data
		"23",       // constraints
		"27",       // data that a trigger changes
		"38", "39", // external routines
		"44", // a view's check option
		"54", // limits, such as that of an index entry
		"P0": // PL/pgSQL
		return true
	}
	return false
}

// leftOut is the reason for the refusal of rows that were not inserted, without an error. write.sql fails with it.
const leftOut = "a trigger has left it out"

// refused is the error without the server's message and detail, which may quote rows.
func refused(err *pgconn.PgError) *store.RefusedError {
	by := "SQLSTATE " + err.Code
	switch {
	case err.Code == invalidText && err.Where == "" && strings.Contains(err.Message, leftOut): // in a language of the server's
		by = leftOut
	case err.ConstraintName != "":
		by += fmt.Sprintf(", constraint %q of table %q", err.ConstraintName, err.TableName)
	case err.ColumnName != "":
		by += fmt.Sprintf(", column %q of table %q", err.ColumnName, err.TableName)
	}
	if function := functionName.FindString(err.Where); function != "" {
		by += ", " + function
	}
	return &store.RefusedError{By: by, Err: err}
}

// functionName is a function's name in the context of an error.
var functionName = regexp.MustCompile(`PL/pgSQL function [^\s(]+\(\)`)

// commitFault is the error of a COMMIT. Of a connection that breaks before the answer, pgx may say that nothing was sent.
func commitFault(err error) error {
	_, answered := serverError(err)
	if err == nil || answered || errors.Is(err, pgx.ErrTxCommitRollback) {
		return err
	}
	return fmt.Errorf("commit: %w: %w", store.ErrUnknownOutcome, err)
}
