package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

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
	lockNotAvailable     = "55P03"
	undefinedTable       = "42P01"
	undefinedColumn      = "42703"

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
	case answered && (pgErr.Code == undefinedTable || pgErr.Code == undefinedColumn):
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrNoSchema, err)
	case answered && isTemporary(pgErr.Code), !answered && (connecting || isBroken(err)):
		return fmt.Errorf("%s: %w: %w", doing, store.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// isTranslated reports whether err wraps an error of package store already.
func isTranslated(err error) bool {
	return slices.ContainsFunc([]error{
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
	case "25006", // the server is a standby
		lockNotAvailable,
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
// ends without an answer.
func writeFault(ctx context.Context, doing string, err error) error {
	_, answered := errors.AsType[*pgconn.PgError](err)
	if err == nil || answered || pgconn.SafeToRetry(err) {
		return fault(ctx, doing, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, store.ErrUnknownOutcome, err)
}
