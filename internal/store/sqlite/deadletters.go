package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	letterColumns = `id, reason, handler, attempts, first_failed, last_failed, source, headers, body`

	insertLetter = `INSERT INTO dead_letters (reason, handler, attempts, first_failed, last_failed, source, headers, body)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`
	selectLetters   = `SELECT ` + letterColumns + ` FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?`
	selectRequested = `SELECT ` + letterColumns + ` FROM dead_letters WHERE replay_requested = 1 ORDER BY id LIMIT ?`
	requestReplay   = `UPDATE dead_letters SET replay_requested = 1 WHERE id = ?`
	deleteLetter    = `DELETE FROM dead_letters WHERE id = ?`
	deleteLetters   = `DELETE FROM dead_letters`
)

// AddLetter puts a letter on the shelf. See [deadletter.Shelf].
func (s *Store) AddLetter(ctx context.Context, l deadletter.Letter) (string, error) {
	const doing = "add a dead letter"
	headers, err := json.Marshal(l.Headers)
	if err != nil {
		return "", fmt.Errorf("%s: encode its headers: %w", doing, err)
	}
	var id string
	err = s.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, insertLetter, l.Reason, l.Handler, l.Attempts, l.FirstFailed.UnixMicro(),
			l.LastFailed.UnixMicro(), l.Source, string(headers), append([]byte{}, l.Body...)).Scan(&id)
	})
	return id, err
}

// Letters returns letters after the one with the given id. See [deadletter.Shelf].
func (s *Store) Letters(ctx context.Context, afterID string, limit int) ([]deadletter.Letter, error) {
	const doing = "read dead letters"
	var after int64
	if afterID != "" {
		id, ok := parseLetterID(afterID)
		if !ok {
			return nil, translate(doing, &store.QueryError{Field: "after", Problem: "is not the id of a dead letter"})
		}
		after = id
	}
	letters, err := s.letters(ctx, selectLetters, after, limit)
	return letters, translate(doing, err)
}

// RequestReplay marks a letter for the worker that runs. See [deadletter.Shelf].
func (s *Store) RequestReplay(ctx context.Context, id string) (bool, error) {
	n, ok := parseLetterID(id)
	if !ok {
		return false, nil
	}
	marked, err := s.exec(ctx, "request the replay of a dead letter", requestReplay, n)
	return marked > 0, err
}

// ReplayRequested returns marked letters. See [deadletter.Shelf].
func (s *Store) ReplayRequested(ctx context.Context, limit int) ([]deadletter.Letter, error) {
	letters, err := s.letters(ctx, selectRequested, limit)
	return letters, translate("read the dead letters to replay", err)
}

// RemoveLetter takes a letter off the shelf. See [deadletter.Shelf].
func (s *Store) RemoveLetter(ctx context.Context, id string) error {
	n, ok := parseLetterID(id)
	if !ok {
		return nil
	}
	_, err := s.exec(ctx, "remove a dead letter", deleteLetter, n)
	return err
}

// PurgeLetters destroys all letters and returns how many. See [deadletter.Shelf].
func (s *Store) PurgeLetters(ctx context.Context) (int, error) {
	var n int64
	err := s.write(ctx, "purge the dead letters", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, deleteAllParked); err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, deleteLetters)
		if err == nil {
			n, err = result.RowsAffected()
		}
		return err
	})
	return int(n), err
}

func (s *Store) letters(ctx context.Context, query string, args ...any) ([]deadletter.Letter, error) {
	rows, err := s.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var letters []deadletter.Letter
	for rows.Next() {
		l, err := scanLetter(rows)
		if err != nil {
			return nil, err
		}
		letters = append(letters, l)
	}
	return letters, rows.Err()
}

func scanLetter(rows *sql.Rows) (deadletter.Letter, error) {
	var l deadletter.Letter
	var first, last int64
	var headers string
	err := rows.Scan(&l.ID, &l.Reason, &l.Handler, &l.Attempts, &first, &last, &l.Source, &headers, &l.Body)
	if err != nil {
		return l, err
	}
	if l.Body == nil { // the driver's form of an empty blob
		l.Body = []byte{}
	}
	l.FirstFailed, l.LastFailed = time.UnixMicro(first).UTC(), time.UnixMicro(last).UTC()
	decoder := json.NewDecoder(strings.NewReader(headers))
	decoder.UseNumber()
	if err := decoder.Decode(&l.Headers); err != nil {
		return l, fmt.Errorf("decode the headers of letter %s: %w", l.ID, err)
	}
	l.Event = events.ParsePartial(l.Body)
	return l, nil
}

// parseLetterID reads a letter's id. What is no id is the id of no letter.
func parseLetterID(s string) (int64, bool) {
	id, err := strconv.ParseInt(s, 10, 64)
	return id, err == nil
}
