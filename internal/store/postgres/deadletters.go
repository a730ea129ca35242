package postgres

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/add_letter.sql
	addLetterSQL string
	//go:embed statements/letters.sql
	lettersSQL string
	//go:embed statements/request_replay.sql
	requestReplaySQL string
	//go:embed statements/replay_requested.sql
	replayRequestedSQL string
	//go:embed statements/purge_letters.sql
	purgeLettersSQL string
)

// AddLetter puts a letter on the shelf; see [deadletter.Shelf].
func (s *Store) AddLetter(ctx context.Context, l deadletter.Letter) (string, error) {
	headers, err := json.Marshal(l.Headers)
	if err != nil {
		return "", fmt.Errorf("add a dead letter: encode its headers: %w", err)
	}
	var id int64
	err = s.pool.QueryRow(ctx, addLetterSQL, append([]byte{}, l.Body...), headers, text(l.Source), text(l.Reason),
		text(l.Handler), l.Attempts, l.FirstFailed, l.LastFailed).Scan(&id)
	if err != nil {
		return "", fault(ctx, "add a dead letter", err)
	}
	return strconv.FormatInt(id, 10), nil
}

// text is s without what a text column cannot hold.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Letters returns letters in order; see [deadletter.Shelf].
func (s *Store) Letters(ctx context.Context, afterID string, limit int) ([]deadletter.Letter, error) {
	var after int64
	if afterID != "" {
		var found bool
		if after, found = letterID(afterID); !found {
			return nil, &store.QueryError{Field: "after", Problem: "is not the id of a dead letter"}
		}
	}
	return s.letters(ctx, lettersSQL, after, limit)
}

// ReplayRequested returns marked letters in order; see [deadletter.Shelf].
func (s *Store) ReplayRequested(ctx context.Context, limit int) ([]deadletter.Letter, error) {
	return s.letters(ctx, replayRequestedSQL, limit)
}

func (s *Store) letters(ctx context.Context, statement string, args ...any) ([]deadletter.Letter, error) {
	rows, err := s.pool.Query(ctx, statement, args...)
	if err != nil {
		return nil, fault(ctx, "read dead letters", err)
	}
	list, err := pgx.CollectRows(rows, scanLetter)
	return list, fault(ctx, "read dead letters", err)
}

func scanLetter(row pgx.CollectableRow) (deadletter.Letter, error) {
	var (
		l       deadletter.Letter
		id      int64
		headers []byte
	)
	err := row.Scan(&id, &l.Body, &headers, &l.Source, &l.Reason, &l.Handler, &l.Attempts, &l.FirstFailed, &l.LastFailed)
	if err != nil {
		return l, err
	}
	l.ID = strconv.FormatInt(id, 10)
	l.FirstFailed, l.LastFailed = l.FirstFailed.UTC(), l.LastFailed.UTC()
	l.Event = events.ParsePartial(l.Body)
	decoder := json.NewDecoder(bytes.NewReader(headers))
	decoder.UseNumber()
	return l, decoder.Decode(&l.Headers)
}

// RequestReplay marks a letter; see [deadletter.Shelf].
func (s *Store) RequestReplay(ctx context.Context, id string) (bool, error) {
	number, found := letterID(id)
	if !found {
		return false, nil
	}
	tag, err := s.pool.Exec(ctx, requestReplaySQL, number)
	return tag.RowsAffected() > 0, fault(ctx, "request a replay", err)
}

// RemoveLetter takes a letter off the shelf; see [deadletter.Shelf].
func (s *Store) RemoveLetter(ctx context.Context, id string) error {
	number, found := letterID(id)
	if !found {
		return nil
	}
	_, err := s.pool.Exec(ctx, "DELETE FROM dead_letters WHERE id = $1", number)
	return fault(ctx, "remove a dead letter", err)
}

// PurgeLetters destroys all letters; see [deadletter.Shelf].
func (s *Store) PurgeLetters(ctx context.Context) (int, error) {
	tag, err := s.pool.Exec(ctx, purgeLettersSQL)
	return int(tag.RowsAffected()), fault(ctx, "purge the dead letters", err)
}

// letterID reads an id; what is no number is no letter's id.
func letterID(id string) (int64, bool) {
	number, err := strconv.ParseInt(id, 10, 64)
	return number, err == nil
}
