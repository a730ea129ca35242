package deadletter

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/uuid"
	"github.com/oklog/ulid/v2"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/events"
)

// ErrUnchanged says that an edit has changed nothing, and so nothing was done.
var ErrUnchanged = errors.New("nothing was changed")

// ErrChanged says that another has changed the letter since it was read.
var ErrChanged = errors.New("has changed meanwhile, and was not edited")

// ErrPatch says that a patch cannot be applied.
var ErrPatch = errors.New("the patch cannot be applied")

// EditedLetter tells what an edit has done.
type EditedLetter struct {
	// LetterID names the letter, and OriginalID the row that has its original message.
	LetterID, OriginalID string
	// ReplayID is the replay by which the letter is released.
	ReplayID string
}

// Edit changes the body of a letter that waits, and releases it for a replay to the handler that failed. The letter is
// named by its own id, or by that of its event if no other is of it. change returns the body as it is to be; it may ask
// check whether that is an event which the letter may be, and else the edit fails with what check says, an
// *[events.InvalidError].
//
// The letter is the same event: what the original says of its id, its type, its aggregate with the version and its tenant
// stays; what it lacks may be added. The original becomes a row of its own, which is [Superseded], and the letter's
// history names it. The handlers that have handled the original pass the letter over, like a redelivery; see
// [events.EditedBody].
func (t *Table) Edit(
	ctx context.Context, id string, change func(body []byte, check func([]byte) error) ([]byte, error), by audit.Actor,
) (EditedLetter, error) {
	l, err := t.Find(ctx, id)
	if err != nil {
		return EditedLetter{}, err
	}
	if l.State != Waiting {
		return EditedLetter{}, fmt.Errorf("dead letter %s is %s: only one that is %s can be edited", l.ID, l.State, Waiting)
	}
	body, err := change(bytes.Clone(l.Body), func(body []byte) error {
		_, err := editedBody(l, body)
		return err
	})
	if err != nil {
		return EditedLetter{}, err
	}
	if sameJSON(l.Body, body) {
		return EditedLetter{}, ErrUnchanged
	}
	if body, err = editedBody(l, body); err != nil {
		return EditedLetter{}, err
	}
	return t.supersede(ctx, l, body, by)
}

// supersede gives a letter another body and releases it; its original becomes another row.
func (t *Table) supersede(ctx context.Context, l Letter, body []byte, by audit.Actor) (EditedLetter, error) {
	done := EditedLetter{LetterID: l.ID, OriginalID: ulid.Make().String(), ReplayID: ulid.Make().String()}
	now := time.Now().UTC()
	original, edited := l, l
	original.ID, original.State, original.Decided = done.OriginalID, Superseded, Decision{By: by.By, Reason: by.Reason, At: now}
	edited.Body = body
	edited.History = l.History.With(Incident{
		Kind: Edited, At: now.Truncate(time.Second), By: by.By, Reason: fmt.Sprintf("%s (original: %s)", by.Reason, done.OriginalID),
	})
	edited = Complete(edited).withPast(edited)
	err := t.db.Write(ctx, "edit dead letter "+l.ID, func(ctx context.Context, tx *sql.Tx) error {
		var identity, arrival string
		var last moment
		err := t.query(ctx, tx, "SELECT identity, arrival, last_failed_at FROM dead_letters WHERE id = ? AND state = 'waiting' AND handler = ? "+
			"AND body = ?"+t.dialect.forUpdate(), []any{l.ID, l.Handler, l.Body},
			func(rows *sql.Rows) error { return rows.Scan(&identity, &arrival, &last) })
		if err == nil && (identity == "" || !last.Equal(l.LastFailed)) {
			err = fmt.Errorf("dead letter %s %w", l.ID, ErrChanged)
		}
		if err != nil {
			return err
		}
		changed := &known{Letter: edited, arrival: arrival, identity: Arrival{Letter: edited}.identity()}
		kept := &known{Letter: original, arrival: arrival, identity: identity, added: true}
		// The original of an earlier edit may have been what the letter is now again.
		_, err = t.exec(ctx, tx, "UPDATE dead_letters SET identity = ? WHERE identity = ? AND id <> ?", "before "+done.OriginalID, changed.identity, l.ID)
		if err != nil {
			return err
		}
		if err := t.store(ctx, tx, []*known{changed, kept}); err != nil {
			return err
		}
		_, err = t.exec(ctx, tx, "UPDATE dead_letters SET state = 'replaying', release = ?, release_to = ?, released_at = ? WHERE id = ?",
			done.ReplayID, string(ToHandler), t.dialect.at(now), l.ID)
		if err != nil {
			return err
		}
		subject := Filter{IDs: []string{l.ID}}.Subject().With("original", done.OriginalID).With("replay", done.ReplayID)
		return t.record(ctx, tx, by.Did(audit.Edit, subject, 1))
	})
	return done, err
}

// withPast is a letter whose message was read anew, with what the table has told of it.
func (l Letter) withPast(known Letter) Letter {
	l.History, l.Replays, l.ReplayID, l.State, l.Decided = known.History, known.Replays, known.ReplayID, known.State, known.Decided
	return l
}

// editedBody is the body of the copy of a letter, if it may be that.
func editedBody(l Letter, body []byte) ([]byte, error) {
	e, err := events.Parse(body)
	if err != nil {
		return nil, err
	}
	was := l.Event
	invalid := &events.InvalidError{}
	stays := func(field string, absent, same bool) {
		if !absent && !same {
			invalid.Fields = append(invalid.Fields, events.FieldError{Field: field, Problem: "must stay what it was"})
		}
	}
	stays("event_id", was.ID == uuid.Nil, was.ID == e.ID)
	stays("event_type", was.Type == "", was.Type == e.Type)
	stays("aggregate_type", was.AggregateType == "", was.AggregateType == e.AggregateType)
	stays("aggregate_id", was.AggregateID == uuid.Nil, was.AggregateID == e.AggregateID)
	stays("aggregate_version", was.AggregateVersion == 0, was.AggregateVersion == e.AggregateVersion)
	stays("tenant_id", was.TenantID == uuid.Nil, was.TenantID == e.TenantID)
	stays("correlation_id", was.CorrelationID == uuid.Nil, was.CorrelationID == e.CorrelationID)
	if len(invalid.Fields) > 0 {
		return nil, invalid
	}
	original, err := events.Parse(l.Body)
	if err != nil { // so no handler has handled it
		return body, nil //nolint:nilerr // that is why it is edited
	}
	return events.EditedBody(original, body)
}

// sameJSON tells whether two texts are the same but for white space.
func sameJSON(a, b []byte) bool {
	var compactA, compactB bytes.Buffer
	if json.Compact(&compactA, a) != nil || json.Compact(&compactB, b) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(compactA.Bytes(), compactB.Bytes())
}

// Patch applies a patch to a body: a list of operations (RFC 6902, JSON Patch), or an object that says what is other
// (RFC 7396, JSON Merge Patch). What it does not concern stays as it is written. The error quotes nothing of either.
func Patch(body, patch []byte) ([]byte, error) {
	if !bytes.HasPrefix(bytes.TrimLeft(patch, " \t\r\n"), []byte("[")) {
		patched, err := jsonpatch.MergePatch(body, patch)
		if err != nil {
			return nil, fmt.Errorf("%w: the merge patch or the letter's body is not a JSON object", ErrPatch)
		}
		return patched, nil
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, fmt.Errorf("%w: the patch is not a list of JSON Patch operations", ErrPatch)
	}
	patched, err := operations.Apply(body)
	switch {
	case errors.Is(err, jsonpatch.ErrTestFailed):
		return nil, fmt.Errorf("%w: a test of the patch does not hold", ErrPatch)
	case errors.Is(err, jsonpatch.ErrMissing):
		return nil, fmt.Errorf("%w: a path of the patch is not there", ErrPatch)
	case err != nil:
		return nil, fmt.Errorf("%w: the patch does not fit the letter's body", ErrPatch)
	}
	return patched, nil
}
