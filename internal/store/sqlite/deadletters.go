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
	selectRequested = `SELECT ` + letterColumns + `, replay_id, replay_to FROM dead_letters
		WHERE replay_requested = 1 ORDER BY replay_turn, id LIMIT ?`
	selectAwaiting = `SELECT id FROM dead_letters WHERE replay_requested = 1 AND replay_id = ?`
	requestReplay  = `UPDATE dead_letters SET replay_requested = 1, replay_id = ?, replay_to = ?, replay_turn = ? WHERE id = ?`
	cancelReplay   = `UPDATE dead_letters SET replay_requested = 0 WHERE replay_requested = 1 AND replay_id = ?`
	deleteLetter   = `DELETE FROM dead_letters WHERE id = ?`
	deleteLetters  = `DELETE FROM dead_letters`
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

// RequestReplay marks letters for the worker that runs. See [deadletter.Shelf].
func (s *Store) RequestReplay(ctx context.Context, ids []string, r deadletter.ReplayRequest) ([]string, error) {
	var marked []string
	turn := time.Now().UnixMicro()
	err := s.write(ctx, "request the replay of dead letters", func(ctx context.Context, tx *sql.Tx) error {
		for i, id := range ids {
			n, ok := parseLetterID(id)
			if !ok {
				continue
			}
			result, err := tx.ExecContext(ctx, requestReplay, r.ReplayID, string(r.To), turn+int64(i), n)
			if err != nil {
				return err
			}
			if found, err := result.RowsAffected(); err != nil {
				return err
			} else if found > 0 {
				marked = append(marked, id)
			}
		}
		return nil
	})
	return marked, err
}

// ReplayRequested returns marked letters. See [deadletter.Shelf].
func (s *Store) ReplayRequested(ctx context.Context, limit int) ([]deadletter.Requested, error) {
	var requested []deadletter.Requested
	err := s.eachRow(ctx, selectRequested, []any{limit}, func(rows *sql.Rows) error {
		var r deadletter.Requested
		var err error
		r.Letter, err = scanLetter(rows, &r.By.ReplayID, &r.By.To)
		requested = append(requested, r)
		return err
	})
	return requested, translate("read the dead letters to replay", err)
}

// AwaitingReplay returns the letters that a replay has marked. See [deadletter.Shelf].
func (s *Store) AwaitingReplay(ctx context.Context, replayID string) ([]string, error) {
	var ids []string
	err := s.eachRow(ctx, selectAwaiting, []any{replayID}, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	})
	return ids, translate("read the letters of a replay", err)
}

// CancelReplay takes the marks of a replay away. See [deadletter.Shelf].
func (s *Store) CancelReplay(ctx context.Context, replayID string) error {
	_, err := s.exec(ctx, "cancel a replay", cancelReplay, replayID)
	return err
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
	var letters []deadletter.Letter
	err := s.eachRow(ctx, query, args, func(rows *sql.Rows) error {
		l, err := scanLetter(rows)
		letters = append(letters, l)
		return err
	})
	return letters, err
}

func (s *Store) eachRow(ctx context.Context, query string, args []any, scan func(*sql.Rows) error) error {
	rows, err := s.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// scanLetter reads a letter, and into more what follows its columns.
func scanLetter(rows *sql.Rows, more ...any) (deadletter.Letter, error) {
	var l deadletter.Letter
	var first, last int64
	var headers string
	columns := []any{&l.ID, &l.Reason, &l.Handler, &l.Attempts, &first, &last, &l.Source, &headers, &l.Body}
	if err := rows.Scan(append(columns, more...)...); err != nil {
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
