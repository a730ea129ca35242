package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
)

const (
	insertArchived = `INSERT INTO archived_letters (once, letter, disposition, archived_by, archived_at, reason)
		VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (once) WHERE restored_at IS NULL OR disposition = 'imported' DO NOTHING RETURNING id`
	selectArchivedOnce = `SELECT id FROM archived_letters
		WHERE once = ? AND (restored_at IS NULL OR disposition = 'imported')`
	selectArchived = `SELECT id, letter, disposition, archived_by, archived_at, reason, once, restore_begun, restored_by,
		restored_at FROM archived_letters WHERE id > ? ORDER BY id LIMIT ?`
	beginRestore = `UPDATE archived_letters SET restore_begun = ?, restored_by = ? WHERE id = ? AND restored_at IS NULL`
	endRestore   = `UPDATE archived_letters SET restored_at = ? WHERE id = ? AND restored_at IS NULL`
)

var _ deadletter.ArchiveTable = (*Store)(nil)

// AddArchived adds archived letters. See [deadletter.ArchiveTable].
func (s *Store) AddArchived(ctx context.Context, letters []deadletter.ArchivedLetter) ([]string, error) {
	ids := make([]string, len(letters))
	err := s.write(ctx, "archive dead letters", func(ctx context.Context, tx *sql.Tx) error {
		for i, l := range letters {
			encoded, err := l.Letter.Encode()
			if err != nil {
				return err
			}
			err = tx.QueryRowContext(ctx, insertArchived,
				l.Once, encoded, string(l.Disposition), l.By, l.At.UnixMicro(), l.Reason).Scan(&ids[i])
			if errors.Is(err, sql.ErrNoRows) {
				err = tx.QueryRowContext(ctx, selectArchivedOnce, l.Once).Scan(&ids[i])
			}
			if err == nil && l.Disposition == deadletter.Discarded {
				_, err = tx.ExecContext(ctx, deleteParked, l.Letter.Event.ID.String(), l.Letter.Handler)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return ids, err
}

// ArchivedLetters returns archived letters in order. See [deadletter.ArchiveTable].
func (s *Store) ArchivedLetters(ctx context.Context, afterID string, limit int) ([]deadletter.ArchivedLetter, error) {
	const doing = "read archived letters"
	var after int64
	if afterID != "" {
		id, ok := parseLetterID(afterID)
		if !ok {
			return nil, translate(doing, &store.QueryError{Field: "after", Problem: "is not the id of an archived letter"})
		}
		after = id
	}
	rows, err := s.readers.QueryContext(ctx, selectArchived, after, limit)
	if err != nil {
		return nil, translate(doing, err)
	}
	defer rows.Close()
	var letters []deadletter.ArchivedLetter
	for rows.Next() {
		l, err := scanArchived(rows)
		if err != nil {
			return nil, translate(doing, err)
		}
		letters = append(letters, l)
	}
	return letters, translate(doing, rows.Err())
}

func scanArchived(rows *sql.Rows) (deadletter.ArchivedLetter, error) {
	var (
		l              deadletter.ArchivedLetter
		letter         []byte
		at             int64
		begun, endedAt sql.NullInt64
		by             sql.NullString
	)
	err := rows.Scan(&l.ID, &letter, &l.Disposition, &l.By, &at, &l.Reason, &l.Once, &begun, &by, &endedAt)
	if err != nil {
		return l, err
	}
	l.At, l.RestoredBy = time.UnixMicro(at).UTC(), by.String
	if begun.Valid {
		l.RestoreBegun = time.UnixMicro(begun.Int64).UTC()
	}
	if endedAt.Valid {
		l.RestoredAt = time.UnixMicro(endedAt.Int64).UTC()
	}
	if l.Letter, err = deadletter.Decode(letter); err != nil {
		return l, fmt.Errorf("archived letter %s: %w", l.ID, err)
	}
	return l, nil
}

// BeginRestore notes that letters are about to be put back. See [deadletter.ArchiveTable].
func (s *Store) BeginRestore(ctx context.Context, ids []string, by string) error {
	return s.write(ctx, "begin to restore archived letters", func(ctx context.Context, tx *sql.Tx) error {
		for _, id := range ids {
			if _, err := tx.ExecContext(ctx, beginRestore, time.Now().UnixMicro(), by, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// EndRestore notes that letters are back. See [deadletter.ArchiveTable].
func (s *Store) EndRestore(ctx context.Context, ids []string) error {
	return s.write(ctx, "mark archived letters as restored", func(ctx context.Context, tx *sql.Tx) error {
		for _, id := range ids {
			if _, err := tx.ExecContext(ctx, endRestore, time.Now().UnixMicro(), id); err != nil {
				return err
			}
		}
		return nil
	})
}
