package postgres

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/add_archived.sql
	addArchivedSQL string
	//go:embed statements/archived.sql
	archivedSQL string
)

const (
	unparkSQL = `DELETE FROM parked USING unnest($1::uuid[], $2::text[]) AS given (event_id, handler)
		WHERE parked.event_id = given.event_id AND parked.handler = given.handler`
	beginRestoreSQL = "UPDATE archived_letters SET restore_begun_at = now(), restored_by = $2 WHERE id = ANY ($1) AND restored_at IS NULL"
	endRestoreSQL   = "UPDATE archived_letters SET restored_at = now() WHERE id = ANY ($1) AND restored_at IS NULL"
)

var _ deadletter.ArchiveTable = (*Store)(nil)

// AddArchived adds archived letters; see [deadletter.ArchiveTable].
func (s *Store) AddArchived(ctx context.Context, letters []deadletter.ArchivedLetter) ([]string, error) {
	const doing = "archive dead letters"
	var (
		onces, dispositions, by, reasons, discarders []string
		encoded                                      [][]byte
		at                                           []time.Time
		discarded                                    []uuid.UUID
	)
	for _, l := range letters {
		b, err := l.Letter.Encode()
		if err != nil {
			return nil, err
		}
		onces, encoded, dispositions = append(onces, l.Once), append(encoded, b), append(dispositions, string(l.Disposition))
		by, at, reasons = append(by, text(l.By)), append(at, l.At), append(reasons, text(l.Reason))
		if l.Disposition == deadletter.Discarded {
			discarded, discarders = append(discarded, l.Letter.Event.ID), append(discarders, text(l.Letter.Handler))
		}
	}
	var ids []string
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, addArchivedSQL, onces, encoded, dispositions, by, at, reasons)
		if err != nil {
			return err
		}
		numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		for _, n := range numbers {
			ids = append(ids, strconv.FormatInt(n, 10))
		}
		if len(discarded) == 0 {
			return nil
		}
		_, err = tx.Exec(ctx, unparkSQL, discarded, discarders)
		return err
	})
	return ids, fault(ctx, doing, err)
}

// ArchivedLetters returns archived letters in order; see [deadletter.ArchiveTable].
func (s *Store) ArchivedLetters(ctx context.Context, afterID string, limit int) ([]deadletter.ArchivedLetter, error) {
	const doing = "read archived letters"
	var after int64
	if afterID != "" {
		var found bool
		if after, found = letterID(afterID); !found {
			return nil, &store.QueryError{Field: "after", Problem: "is not the id of an archived letter"}
		}
	}
	rows, err := s.pool.Query(ctx, archivedSQL, after, limit)
	if err != nil {
		return nil, fault(ctx, doing, err)
	}
	list, err := pgx.CollectRows(rows, scanArchived)
	return list, fault(ctx, doing, err)
}

func scanArchived(row pgx.CollectableRow) (deadletter.ArchivedLetter, error) {
	var (
		l                deadletter.ArchivedLetter
		id               int64
		letter           []byte
		begunAt, endedAt pgtype.Timestamptz
		restoredBy       pgtype.Text
	)
	err := row.Scan(&id, &letter, &l.Disposition, &l.By, &l.At, &l.Reason, &l.Once, &begunAt, &restoredBy, &endedAt)
	if err != nil {
		return l, err
	}
	l.ID, l.At, l.RestoredBy = strconv.FormatInt(id, 10), l.At.UTC(), restoredBy.String
	if begunAt.Valid {
		l.RestoreBegun = begunAt.Time.UTC()
	}
	if endedAt.Valid {
		l.RestoredAt = endedAt.Time.UTC()
	}
	if l.Letter, err = deadletter.Decode(letter); err != nil {
		return l, fmt.Errorf("archived letter %s: %w", l.ID, err)
	}
	return l, nil
}

// BeginRestore notes that letters are about to be put back; see [deadletter.ArchiveTable].
func (s *Store) BeginRestore(ctx context.Context, ids []string, by string) error {
	_, err := s.pool.Exec(ctx, beginRestoreSQL, letterIDs(ids), text(by))
	return fault(ctx, "begin to restore archived letters", err)
}

// EndRestore notes that letters are back; see [deadletter.ArchiveTable].
func (s *Store) EndRestore(ctx context.Context, ids []string) error {
	_, err := s.pool.Exec(ctx, endRestoreSQL, letterIDs(ids))
	return fault(ctx, "mark archived letters as restored", err)
}

// letterIDs reads ids; what is no number is no letter's id.
func letterIDs(ids []string) []int64 {
	numbers := make([]int64, 0, len(ids))
	for _, id := range ids {
		if number, found := letterID(id); found {
			numbers = append(numbers, number)
		}
	}
	return numbers
}
